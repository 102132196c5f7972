"""The native update against the reference backend in float64: its own paths and hazards.

The shared cases (every head, weights, masks, both KL directions) are in test_parity.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from patience import PATIENCE
from torch import Tensor

from trpo_fast import _native
from trpo_fast.networks.activations import ACTIVATIONS
from trpo_fast.networks.mlp import MlpPolicy
from trpo_fast.networks.network import Network
from trpo_fast.optimizer.batch_reader import BatchReader, fused_batch
from trpo_fast.recognition.recognizer import network_of
from trpo_fast.update.batch import Batch
from trpo_fast.update.options import Options
from trpo_fast.update.parameters import FlatParameters
from trpo_fast.update.trust_region import update

if _native.core is None:
    pytest.skip(f"no native module: {_native.load_error}", allow_module_level=True)

from trpo_fast.backends.cpu import problem as cpu
from trpo_fast.backends.reference.problem import ReferenceProblem

CPU = torch.device("cpu")


@dataclass
class Case:
    network: Network
    parameters: FlatParameters
    batch: Batch

    def native(self, options: Options | None = None) -> cpu.CpuProblem:
        # "auto" would round the larger cases' products where the CPU has an instruction for it.
        options = options or Options(precision="fp32")
        return cpu.CpuProblem(self.network, self.parameters, self.batch, options)


def case(
    rows: int = 200,
    obs_dim: int = 17,
    space: gym.spaces.Space[Any] | None = None,
    hidden: tuple[int, ...] = (64, 64),
    activation: str = "tanh",
    dtype: torch.dtype = torch.float32,
    frozen: tuple[str, ...] = (),
) -> Case:
    """A policy away from its initialisation, and a batch that it gave some updates ago."""
    torch.manual_seed(rows)
    space = space or gym.spaces.Box(-1, 1, (6,))
    policy = MlpPolicy(gym.spaces.Box(-1, 1, (obs_dim,)), space, hidden, activation).to(dtype)
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(0.3 * torch.randn_like(p) / p.shape[-1] ** 0.5)
    obs = torch.randn(rows, obs_dim, dtype=dtype)
    distribution = policy(obs)
    actions = distribution.sample()
    advantages = torch.randn(rows, dtype=dtype)
    log_prob = distribution.log_prob(actions).detach() + 0.05 * torch.randn(rows, dtype=dtype)
    network = network_of(policy)
    assert isinstance(network, Network), network
    named = {n: p for n, p in policy.named_parameters() if n not in frozen}
    parameters = FlatParameters(list(named.values()), list(named))
    reader = BatchReader(obs, None, dtype=dtype, device=CPU)
    batch = reader.batch(actions, advantages, log_prob, None)
    return Case(network, parameters, fused_batch(batch, network.head, obs_dim, dtype))


def double(c: Case) -> tuple[ReferenceProblem, Case]:
    """The same numbers in float64, for the reference to be exact on."""
    tensors = {id(t): t.detach().double() for t in c.network.tensors()}
    layers = tuple(
        type(layer)(
            tensors[id(layer.weight)],
            None if layer.bias is None else tensors[id(layer.bias)],
            layer.activation,
            layer.parameter,
        )
        for layer in c.network.layers
    )
    log_std = None if c.network.log_std is None else tensors[id(c.network.log_std)]
    network = Network(layers, c.network.head, log_std)
    parameters = FlatParameters([tensors[id(t)] for t in c.parameters.tensors], c.parameters.names)
    b = c.batch
    actions = b.actions
    if actions is not None and actions.is_floating_point():
        actions = actions.double()
    assert b.advantages is not None
    assert b.old_log_prob is not None
    batch = Batch(b.rows, b.obs.double(), actions, b.advantages.double(), b.old_log_prob.double())
    return ReferenceProblem(network, parameters, batch, Options()), Case(network, parameters, batch)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


def assert_matches_reference(c: Case, tolerance: float = 1e-5) -> None:
    """Gradient, product and a candidate's figures against the reference in float64."""
    native = c.native()
    reference, _ = double(c)
    loss, g = native.gradient()
    exact_loss, exact_g = reference.gradient()
    assert loss == pytest.approx(exact_loss, rel=tolerance, abs=tolerance)
    assert relative(g, exact_g) < tolerance
    v = torch.randn(len(g), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert relative(native.fisher_product(v.to(g.dtype)), reference.fisher_product(v)) < tolerance
    theta = c.parameters.read() + 0.01 * g / g.norm()
    candidate, kl = native.evaluate(theta)
    exact_candidate, exact_kl = reference.evaluate(theta.double())
    assert candidate == pytest.approx(exact_candidate, rel=10 * tolerance, abs=tolerance)
    assert kl == pytest.approx(exact_kl, rel=100 * tolerance, abs=1e-10)


@pytest.mark.parametrize(
    ("obs_dim", "hidden", "actions"),
    [
        (1, (1,), 1),
        (3, (), 2),
        (17, (64, 64), 6),
        (65, (17, 65), 3),
        (348, (65, 348, 3), 17),
        (5, (130, 16), 70),
        (11, (640,), 3),
    ],
)
@pytest.mark.parametrize("rows", [1, 97, 600])
def test_any_width_and_depth(
    rows: int, obs_dim: int, hidden: tuple[int, ...], actions: int
) -> None:
    assert_matches_reference(case(rows, obs_dim, gym.spaces.Box(-1, 1, (actions,)), hidden))


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_every_activation(activation: str) -> None:
    assert_matches_reference(case(300, 9, None, (33, 20), activation))


@pytest.mark.parametrize("activation", ["tanh", "relu", "gelu"])
def test_float64_is_correct_to_rounding(activation: str) -> None:
    c = case(300, 9, None, (33, 20), activation, torch.float64)
    assert_matches_reference(c, 1e-11)


def test_solve_reaches_the_damped_solution() -> None:
    c = case(400, 5, None, (12,), dtype=torch.float64)
    native = c.native()
    _, g = native.gradient()
    columns = [native.fisher_product(e) for e in torch.eye(len(g), dtype=torch.float64)]
    fisher = torch.stack(columns)
    torch.testing.assert_close(fisher, fisher.T, rtol=0, atol=1e-12)
    damped = fisher + 0.1 * torch.eye(len(g), dtype=torch.float64)
    exact = torch.linalg.solve(damped, g)
    solution = native.solve(g, Options(cg_iters=200, cg_tol=1e-12))
    assert solution.status is None
    assert solution.residual <= 1e-12
    assert relative(solution.x, exact) < 1e-10
    assert solution.quadratic == pytest.approx(float(exact @ damped @ exact), rel=1e-9)


def test_a_relative_residual_stops_the_solve_at_any_scale() -> None:
    native = case(400, 5).native()
    _, g = native.gradient()
    counts = {native.solve(g * s, Options(cg_iters=50, cg_tol=0.1)).cg_iters for s in (1, 2**20)}
    assert len(counts) == 1
    assert 0 < counts.pop() < 50


@pytest.mark.parametrize("activation", ["tanh", "silu"])
def test_recomputed_activations_change_no_bit(
    activation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    c = case(2000, 7, gym.spaces.MultiDiscrete([3, 4]), (40, 24), activation)

    def results() -> list[Tensor]:
        native = c.native(Options(fisher_fraction=0.5))
        _, g = native.gradient()
        return [g, native.fisher_product(g), native.solve(g, Options()).x]

    kept = results()
    for size in (0, 150_000):
        monkeypatch.setattr(cpu, "CACHE_BYTES", size)
        for a, b in zip(results(), kept, strict=True):
            assert torch.equal(a, b)


def test_bits_do_not_depend_on_the_number_of_threads() -> None:
    c = case(3000)
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            native = c.native()
            loss, g = native.gradient()
            x = native.solve(g, Options()).x
            found.append((loss, g, x, native.evaluate(c.parameters.read() + 1e-3 * x)))
    finally:
        torch.set_num_threads(before)
    for loss, g, x, candidate in found[1:]:
        assert loss == found[0][0]
        assert torch.equal(g, found[0][1])
        assert torch.equal(x, found[0][2])
        assert candidate == found[0][3]


def test_parallel_callers_get_the_serial_result() -> None:
    cases = [case(500 + i) for i in range(8)]

    def solve(c: Case) -> Tensor:
        native = c.native()
        _, g = native.gradient()
        return native.solve(g, Options()).x

    serial = [solve(c) for c in cases]
    found: dict[int, list[Tensor]] = {i: [] for i in range(8)}

    def work(i: int) -> None:
        for _ in range(5):
            found[i].append(solve(cases[i]))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(8):
        assert len(found[i]) == 5
        assert all(torch.equal(x, serial[i]) for x in found[i])


def test_frozen_parameters_get_no_step_and_shift_no_offsets() -> None:
    names = [
        n
        for n, _ in MlpPolicy(
            gym.spaces.Box(-1, 1, (9,)), gym.spaces.Box(-1, 1, (6,)), (20, 20)
        ).named_parameters()
    ]
    for frozen in ((names[0],), (names[1], names[2]), (names[-1],)):
        assert_matches_reference(case(200, 9, None, (20, 20), frozen=frozen))


def test_parameters_of_any_strides_are_read_where_they_live() -> None:
    c = case(200, 9, None, (20, 20))
    _, g = c.native().gradient()
    for t in c.parameters.tensors:
        if t.ndim == 2:
            t.data = t.data.t().contiguous().t()
    _, strided = c.native().gradient()
    assert torch.equal(g, strided)


def test_category_out_of_range_is_an_index_error() -> None:
    c = case(20, 4, gym.spaces.Discrete(3))
    assert c.batch.actions is not None
    c.batch.actions[7] = 3
    with pytest.raises(IndexError, match=r"actions\[7, 0\] is 3"):
        c.native()


def run_beside(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program that may import this file."""
    here = Path(__file__).parent
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (here, here.parents[1])))},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )


def test_the_gil_is_released_and_ctrl_c_is_answered() -> None:
    """The solve would go on for hours; a thread that never got the GIL could not end it."""
    code = """
import os, signal, sys, threading, time
from test_cpu_problem import Options, case
native = case(20000, 17).native()
_, g = native.gradient()
main = threading.main_thread().ident
def watch():
    place, ticks = None, 0
    while ticks < 20:  # with the main thread at one and the same instruction of solve
        time.sleep(0.01)
        frame = sys._current_frames()[main]
        before, place = place, (frame.f_code.co_name, frame.f_lasti)
        ticks = ticks + 1 if place == before and place[0] == "solve" else 0
    os.kill(os.getpid(), signal.SIGINT)
try:
    threading.Thread(target=watch).start()
    native.solve(g, Options(cg_iters=10**7, cg_tol=0.0, damping=1e-9))
except KeyboardInterrupt:
    print("interrupted")
"""
    done = run_beside(code)
    assert done.stdout.strip() == "interrupted", done.stderr


def test_exit_does_not_abort_on_a_daemon_thread_in_native_code() -> None:
    code = """
import sys, threading, time
from test_cpu_problem import Options, case, torch
from trpo_fast.backends.cpu.arguments import tensor_arg
native = case(2000, 17).native()
_, g = native.gradient()
tensors = g, torch.empty_like(g)
v, out = (tensor_arg(t, torch.float32) for t in tensors)
started = threading.Event()
# Both hold what they use: the module's names go while they run.
def many(native, tensors, v=v, out=out, product=native._native.fisher_product, started=started):
    while True:  # nothing of torch's, whose own functions abort here
        started.set()
        product(v, 0.0, out)
def one(native, tensors):
    started.set()
    native.solve(g, Options(cg_iters=1000000, cg_tol=0.0, damping=1e-9))
run = {"many": many, "one": one}[sys.argv[1]]
threading.Thread(target=run, args=(native, tensors), daemon=True).start()
started.wait()
time.sleep(0.2)
print("main is done")
"""
    for calls in ("many", "one"):
        done = run_beside(code, calls)
        assert (done.returncode, done.stdout) == (0, "main is done\n"), done.stderr


def test_lazily_negated_observations_keep_their_sign() -> None:
    c = case(200, 4)
    mirrored = torch.complex(torch.zeros_like(c.batch.obs), -c.batch.obs).conj().imag
    assert mirrored.is_neg()
    negated = Case(c.network, c.parameters, c.batch._replace(obs=mirrored))
    assert torch.equal(negated.native().gradient()[1], c.native().gradient()[1])


def test_observations_without_columns() -> None:
    c = case(200, 3, None, (4,))
    first = c.network.layers[0]
    first.weight.data = first.weight.data[:, :0]
    parameters = FlatParameters(c.parameters.tensors, c.parameters.names)
    assert_matches_reference(Case(c.network, parameters, c.batch._replace(obs=torch.zeros(200, 0))))


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux's /proc")
def test_workers_block_signals(run_python: Any) -> None:
    code = """
import os, pathlib, signal, torch
from trpo_fast.backends.forward import mlp_forward
from trpo_fast.networks.network import Layer
torch.set_num_threads(3)
layer = Layer(torch.zeros(64, 64), None, "identity")
x = torch.zeros(5000, 64)
before = set(os.listdir("/proc/self/task"))
mlp_forward([layer], x)
new = set(os.listdir("/proc/self/task")) - before
interrupt = 1 << (signal.SIGINT - 1)
for task in new:
    status = pathlib.Path(f"/proc/self/task/{task}/status").read_text()
    blocked = int(status.split("SigBlk:")[1].split()[0], 16)
    assert blocked & interrupt, status
assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
print(len(new))
"""
    done = run_python(code)
    assert done.stdout.strip() == "2", done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_computes_the_same() -> None:
    c = case(3000)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        _, g = c.native().gradient()
        child = os.fork()
        if child == 0:
            same = torch.equal(c.native().gradient()[1], g)
            os._exit(0 if same else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        torch.set_num_threads(before)


def test_nothing_is_served_before_a_workspace_is_bound() -> None:
    native = case(20).native()
    assert native._native.workspace_bytes() > 0
    with pytest.raises(ValueError, match="size 3 in dimension 0, expected"):
        native.fisher_product(torch.zeros(3))


class InPython:
    """A native problem without its whole-update call: ``trust_region.update`` does the steps."""

    def __init__(self, native: cpu.CpuProblem) -> None:
        self.backend, self.parameters = native.backend, native.parameters
        self.gradient, self.solve = native.gradient, native.solve
        self.fisher_product, self.evaluate = native.fisher_product, native.evaluate


@pytest.mark.parametrize(
    "options",
    [
        Options(),
        Options(max_kl=1.0, damping=1e-3),
        Options(step_size="damped"),
        Options(step_size="boundary", damping=1.0),
        Options(step_size="boundary", max_kl=3.0, lr=0.5),
        Options(constraint="penalty", beta=0.5),
        Options(constraint="none", lr=0.01),
        Options(lr=0.0),
        Options(accept_ratio=0.99, max_backtracks=1),
        Options(kl_direction="new_old", fisher_fraction=0.3, cg_iters=3),
    ],
)
@pytest.mark.parametrize("unit", [1.0, 2.0**40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_native_update_takes_the_steps_of_the_python_one(
    options: Options, unit: float, dtype: torch.dtype
) -> None:
    c = case(300, 9, None, (33, 20), dtype=dtype)
    start = c.parameters.read()
    native = update(c.native(options), options, unit=unit)
    ended = c.parameters.read()
    c.parameters.write(start)
    stepwise = update(InPython(c.native(options)), options, unit=unit)
    assert native.status is stepwise.status
    assert native.backtracks == stepwise.backtracks
    assert native.cg_iters == stepwise.cg_iters
    rtol, atol = (2e-3, 1e-5) if dtype is torch.float32 else (1e-9, 1e-12)
    torch.testing.assert_close(ended, c.parameters.read(), rtol=rtol, atol=atol)
    assert torch.equal(ended, start) == (not native.accepted)
    for name in (
        "kl",
        "loss_before",
        "loss_after",
        "expected_improvement",
        "step_size",
        "gradient_norm",
        "actual_improvement",
    ):
        value, expected = getattr(native, name), getattr(stepwise, name)
        assert value == pytest.approx(expected, rel=10 * rtol, abs=atol), name
    # A whole update leaves out what only the last iterate's residual needs.
    c.parameters.write(start)
    at_cap = native.cg_iters == options.cg_iters
    shorter = replace(options, cg_iters=options.cg_iters - 1) if at_cap else options
    _, g = c.native(options).gradient()
    residual = c.native(options).solve(g / g.norm(), shorter).residual
    assert native.cg_residual == pytest.approx(residual, rel=10 * rtol, abs=atol)
