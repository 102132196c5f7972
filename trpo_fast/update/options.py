"""The options of one update, once: name, default, limits, choices, and what each means.

``TRPOOptimizer``, the agent's ``Config``, the command line and ``docs/options.md`` take them from
here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from trpo_fast.base import option as tables

GROUP = "policy update"
GREATEST_COUNT = 2**31 - 1  # the native int


def _option(default: Any, text: str, **more: Any) -> Any:
    return tables.option(default, GROUP, text, **more)


@dataclass(frozen=True, kw_only=True)
class SharedOptions:
    """What the optimizer and the agent both take.

    ``max_kl``, ``damping``, ``cg_iters`` and ``backtrack_coeff`` are the defaults of OpenAI's
    baselines and spinningup (0.01, 0.1, 10, 0.8).
    """

    max_kl: float = _option(
        0.01,
        "bound on the mean KL of an update",
        note="Of the joint action, in nats.",
        above=0.0,
    )
    damping: float = _option(
        0.1,
        "added to the Fisher matrix's diagonal; with relative_damping in its units",
        note="adaptive_damping changes it in the group.",
        minimum=0.0,
    )
    relative_damping: bool = _option(
        False,
        "damping is in units of the Fisher matrix's curvature along the gradient",
        note="Of g'Fg / g'g, so that it means the same whatever the policy's certainty, the scale "
        "of its parameters and their number; at least 1e-4 are added. It costs a product, and on "
        "CUDA and the reference backend a gradient. Without it 0.1 is usual.",
    )
    adaptive_damping: bool = _option(
        False,
        "adapt the damping to how well the quadratic model predicts",
        note="Levenberg-Marquardt (Martens 2010, section 4.1): half as much again after a step "
        "that the model misjudged, a third less after one that it judged well and whose KL is "
        "below two thirds of s^2 x'(F + damping I)x / 2 for its length s (of max_kl with "
        "constraint=penalty). With step_size=damped and lr=1 that s is for max_kl.",
    )
    cg_iters: int = _option(
        10, "most conjugate-gradient iterations", minimum=1, maximum=GREATEST_COUNT
    )
    cg_tol: float = _option(
        1e-4, "relative residual at which they stop (0: run all)", minimum=0.0, below=1.0
    )
    cg_progress_tol: float = _option(
        0.05,
        "stop preconditioned ones, too, at one that adds less than this share (0: never)",
        note="Of what the quadratic model has fallen so far (Martens 2010, section 4.4). Plain "
        "conjugate gradients gain too unevenly to be judged by one iteration.",
        minimum=0.0,
        below=1.0,
    )
    preconditioner: str = _option(
        "auto",
        "of conjugate gradients: kfac, diagonal or none; auto is kfac where it pays",
        note="kfac: Kronecker-factored layers (Martens & Grosse 2015); diagonal: for comparison. "
        "Statistics that need gradients are kept in the optimizer's state for up to five updates. "
        "It pays for recognised perceptrons on the CPU whose batch is large enough, with a damping "
        "of 0.01 (relative: 0.005) or more. The solution sought is the same with all.",
        choices=("auto", "none", "diagonal", "kfac"),
    )
    precision: str = _option(
        "auto",
        "of what the Fisher products multiply; the rest stays fp32 or better; auto is bf16 where "
        "the CPU has an instruction for it and the preconditioner is kfac",
        note="fp32: float64 for a float64 policy; tf32: rounded to 11 bits by CUDA's tensor cores; "
        "bf16: rounded to bfloat16; bf16x3: as two bfloat16 each.",
        choices=("auto", "fp32", "tf32", "bf16x3", "bf16"),
    )
    fisher_fraction: float = _option(
        1.0,
        "share of the rows used for the Fisher matrix",
        note="Evenly strided.",
        above=0.0,
        maximum=1.0,
    )
    step_size: str = _option(
        "boundary",
        "end near the KL bound; or size the first candidate by the damped form, then only shrink",
        note="Of constraint=hard. boundary: candidates are sized by x'Fx, then by the measured KL, "
        "to end with it in [0.93, 1] max_kl, or sooner where the surrogate is better. damped: the "
        "first one is sized by x'(F + damping I)x, the next are shorter, as the peers have it.",
        choices=("boundary", "damped"),
    )
    backtrack_coeff: float = _option(0.8, "line search: shrink by this much", above=0.0, below=1.0)
    max_backtracks: int = _option(
        10, "line search: at most this many shrinks", minimum=0, maximum=GREATEST_COUNT
    )
    accept_ratio: float = _option(
        0.0, "line search: least actual / expected improvement", minimum=0.0, below=1.0
    )
    constraint: str = _option(
        "hard",
        "trust region, KL penalty, or plain natural gradient",
        note="penalty accepts what raised surrogate - beta KL; none is theta + lr x, of which only "
        "finiteness is checked.",
        choices=("hard", "penalty", "none"),
    )
    beta: float = _option(
        1.0,
        "weight of the KL penalty",
        note="adaptive_beta changes it in the group.",
        above=0.0,
    )
    adaptive_beta: bool = _option(
        True,
        "adapt the penalty's weight so that the KL is near max_kl",
        note="Doubled where KL > 1.5 max_kl, halved where KL < max_kl / 1.5.",
    )
    kl_direction: str = _option(
        "old_new", "KL(old, new) or KL(new, old)", choices=("old_new", "new_old")
    )
    lr: float = _option(
        1.0,
        "multiplies the step",
        note="With step_size=boundary it is for a KL of min(1, lr)^2 max_kl. 0 is an exact no-op. "
        "The optimizer takes a tensor, too, which stays one, for schedulers to write.",
        minimum=0.0,
    )
    backend: str = _option(
        "auto",
        'what computes the update; "cuda" is for networks on a CUDA device',
        note="A named one that cannot serve raises.",
        choices=("auto", "cpu", "cuda", "reference"),
    )


@dataclass(frozen=True, kw_only=True)
class Options(SharedOptions):
    """Checked options of one update, plain values all.

    Raises:
        ValueError: an option is outside its limits, or of the wrong type.
    """

    noise: str = _option(
        "eval",
        "of dropout and the like within a step",
        note="eval: the module is in eval mode. fixed: only batch normalisation is; every call "
        "draws the same numbers from torch's generator, so that one dropout mask serves the whole "
        "step, and the generator is put back.",
        choices=("eval", "fixed"),
    )
    maximize: bool = _option(
        False,
        "the loss is an objective",
        note="It is to rise, and is reported so. The keyword form then reports "
        "(ratio * advantages).mean(), and takes the same step.",
    )

    def __post_init__(self) -> None:
        tables.check_fields(self, TABLE)

    def as_group(self) -> dict[str, Any]:
        """The options as plain Python values, so that a state dict loads with weights_only."""
        return asdict(self)


TABLE = tables.table_of(Options)


def from_group(group: Mapping[str, Any]) -> Options:
    """The options in a parameter group; keys that are none of ours are ignored.

    Raises:
        ValueError: as ``Options``, or when an option is missing.
    """
    missing = [name for name in TABLE if name not in group]
    if missing:
        raise ValueError(f"the parameter group lacks {', '.join(missing)}; do not delete options")
    return Options(**{name: group[name] for name in TABLE})
