"""Odd arguments for every entry point of the native module: `python tests/native_fuzz.py 0 500`.

Each call either raises one of Python's exceptions or computes what it should; it never crashes.
Every tensor lies in memory of its own that ends at (or begins after) a page nobody may touch, so
that one entry too far is a crash. The number of the case under way is kept in a file: whoever runs
this as a process knows what crashed. `test_native_fuzz.py` does.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from fuzz_case import LARGEST, Case, Refused, same, shown
from torch import Tensor

from trpo_fast import _core
from trpo_fast.networks import network
from trpo_fast.networks.activations import ACTIVATIONS
from trpo_fast.networks.network import Layer

REFUSALS = (TypeError, ValueError, IndexError, OverflowError, RuntimeError, KeyError, MemoryError)
NAMES = list(ACTIVATIONS)
GAUSSIAN, STATE_STD, CATEGORICAL, MULTI_CATEGORICAL, BERNOULLI, BETA, JOINT = range(7)


class Net:
    """A network's layers, as tensors and as they cross."""

    def __init__(self, case: Case, dtype: torch.dtype, outputs: int) -> None:
        self.inputs = case.random.choice([1, 2, 3, 17, 64])
        widths = [case.random.choice([1, 5, 16, 33]) for _ in range(case.random.randrange(3))]
        self.layers: list[Layer] = []
        self.args: list[Any] = []
        width = self.inputs
        for i, out in enumerate([*widths, outputs]):
            last = i == len(widths)
            weight = case.tensor((out, width), dtype, written=True)
            bias = None if case.chance(0.2) else case.tensor((out,), dtype, written=True)
            name = "identity" if last else case.random.choice(NAMES)
            self.layers.append(Layer(weight, bias, name, 0.1))
            code = case.either(NAMES.index(name), -1, len(NAMES), 99)
            args = [None if t is None else shown(t) for t in (weight, bias)]
            self.args.append((*args, code, 0.1))
            width = out

    def forward(self, x: Tensor) -> Tensor:
        return network.forward(self.layers, x)


def kind_of(case: Case) -> tuple[torch.dtype, str]:
    return case.random.choice([(torch.float32, "32"), (torch.float64, "64")])


def forward(case: Case) -> None:
    dtype, bits = kind_of(case)
    net, rows = Net(case, dtype, case.random.choice([1, 3, 16])), case.random.choice([0, 1, 7, 50])
    x = case.tensor((rows, net.inputs), dtype)
    out = case.tensor((rows, len(net.layers[-1].weight)), dtype, written=True)
    native = getattr(_core, f"MlpForwardF{bits}")(net.args, net.inputs, case.number(1, 3))
    case.bound(native)(shown(x), shown(out))
    if not case.odd and case.finite:
        same(out, net.forward(x))


def activate(case: Case) -> None:
    dtype, bits = kind_of(case)
    count = case.either(case.random.choice([0, 16, 48]), 17)
    z = case.tensor((count,), dtype, whole=True)
    slope = None if case.chance(0.3) else case.arg((count,), dtype, whole=True)
    before = z.clone()
    code = case.either(case.random.randrange(len(NAMES)), -1, len(NAMES), 2**31 - 1)
    getattr(_core, f"activate_f{bits}")(code, 0.1, shown(z), slope)
    if case.finite and not case.odd:
        layer = Layer(torch.eye(1, dtype=dtype), None, NAMES[code], 0.1)
        same(z, network.forward([layer], before.reshape(-1, 1)).flatten())


def finite(case: Case) -> None:
    dtype, bits = kind_of(case)
    x = case.tensor((case.random.randrange(300),), dtype, whole=True)
    if x.is_contiguous():
        count = x.numel()
        found = getattr(_core, f"all_finite_f{bits}")(x.data_ptr(), count)
        assert found == bool(torch.isfinite(x).all())
        if bits == "64":
            found = _core.all_finite_as_f32(x.data_ptr(), count)
            assert found == bool(torch.isfinite(x.float()).all())


def blocks(case: Case) -> None:
    parts = [case.memory(case.random.randrange(9), torch.float64) for _ in range(4)]
    flat = case.memory(sum(map(len, parts)), torch.float64)
    for part in (*parts, flat):
        part.normal_()
    read = case.chance(0.5)
    places = [(case.either(p.data_ptr(), 0), len(p)) for p in parts]
    _core.copy_blocks(flat.data_ptr(), places, case.either(8, 0), read)
    if not case.odd:
        assert torch.equal(flat, torch.cat(parts))


def inverse(case: Case) -> None:
    dtype, bits = kind_of(case)
    n = case.random.choice([1, 2, 15, 16, 17, 64, 65, 130])
    root = case.tensor((n, n), dtype, whole=True)
    if root.shape == (n, n):
        root.copy_(root @ root.T + n * torch.eye(n, dtype=dtype))
    width = 64 if n >= 64 else -(-n // 16) * 16
    to = case.tensor((-(-n // width), n, width), dtype, whole=True)
    damping = case.either(0.1, float("nan"), -1e30, float("inf"), 0.0)
    done = getattr(_core, f"damped_inverse_f{bits}")(
        shown(root), damping, shown(to), case.number(1, 2)
    )
    if done and not case.odd and case.finite:
        found = to.transpose(0, 1).reshape(n, -1)[:, :n]
        same(found @ (root + 0.1 * torch.eye(n, dtype=dtype)), torch.eye(n, dtype=dtype))


class Part(NamedTuple):
    """A head that is no joint one: by itself, or within one."""

    kind: int
    actions: int
    nvec: list[int]

    @property
    def outputs(self) -> int:
        return sum(self.nvec) or self.actions * (2 if self.kind in (STATE_STD, BETA) else 1)


def part_of(case: Case, kind: int) -> Part:
    actions = case.random.choice([1, 2, 6])
    if kind == CATEGORICAL:
        return Part(kind, 1, [case.random.choice([1, 2, 7])])
    several = kind == MULTI_CATEGORICAL
    return Part(kind, actions, [case.random.choice([1, 3]) for _ in range(several * actions)])


class Head:
    """A head as it crosses, and what its sizes are."""

    def __init__(self, case: Case) -> None:
        self.kind = case.random.randrange(7)
        joint = self.kind == JOINT
        kinds = [case.random.randrange(JOINT) for _ in range(case.random.choice([1, 2, 5]))]
        self.parts = [part_of(case, kind) for kind in (kinds if joint else [self.kind])]
        self.actions = sum(part.actions for part in self.parts)
        self.outputs = sum(part.outputs for part in self.parts)
        self.log_stds = sum(part.actions for part in self.parts if part.kind == GAUSSIAN)
        self.nvec = [size for part in self.parts for size in part.nvec]
        self.categories = bool(self.nvec) and not joint
        parts = [(part.kind, part.actions) for part in self.parts if joint]
        self.args = {
            "head": case.either(self.kind, -1, 7, 99),
            "action_dim": case.either(self.actions, 0, -1, self.actions + 1, 2**62),
            "nvec": case.either(self.nvec, [], [0], [-1], [2**62, 2**62], [*self.nvec, 1]),
            "parts": case.either(
                parts, [], parts[1:], [*parts, (JOINT, 1)], [(-1, 1)], [(0, 2**62), (0, 2**62)], 1
            ),
        }

    def log_std(self, case: Case, dtype: torch.dtype) -> Any:
        return case.arg((self.log_stds,), dtype) if self.log_stds else case.either(None, 1)

    @property
    def mask_width(self) -> int:
        return sum(self.nvec) if self.kind == JOINT else self.outputs

    def masks(self, case: Case, *rows: int) -> Any:
        """That all is allowed, now and then said at length."""
        if self.mask_width == 0 or not case.chance(0.3):
            return None
        mask = case.tensor((*rows, self.mask_width), torch.uint8, whole=True).fill_(1)
        case.hold(mask)
        return shown(mask)


def sampling(case: Case) -> None:
    dtype, bits = kind_of(case)
    head = Head(case)
    net = Net(case, dtype, head.outputs)
    steps, envs = case.random.choice([1, 3]), case.random.choice([1, 4])
    native = getattr(_core, f"SamplingF{bits}")(
        net.args,
        net.inputs,
        case.either(head.args, {}, 1),
        head.log_std(case, dtype),
        case.number(1, 2),
    )
    wide, real = case.chance(0.5), torch.float64
    raw = torch.float64 if wide else torch.float32
    action = torch.int64 if head.categories else dtype
    normal = head.kind in (GAUSSIAN, STATE_STD)
    scaled, given = case.chance(0.5), case.chance(0.5)

    def rows(kind: torch.dtype, width: int) -> Any:
        return case.arg((steps, envs, width), kind, whole=True)

    def vector(kind: torch.dtype, size: int) -> Any:
        return case.arg((size,), kind, whole=True)

    buffers = {
        "observations": case.arg((steps + 1, envs, net.inputs), raw, whole=True),
        "mean": vector(raw, net.inputs) if scaled else None,
        "scale": vector(raw, net.inputs) if scaled else None,
        "noise": rows(dtype if normal else real, head.actions),
        "masks": head.masks(case, steps, envs),
        "actions": rows(action, head.actions),
        "env_actions": rows(action, head.actions) if given else None,
        "low": vector(action, head.actions),
        "high": vector(action, head.actions),
        "log_prob": rows(real, 1),
        "wide": wide,
        "clip": case.either(10.0, float("nan"), -1.0),
    }
    case.bound(native, buffers)
    for t in range(steps):
        native.step(case.either(t, -1, steps, 2**40))


def value_fit(case: Case) -> None:
    dtype, bits = kind_of(case)
    net = Net(case, dtype, 1)

    def moments() -> list[Any]:
        found = []
        for layer, (_, _, code, _) in zip(net.layers, net.args, strict=True):
            both = [
                None if t is None else case.tensor(t.shape, dtype, written=True) for t in layer[:2]
            ]
            for tensor in both:
                if tensor is not None:
                    tensor.abs_()  # as squares are
            case.hold(both)
            found.append((*(None if t is None else shown(t) for t in both), code, 0.1))
        return found

    rows, batch = case.random.choice([1, 9, 40]), case.number(1, 16)
    native = getattr(_core, f"ValueFitF{bits}")(
        net.args, moments(), moments(), net.inputs, batch, case.number(1, 2)
    )
    before = [layer.weight.clone() for layer in net.layers]
    x, targets = case.tensor((rows, net.inputs), dtype), case.arg((rows,), dtype, whole=True)
    order = case.tensor((case.random.choice([0, rows, 2 * rows]),), torch.int64, whole=True)
    if order.numel():
        order.copy_(torch.randint(0, rows, order.shape))
        order.view(-1)[-1] = case.either(0, rows, -1, 2**62)
    case.bound(native)
    native.run(shown(x), targets, shown(order), 0.0, 0.9, 0.999, 1e-8, case.number(0, 9))
    native.write_back()
    if not case.odd and case.finite:
        for layer, kept in zip(net.layers, before, strict=True):
            assert torch.equal(layer.weight, kept), "a rate of 0 moved a parameter"


def policy_problem(case: Case) -> None:
    dtype, bits = kind_of(case)
    head = Head(case)
    net, rows = Net(case, dtype, head.outputs), case.random.choice([1, 7, 60])
    count, offsets = 0, []
    for layer in net.layers:
        places = []
        for tensor in (layer.weight, layer.bias):
            places.append(-1 if tensor is None else case.either(count, -1, -2, count + 1, 2**62))
            count += 0 if tensor is None else tensor.numel()
        offsets.append(tuple(places))
    log_std_offset = count if head.log_stds else -1
    count += head.log_stds
    actions = case.tensor((rows, head.actions), torch.int64 if head.categories else dtype)
    if head.kind in (BERNOULLI, JOINT):
        actions.zero_()
    if head.kind == BETA:
        actions.fill_(0.3)
    if head.categories and actions.numel():
        actions[-1, ..., -1] = case.either(0, -1, 99, 2**62)
    if head.kind == JOINT and actions.numel():
        actions[-1, ..., -1] = case.either(0, -1, 99, float("nan"), 1e30)

    def per_row(kind: torch.dtype, *more: int) -> Any:
        return case.arg((rows, *more), kind, whole=True) if case.chance(0.3) else None

    parameters = case.number(count, count)
    problem = getattr(_core, f"PolicyProblemF{bits}")(
        obs=case.arg((rows, net.inputs), dtype),
        layers=net.args,
        offsets=case.either(offsets, offsets[1:], []),
        parameters=parameters,
        **head.args,
        log_std=head.log_std(case, dtype),
        log_std_offset=case.either(log_std_offset, -5, count, 2**62),
        actions=case.either(shown(actions), None),
        advantages=case.arg((rows,), dtype, whole=True),
        old_log_prob=None,
        weights=None,
        action_mask=head.masks(case, rows),
        fisher_obs=case.arg((3, net.inputs), dtype) if case.chance(0.2) else None,
        fisher_weights=None,
        fisher_action_mask=None,
        kl_new_old=case.chance(0.5),
        cache_bytes=case.number(0, 1 << 20),
        threads=case.number(1, 3),
        bf16_parts=case.either(0, 1, 2, 3, -1),
    )
    case.bound(problem)
    use(case, problem, net, dtype, rows, parameters)


def use(case: Case, problem: Any, net: Net, dtype: torch.dtype, rows: int, parameters: int) -> None:
    """Every method of a problem, in any order."""
    if not 0 <= parameters <= LARGEST // 64:
        raise Refused

    def vector(*more: int) -> Tensor:
        return case.tensor((*more, parameters), dtype, whole=True)

    if not case.chance(case.oddness):
        problem.gradient(shown(vector()))
    else:
        case.odd = True
    u, v, product, other = vector(), vector(), vector(), vector()
    problem.fisher_product(shown(v), 0.0, shown(product))
    problem.fisher_product(shown(u), 0.0, shown(other))
    if not case.odd and case.finite and torch.isfinite(product).all():
        size = float(v.norm() * v.norm() + u.norm() * u.norm())
        scale = 1e-6 * size + float(u.norm() * product.norm() + v.norm() * other.norm())
        assert abs(float(u @ product - v @ other)) < 2e-3 * scale, (
            f"F is not symmetric: {float(u @ product)} {float(v @ other)} of {scale}"
        )
        assert float(v @ product) >= -2e-3 * scale, f"v'Fv = {float(v @ product)}"
    problem.evaluate(shown(vector()))
    kept = case.either(max(1, problem.kept_rows()), 0, -1, rows + 1, 2**40)

    def square(width: int) -> Any:
        return case.arg((width, width), dtype, whole=True)

    inputs = [(square(layer.weight.shape[1] + 1), True) for layer in net.layers]
    if problem.kept_rows():
        memory = case.workspace(problem.moment_bytes(kept))
        problem.input_moments(kept, case.either(inputs, inputs[1:], [None], []), memory)
    used = case.either(rows, 0, 1, rows + 1, -1)
    signs = case.tensor((used, len(net.layers[-1].weight)), dtype, whole=True)
    outputs = [square(layer.weight.shape[0]) for layer in net.layers]
    targets = [(*pair, output) for pair, output in zip(inputs, outputs, strict=True)]
    memory = case.workspace(problem.factor_bytes(used))
    problem.kronecker_factors(shown(signs), case.either(targets, targets[1:], []), memory)
    options = {
        "damping": case.either(0.1, -1.0, float("nan")),
        "cg_iters": case.number(0, 10),
        "cg_tol": case.either(1e-4, float("nan"), -1.0),
        "cg_progress_tol": 0.0,
    }
    if options["cg_iters"] <= 1000:
        problem.solve(shown(vector()), shown(vector()), shown(vector(4)), options, None)
    options |= {
        "step_size": case.either(0, 1, 2, -1),
        "constraint": case.either(0, 1, 2, 3, -1),
        "max_kl": case.either(0.01, float("nan"), -1.0, 0.0),
        "beta": 1.0,
        "lr": case.either(1.0, float("nan")),
        "backtrack_coeff": case.either(0.8, 0.0, 2.0, float("nan")),
        "accept_ratio": 0.0,
        "max_backtracks": case.either(10, 0, -1),
        "unit": 1.0,
    }
    theta, candidate = vector(), vector()
    if options["cg_iters"] <= 1000:
        ranks = rank_share(case, dtype, theta)
        spots = (shown(theta), shown(candidate), shown(vector(6)))
        found = problem.update(*spots, options, None, None, ranks)
        if not case.odd and found[0] == 0:
            assert found[3] <= 0.01 * (1 + 1e-6), "accepted beyond the bound"
            assert torch.isfinite(candidate).all()


def rank_share(case: Case, dtype: torch.dtype, theta: Tensor) -> Any:
    """None, or the share of the only rank: what its collectives leave as it is."""
    if case.chance(0.5):
        return case.either(None, 1, (), (1.0,), "ranks")
    count = theta.numel()
    fields = (
        case.either(1.0, float("nan"), 0.0, -1.0),
        case.either(1.0, float("nan"), 0.0, -1.0),
        True,
        case.arg((count + 1,), dtype, whole=True),
        case.arg((count + 2,), torch.float64, whole=True),
        case.arg((3,), torch.float64, whole=True),
        case.either(lambda which: None, None, lambda: None),
    )
    return case.either(fields, fields[1:])


TARGETS: list[Callable[[Case], None]] = [
    forward,
    activate,
    finite,
    blocks,
    inverse,
    sampling,
    value_fit,
    *(policy_problem,) * 3,
]


def run(number: int) -> str:
    """One case; what came of it."""
    target = TARGETS[number % len(TARGETS)]
    # A third of the cases is as it should be; the others are mostly so, or hardly.
    case = Case(number, (0.0, 0.01, 0.1)[number // len(TARGETS) % 3])
    try:
        target(case)
    except REFUSALS as error:
        if not case.odd and not isinstance(error, MemoryError):
            raise AssertionError(f"{target.__name__} refused what is right: {error}") from error
        return f"{target.__name__} refused"
    except Refused:
        return f"{target.__name__} too large"
    return f"{target.__name__} {'odd' if case.odd else 'right'}"


def main(first: int, count: int, mark: Path | None) -> int:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    outcomes: dict[str, int] = {}
    for number in range(first, first + count):
        if mark is not None:
            mark.write_text(str(number))
        try:
            outcome = run(number)
        except Exception as error:
            error.add_note(f"case {number}: python tests/native_fuzz.py {number} 1")
            raise
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    for outcome, times in sorted(outcomes.items()):
        print(f"{outcome}: {times}")
    return 0


if __name__ == "__main__":
    given = sys.argv[1:]
    sys.exit(main(int(given[0]), int(given[1]), Path(given[2]) if len(given) > 2 else None))
