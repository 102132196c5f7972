"""The CUDA backend beyond parity: whole updates, plans, errors; emulated without a device."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from cuda_cases import assert_same_bits_in_every_order, assert_same_update, run
from cuda_device import needs_device
from emulated_cuda import KIB, EmulatedProblem, emulated, needs_emulation
from gymnasium import spaces
from torch import nn
from update_cases import BY_NAME, CASES, Case, bits, flat_of, make_data, make_policy, recognised

from trpo_fast import MlpPolicy, TRPOOptimizer, _native
from trpo_fast.backends.cuda import problem as cuda
from trpo_fast.backends.reference.problem import ReferenceProblem
from trpo_fast.backends.registry import ANALYTIC
from trpo_fast.networks.activations import ACTIVATIONS
from trpo_fast.networks.network import Network
from trpo_fast.recognition.recognizer import network_of
from trpo_fast.update.options import Options
from trpo_fast.update.result import Status
from trpo_fast.update.trust_region import update

# (multiprocessors, shared memory): small panels, weights in shared memory or not; large panels.
MACHINES = {"resident": (3, 160 * KIB), "streamed": (2, 105 * KIB), "large": (1, 227 * KIB)}


@needs_emulation
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("step_size", ["damped", "boundary"])
def test_an_update_equals_the_references(case: Case, weighted: bool, step_size: str) -> None:
    options = Options(cg_iters=4, step_size=step_size)
    result = assert_same_update(case, options, weighted=weighted)
    assert result.accepted
    assert result.backend == "cuda"


@needs_emulation
@pytest.mark.parametrize(
    "changes",
    [
        {"constraint": "penalty", "beta": 3.0},
        {"constraint": "none", "lr": 0.1},
        {"kl_direction": "new_old"},
        {"fisher_fraction": 0.4},
        {"accept_ratio": 0.9, "max_kl": 0.3},
        {"lr": 0.0},
        {"lr": 0.5, "step_size": "boundary"},
        {"max_backtracks": 0, "max_kl": 5.0},
        {"accept_ratio": 0.9, "step_size": "boundary"},
        {"damping": 1.0, "step_size": "boundary"},
        {"max_kl": 3.0, "step_size": "boundary"},
    ],
    ids=lambda changes: "-".join(f"{name}{value}" for name, value in changes.items()),
)
def test_every_option_acts_as_in_the_reference(changes: dict[str, Any]) -> None:
    for name in ("gaussian", "categorical_masked"):
        assert_same_update(BY_NAME[name], Options(cg_iters=4, **changes))


@needs_emulation
@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(
    ("hidden", "activation", "rows", "obs_width"),
    [
        ((), "tanh", 9, 3),
        ((128, 127), "relu", 70, 150),
        ((150, 256), "silu", 33, 20),
        ((64, 64), "tanh", 150, 17),
        ((3, 4, 5, 6), "gelu", 65, 4),
        ((33,), "softplus", 1, 131),
    ],
)
def test_every_plan_serves_every_shape(
    machine: str, hidden: tuple[int, ...], activation: str, rows: int, obs_width: int
) -> None:
    emulated.set_device(*MACHINES[machine])
    assert_same_update(
        BY_NAME["gaussian"],
        Options(cg_iters=3),
        hidden,
        activation=activation,
        rows=rows,
        obs_width=obs_width,
    )


@needs_emulation
@pytest.mark.parametrize("machine", MACHINES)
def test_the_bits_do_not_depend_on_the_order_of_threads(machine: str) -> None:
    emulated.set_device(*MACHINES[machine])
    assert_same_bits_in_every_order(EmulatedProblem, (64, 64), 150, Options())


@needs_emulation
def test_parameters_outside_the_network_are_solved_for_and_left_alone() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.value = nn.Linear(5, 1, dtype=torch.float64)
            self.inner = make_policy(BY_NAME["gaussian"])

    module = Both()
    data = make_data(module.inner, BY_NAME["gaussian"])
    network, batch = recognised(module.inner, data)
    flat = flat_of(module)
    options = Options(cg_iters=200, cg_tol=0.0)
    ours = EmulatedProblem(network, flat, batch, options)
    reference = ReferenceProblem(network, flat_of(module), batch, options)
    g = torch.randn(sum(flat.sizes), generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(ours.fisher_product(g), reference.fisher_product(g))
    expected = reference.solve(g, options)
    found = ours.solve(g, options)
    torch.testing.assert_close(found.x, expected.x, rtol=1e-6, atol=1e-8)
    assert found.quadratic == pytest.approx(expected.quadratic)
    before = bits(module.value)
    assert update(ours, Options(cg_iters=4)).accepted
    assert all(torch.equal(a, b) for a, b in zip(bits(module.value), before, strict=True))


@needs_emulation
def test_a_zero_gradient_and_non_finite_numbers_end_an_update() -> None:
    case = BY_NAME["gaussian"]
    policy = make_policy(case)
    data = make_data(policy, case)
    nothing = dict(data, advantages=torch.zeros_like(data["advantages"]))
    assert run(EmulatedProblem, policy, nothing, Options())[0].status is Status.zero_gradient
    before = flat_of(policy).read()
    far = dict(data, old_log_prob=data["old_log_prob"] - 1e6)  # the ratio overflows
    result, theta = run(EmulatedProblem, policy, far, Options())
    assert result.status is Status.non_finite
    assert torch.equal(theta, before)


@needs_emulation
@pytest.mark.parametrize("log_std", [10.0, 40.0, 43.0])
@pytest.mark.parametrize("damping", [0.0, 1e39])
def test_curvature_near_0_or_damping_beyond_the_dtype_is_a_status(
    damping: float, log_std: float
) -> None:
    policy = make_policy(BY_NAME["gaussian"], dtype=torch.float32)
    data = make_data(policy, BY_NAME["gaussian"])
    assert policy.log_std is not None
    policy.log_std.requires_grad_(False).fill_(log_std)
    del data["old_log_prob"]
    before = flat_of(policy).read()
    result, theta = run(EmulatedProblem, policy, data, Options(damping=damping))
    assert result.gradient_norm > 0
    assert result.accepted or torch.equal(theta, before)
    assert torch.isfinite(theta).all()
    assert not (result.accepted and damping == 1e39)


@needs_emulation
def test_a_refused_launch_raises_with_advice_and_leaves_the_parameters() -> None:
    case = BY_NAME["gaussian"]
    policy = make_policy(case)
    before = flat_of(policy).read()
    data = make_data(policy, case)
    network, batch = recognised(policy, data)
    problem = EmulatedProblem(network, flat_of(policy), batch, Options())
    emulated.fail_next_launch(2)
    with pytest.raises(RuntimeError, match=r"launching .* out of memory.* doctor"):
        update(problem, Options())
    assert torch.equal(flat_of(policy).read(), before)
    assert update(problem, Options()).accepted


@needs_emulation
def test_a_plan_uses_the_device_and_says_what_does_not_fit() -> None:
    tanh = list(ACTIVATIONS).index("tanh")
    layers = [(17, 64, tanh, 0.0), (64, 64, tanh, 0.0), (64, 6, 0, 0.0)]

    def plan(rows: int, shared: int, processors: int = 132, element: int = 4) -> dict[str, int]:
        return emulated.plan(layers, 6, 0, rows, 6, element, processors, shared)

    small, large = plan(2048, 227 * KIB), plan(100_000, 227 * KIB)
    assert (small["panel_rows"], small["blocks"]) == (16, 128)
    assert (large["panel_rows"], large["blocks"]) == (64, 132)
    assert small["weights_resident"]
    assert large["weights_resident"]
    assert not plan(100_000, 64 * KIB)["weights_resident"]  # the least of any served device
    assert plan(1, 227 * KIB)["blocks"] == 1
    assert plan(100_000, 227 * KIB, element=8)["panel_rows"] == 16
    for rows in (1, 15, 16, 17, 8447, 8448, 8449):
        for shared in (64 * KIB, 99 * KIB, 163 * KIB, 227 * KIB):
            found = plan(rows, shared)
            assert found["shared_bytes"] <= shared
            assert 1 <= found["blocks"] <= min(132, rows)
    with pytest.raises(ValueError, match="bytes of shared memory"):
        plan(100, 10 * KIB)
    with pytest.raises(ValueError, match="33 layers"):
        emulated.plan([(4, 4, 1, 0.0)] * 33, 0, 0, 10, 4, 4, 132, 227 * KIB)


@needs_emulation
def test_the_constants_agree_with_the_native_side() -> None:
    policy = make_policy(BY_NAME["categorical"], (cuda.PANEL_WIDTH,) * (cuda.MAX_LAYERS - 1))
    data = make_data(policy, BY_NAME["categorical"])
    network, batch = recognised(policy, data)
    assert cuda.shape_refusal(network) is None
    assert not EmulatedProblem(network, flat_of(policy), batch, Options()).tiled(Options())

    class Panels(EmulatedProblem):
        def tiled(self, options: Options) -> bool:
            return False

    wide = make_policy(BY_NAME["categorical"], (cuda.PANEL_WIDTH + 1,))
    assert EmulatedProblem(*parts(wide, BY_NAME["categorical"]), Options()).tiled(Options())
    with pytest.raises(ValueError, match="too large"):
        Panels(*parts(wide, BY_NAME["categorical"]), Options())


def parts(policy: MlpPolicy, case: Case) -> tuple[Any, Any, Any]:
    network, batch = recognised(policy, make_data(policy, case))
    return network, flat_of(policy), batch


def refused(hidden: tuple[int, ...], space: spaces.Space | None = None) -> str | None:
    case = BY_NAME["categorical"]
    policy = make_policy(case if space is None else replace(case, action_space=space), hidden)
    network = network_of(policy)
    assert isinstance(network, Network)
    return cuda.shape_refusal(network)


def test_shapes_that_the_kernel_does_not_serve_are_refused_in_words() -> None:
    assert refused((64,)) is None
    assert refused((1025,)) is None
    assert "33 layers" in str(refused((4,) * 32))
    assert "65 parts" in str(refused((4,), spaces.MultiDiscrete([1] * 65)))


def test_a_cpu_policy_is_refused_in_words_and_not_told_about_cuda_otherwise() -> None:
    case = BY_NAME["gaussian"]
    policy = make_policy(case)
    data = make_data(policy, case)
    with pytest.raises(ValueError, match=r"backend='cuda' cannot serve: .* on cpu"):
        TRPOOptimizer(policy, backend="cuda").step(**data)
    assert "cuda" in ANALYTIC
    optimizer = TRPOOptimizer(policy)
    optimizer.step(**data)  # warnings are errors here
    assert optimizer.last_result is not None
    assert optimizer.last_result.backend != "cuda"


def test_the_native_module_is_not_imported_without_need() -> None:
    code = (
        "import sys, torch, trpo_fast; from torch import nn; "
        "from gymnasium import spaces; "
        "p = trpo_fast.MlpPolicy(spaces.Box(-1, 1, (3,)), spaces.Discrete(2)); "
        "o = torch.randn(8, 3); a = p(o).sample(); "
        "trpo_fast.TRPOOptimizer(p).step(obs=o, actions=a, advantages=torch.randn(8)); "
        "sys.exit('trpo_fast._core_cuda' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_module_loads_without_a_driver_and_gives_facts() -> None:
    core, error = _native.cuda()
    if core is None:
        assert error is not None
        assert "nvcc" in error
        pytest.skip("the CUDA kernels are not built here: " + error)
    facts = core.facts()
    assert facts["runtime"] >= 12000
    assert facts["devices"] >= 0
    assert (facts["devices"] > 0) or facts["error"]


@needs_emulation
def test_a_device_that_cannot_run_the_kernels_is_refused_until_it_can(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_native, "cuda", lambda: (emulated, None))
    monkeypatch.setattr(_native, "_served", set())
    emulated.fail_next_launch(1)
    assert _native.cuda_on(0) == (None, "its kernels do not load there: invalid argument")
    assert _native.cuda_on(0) == (emulated, None)
    emulated.fail_next_launch(1)
    assert _native.cuda_on(0) == (emulated, None)  # not asked again
    assert emulated.device_error(0) == "its kernels do not load there: invalid argument"


@needs_device
def test_the_optimizer_steps_a_policy_on_the_device() -> None:
    case = BY_NAME["gaussian"]
    policy = make_policy(case, (64, 64), dtype=torch.float32)
    data = make_data(policy, case, 500)
    on_cpu, expected = run(ReferenceProblem, policy, data, Options(cg_iters=4))
    device = make_policy(case, (64, 64), dtype=torch.float32).cuda()
    optimizer = TRPOOptimizer(device, cg_iters=4)
    stream = torch.cuda.Stream()
    moved = {key: value.cuda() for key, value in data.items()}
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        optimizer.step(**moved)
    stream.synchronize()
    result = optimizer.last_result
    assert result is not None
    assert result.backend == "cuda"
    assert result.accepted == on_cpu.accepted
    torch.testing.assert_close(flat_of(device).read().cpu(), expected, rtol=1e-3, atol=1e-4)


@needs_device
def test_runs_repeat_bit_for_bit_and_survive_running_out_of_memory() -> None:
    case = BY_NAME["gaussian"]
    found = []
    for _ in range(3):
        policy = make_policy(case, (64, 64), dtype=torch.float32)
        moved = {key: value.cuda() for key, value in make_data(policy, case, 9000).items()}
        policy = policy.cuda()
        TRPOOptimizer(policy).step(**moved)
        found.append(flat_of(policy).read().cpu().numpy().tobytes())
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(1 << 46, dtype=torch.uint8, device="cuda")
    assert found[0] == found[1] == found[2]
