"""Whether a preconditioner would pay for convolutions: K-FAC's and the diagonal beside plain CG.

    OMP_NUM_THREADS=1 python benchmarks/convolution_factors.py
    OMP_NUM_THREADS=1 python benchmarks/convolution_factors.py --clock

The first prints what is reached, without a clock, the second what it costs.

Batches are of our own training on MinAtar's Breakout, early and late: its frames as they are, for
the small network, and enlarged to 84x84x4, for that of Mnih et al. Even rows make the gradient and
the Fisher matrix, odd rows are held out. K-FAC for convolutions is KFC (Grosse & Martens 2016,
"A Kronecker-factored approximate Fisher matrix for convolution layers"): a layer's block is
A (x) G, A the sum over positions of the patches' second moments and G the mean over positions of
those of the output gradients, drawn as ``preconditioning.kfac`` draws them. Linear layers have
their usual factors. What is charged: the passes for the factors, their eigenvectors or inverses,
and what an application adds to a product.

Q is that of step_quality.py, the exact solution being that of float64; the held-out gain is that of
the surrogate on the odd rows, for the step along the direction whose KL on the even rows is
``MAX_KL``. MinAtar comes from PyPI: ``pip install minatar``.
"""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from itertools import count
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.distributions import Distribution, kl_divergence
from torch.nn import functional

from trpo_fast import TRPO, CnnPolicy
from trpo_fast.backends.generic.convolutions import Convolutions
from trpo_fast.backends.generic.linearization import Linearization, linearize
from trpo_fast.networks.distributions import detached, in_double
from trpo_fast.networks.head import Outputs
from trpo_fast.preconditioning.kfac import (
    Block,
    Factors,
    balance,
    cholesky_inverse,
    damped_inverse,
    eigen_basis,
    eigen_block,
    factored_damping,
    signs_of,
    too_wide,
)
from trpo_fast.preconditioning.preconditioner import Place, Preconditioner
from trpo_fast.update.conjugate_gradient import conjugate_gradient
from trpo_fast.update.parameters import FlatParameters

CACHE = Path(__file__).resolve().parent / ".rollouts"
MAX_KL, DAMPINGS = 0.01, (0.1, 0.01)
ITERATIONS = (1, 2, 3, 5, 10, 20)
OUTPUT_ROWS = 512  # that G and the diagonal are made of, as for perceptrons
LEVELS = (0.1, 0.01)  # relative residuals to be counted to
LONGEST = 40
ALL_ROWS = "K-FAC, G of all rows"
EXACT_TOL = 1e-3  # its square is what Q can be wrong by


class Enlarged(gym.ObservationWrapper[Any, Any, Any]):
    """MinAtar's 10x10 cells as 84x84 pixels of 0 and 255."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        height, width, channels = env.observation_space.shape or ()
        self.observation_space = spaces.Box(0, 255, (84, 84, channels), np.uint8)
        self.border = [((84 - 8 * n) // 2,) * 2 for n in (height, width)]

    def observation(self, observation: Any) -> Any:
        """One frame."""
        pixels = 255 * np.asarray(observation, np.uint8)
        return np.pad(pixels.repeat(8, 0).repeat(8, 1), [*self.border, (0, 0)])


def breakout(*, large: bool) -> gym.Env[Any, Any]:
    """The game, with the actions that it uses."""
    game = import_module("minatar.gym")
    if "MinAtar/Breakout-v1" not in gym.registry:
        game.register_envs()
    made = gym.make("MinAtar/Breakout-v1")
    return Enlarged(made) if large else made


@dataclass(frozen=True)
class Run:
    """A training run and the updates whose batches are kept."""

    name: str
    large: bool
    rollout_steps: int
    updates: tuple[int, ...]
    stride: int = 2  # of the rows of each of the two halves


RUNS = (
    Run("small network, 10x10x4", False, 512, (3, 40)),
    Run("Mnih et al., 84x84x4", True, 128, (3, 10), stride=4),
)


def batches(run: Run) -> list[dict[str, Any]]:
    """Policies with what their updates were given, from the cache or by training."""
    path = CACHE / f"breakout-{'large' if run.large else 'small'}-{run.rollout_steps}.pt"
    if not path.exists():
        kept: list[dict[str, Any]] = []
        with TRPO(
            lambda: breakout(large=run.large), rollout_steps=run.rollout_steps, seed=0
        ) as agent:
            optimizer = agent.learner.optimizer
            step = optimizer.step

            def keep(**inputs: Any) -> Tensor:
                update = agent.progress.num_updates + 1
                if update in run.updates:
                    names = ("obs", "actions", "advantages")
                    batch = {name: inputs[name].clone() for name in names}
                    policy = copy.deepcopy(agent.policy)
                    kept.append({"update": update, "policy": policy, **batch})
                return step(**inputs)

            optimizer.step = keep  # type: ignore[method-assign,assignment]
            steps = 8 * run.rollout_steps * max(run.updates)
            agent.learn(steps, progress_bar=False)
        path.parent.mkdir(exist_ok=True)
        torch.save(kept, path)
    found: list[dict[str, Any]] = torch.load(path, weights_only=False)
    return [{**batch, "stride": run.stride} for batch in found]


class Rows:
    """One half of a batch, and what is computed on it."""

    def __init__(self, policy: CnnPolicy, batch: dict[str, Any], half: int) -> None:
        self.policy = policy
        self.obs, self.actions, self.advantages = (
            batch[name][half :: batch["stride"]] for name in ("obs", "actions", "advantages")
        )
        self.advantages = self.advantages.to(next(policy.parameters()).dtype)
        with torch.no_grad():
            self.old = in_double(detached(policy(self.obs)))
            self.old_log_prob = self.old.log_prob(self.actions)

    def mean_kl(self, new: Distribution) -> Tensor:
        return kl_divergence(self.old, in_double(new)).mean()

    def gain(self, new: Distribution) -> Tensor:
        """Of the surrogate, from theta_old."""
        ratio = (in_double(new).log_prob(self.actions) - self.old_log_prob).exp()
        gain: Tensor = ((ratio - 1) * self.advantages).mean()
        return gain

    def linearized(self, parameters: FlatParameters) -> Linearization:
        convolutions = Convolutions()
        with convolutions:
            distribution = self.policy(self.obs)
        return linearize(distribution, self.mean_kl, parameters, convolutions)


class Draw(NamedTuple):
    """The rows that a preconditioner is made of."""

    all: Tensor
    some: Tensor  # that gradients are drawn for

    @classmethod
    def of(cls, obs: Tensor, most: int = OUTPUT_ROWS) -> Draw:
        return cls(obs, obs[:: math.ceil(len(obs) / most)])


class Seen(NamedTuple):
    """A layer's call: its input and output."""

    layer: nn.Conv2d | nn.Linear
    given: Tensor
    out: Tensor

    @property
    def patches(self) -> Tensor:
        """The inputs by position ``[n, T, m]``, 1 last."""
        x = self.given
        if isinstance(self.layer, nn.Conv2d):
            x = functional.unfold(x, self.layer.kernel_size, stride=self.layer.stride)
            x = x.transpose(1, 2)
        else:
            x = x.unsqueeze(1)
        return functional.pad(x, (0, 1), value=1.0)

    def moment(self) -> Tensor:
        """A ``[m, m]``: of all positions together, a mean over the rows."""
        a = self.patches.flatten(0, 1)
        return a.T @ a / len(self.given)


def calls(policy: CnnPolicy, obs: Tensor) -> list[Seen]:
    """Of every layer, in turn."""
    seen: list[Seen] = []

    def note(layer: Any, given: tuple[Tensor, ...], out: Tensor) -> None:
        seen.append(Seen(layer, given[0].detach(), out))

    layers = [m for m in policy.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    policy(obs)
    for hook in hooks:
        hook.remove()
    return seen


def slopes(policy: CnnPolicy, seen: list[Seen]) -> list[Tensor]:
    """Each layer's output gradients ``[n, T, out]`` of one draw."""
    logits = seen[-1].out
    signs = signs_of(len(logits), logits.shape[1], logits.dtype)
    draw = policy.actor.head.metric_root(Outputs(logits.detach(), None, None), signs)
    found = torch.autograd.grad(logits, [call.out for call in seen], draw)
    return [e.flatten(2).transpose(1, 2) if e.ndim == 4 else e.unsqueeze(1) for e in found]


def place(layer: nn.Conv2d | nn.Linear, parameters: FlatParameters) -> Place:
    """Of the weight as a matrix ``[out, m - 1]``, and of the bias."""
    weight = layer.weight
    at = parameters.offset_of(weight), parameters.offset_of(layer.bias)
    return Place(*at, weight[0].numel(), len(weight))


@torch.no_grad()
def kfc(
    policy: CnnPolicy, rows: Draw, parameters: FlatParameters, damping: float
) -> Preconditioner:
    """Grosse & Martens 2016, section 3; A of all rows, and the damping, as for perceptrons."""
    blocks: list[tuple[Place, Block]] = []
    moments = [call.moment() for call in calls(policy, rows.all)]
    with torch.enable_grad():
        found = slopes(policy, seen := calls(policy, rows.some))
    for call, A, slope in zip(seen, moments, found, strict=True):
        e = slope.flatten(0, 1)
        factors = Factors(A, e.T @ e / len(e))
        if too_wide(factors):
            to_A, to_G = factored_damping(factors, balance(factors), damping)
            block = Block(cholesky_inverse(factors.G, to_G), cholesky_inverse(A, to_A), None)
        else:
            block = eigen_block(eigen_basis(factors.G), eigen_basis(A), damping)
        blocks.append((place(call.layer, parameters), block))
    return Preconditioner(torch.zeros_like(parameters.start), blocks)


@torch.no_grad()
def diagonal(
    policy: CnnPolicy, rows: Draw, parameters: FlatParameters, damping: float
) -> Preconditioner:
    """The squares of each row's gradient of one draw, and the damping."""
    F = torch.zeros_like(parameters.start)
    with torch.enable_grad():
        found = slopes(policy, seen := calls(policy, rows.some))
    for call, slope in zip(seen, found, strict=True):
        at, patches = place(call.layer, parameters), call.patches
        squares = sum(
            (e.transpose(1, 2) @ a).square().sum(0)
            for e, a in zip(slope.split(64), patches.split(64), strict=True)
        ) / len(slope)
        assert at.weight is not None
        assert at.bias is not None
        F[at.weight : at.weight + at.inputs * at.outputs] = squares[:, :-1].flatten()
        F[at.bias : at.bias + at.outputs] = squares[:, -1]
    return Preconditioner(damped_inverse(F, damping))


Apply = Callable[[Tensor], Tensor]


class Case:
    """A batch with its gradient, products, and exact solutions."""

    def __init__(self, batch: dict[str, Any]) -> None:
        self.policy: CnnPolicy = batch["policy"]
        self.batch = batch
        self.parameters = flat(self.policy)
        self.train = Rows(self.policy, batch, 0)
        moved = copy.deepcopy(self.policy)  # what is kept for products must not move
        self.moved_parameters = flat(moved)
        self.moved, self.held_out = Rows(moved, batch, 0), Rows(moved, batch, 1)
        self.g = self.gradient(self.policy, self.train, self.parameters)
        self.linear = self.train.linearized(self.parameters)
        exact = copy.deepcopy(self.policy).double()
        self.double = Rows(exact, batch, 0)
        self.exact_parameters = flat(exact)
        self.exact_linear = self.double.linearized(self.exact_parameters)
        self.exact_g = self.gradient(exact, self.double, self.exact_parameters)

    @staticmethod
    def gradient(policy: CnnPolicy, rows: Rows, parameters: FlatParameters) -> Tensor:
        with torch.enable_grad():
            gain = rows.gain(policy(rows.obs))
        return parameters.flatten(torch.autograd.grad(gain, parameters.tensors))

    def share(self, x: Tensor, damping: float) -> float:
        """``g.x / sqrt(x'(F + damping I)x)``, in float64."""
        x = x.double()
        Ax = self.exact_linear.product(x) + damping * x
        return float(self.exact_g @ x / (x @ Ax).sqrt())

    def exact(self, damping: float) -> float:
        """The same at the solution."""
        M = kfc(self.double.policy, Draw.of(self.double.obs), self.exact_parameters, damping)
        found = conjugate_gradient(
            self.exact_linear.product, self.exact_g, damping=damping, iters=1000, tol=EXACT_TOL,
            precondition=M.apply,
        )  # fmt: skip
        if found.residual > EXACT_TOL:
            raise RuntimeError(f"the exact solve ended at a residual of {found.residual:.2g}")
        return self.share(found.x, damping)

    def solver(self, M: Apply | None, damping: float) -> Callable[..., Any]:
        """Solves with these; their products, the same ones in each, are computed once."""
        known: list[Tensor] = []

        def solve(iters: int, tol: float = 0.0) -> Any:
            turn = count()

            def product(p: Tensor) -> Tensor:
                at = next(turn)
                if at == len(known):
                    known.append(self.linear.product(p))
                return known[at]

            return conjugate_gradient(
                product, self.g, damping=damping, iters=iters, tol=tol, precondition=M
            )

        return solve

    @torch.no_grad()
    def gained(self, x: Tensor) -> float:
        """The surrogate's gain on the held-out rows where the KL along ``x`` is ``MAX_KL``."""
        low, high, start = 0.0, 1.0, self.parameters.start
        while self._kl(start + high * x) < MAX_KL and high < 1e6:
            low, high = high, 2 * high
        for _ in range(12):
            middle = (low + high) / 2
            short = self._kl(start + middle * x) < MAX_KL
            low, high = (middle, high) if short else (low, middle)
        self.moved_parameters.write(start + low * x)
        return float(self.held_out.gain(self.held_out.policy(self.held_out.obs)))

    def _kl(self, theta: Tensor) -> float:
        self.moved_parameters.write(theta)
        return float(self.moved.mean_kl(self.moved.policy(self.moved.obs)))


def flat(policy: nn.Module) -> FlatParameters:
    names, tensors = zip(*policy.named_parameters(), strict=True)
    return FlatParameters(list(tensors), list(names))


def milliseconds(call: Callable[[], object], turns: int) -> float:
    times = []
    for _ in range(turns):
        start = perf_counter()
        call()
        times.append(1e3 * (perf_counter() - start))
    return median(times)


def preconditioners(case: Case, damping: float) -> Iterator[tuple[str, Callable[[], Any]]]:
    """What makes each, by its name; None of plain conjugate gradients."""
    obs, given = case.train.obs, (case.parameters, damping)
    yield "plain", lambda: None
    yield "diagonal", lambda: diagonal(case.policy, Draw.of(obs), *given)
    yield "K-FAC", lambda: kfc(case.policy, Draw.of(obs), *given)
    yield ALL_ROWS, lambda: kfc(case.policy, Draw.of(obs, len(obs)), *given)


def print_costs(case: Case, turns: int) -> None:
    """Milliseconds."""
    damping = DAMPINGS[0]
    product = milliseconds(lambda: case.linear.product(case.g), turns)
    gradient = milliseconds(lambda: case.gradient(case.policy, case.train, case.parameters), turns)
    print(f"gradient {gradient:.1f} ms, a product {product:.2f} ms")
    for name, make in preconditioners(case, damping):
        M = make()
        if M is not None:
            apply = milliseconds(partial(M.apply, case.g), turns)
            print(f"  {name}: factors {milliseconds(make, turns):.1f} ms, applied {apply:.2f} ms")


def print_quality(case: Case) -> None:
    """Iterations to some residuals; Q and held-out gain after some iterations."""
    print()
    for damping in DAMPINGS:
        best = case.exact(damping)
        heads = " | ".join([*(f"to {level:g}" for level in LEVELS), *map(str, ITERATIONS)])
        print(f"\n| damping {damping} | {heads} |")
        print("|---" * (1 + len(LEVELS) + len(ITERATIONS)) + "|")
        for name, make in preconditioners(case, damping):
            M = make()
            apply = None if M is None else M.apply
            solve, counts = case.solver(apply, damping), []
            for level in LEVELS:
                found = solve(LONGEST, level)
                ended = found.residual <= level
                counts.append(str(found.cg_iters) if ended else f">{LONGEST}")
            cells = []
            for n in ITERATIONS:
                x = solve(n).x
                q = case.share(x, damping) / best
                cells.append(f"{q:.3f}, {1e3 * case.gained(x):.2f}")
            print(f"| {name} | " + " | ".join([*counts, *cells]) + " |", flush=True)


def main() -> None:
    """Print a table a batch; gains are in thousandths."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clock", action="store_true", help="what it costs")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--only", metavar="TEXT", default="", help="runs of this name")
    options = parser.parse_args()
    for run in (run for run in RUNS if options.only in run.name):
        for batch in batches(run):
            case = Case(batch)
            rows = len(case.train.obs)
            print(f"\n{run.name}, update {batch['update']}, {rows} rows: ", end="")
            if options.clock:
                print_costs(case, options.turns)
            else:
                print_quality(case)


if __name__ == "__main__":
    main()
