"""Preconditioners: the same solution as the dense oracle's, in fewer iterations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from update_cases import (
    BY_NAME,
    CASES,
    Case,
    dense_fisher,
    flat_of,
    head_fisher,
    make_data,
    make_policy,
    recognised,
)

from trpo_fast import MlpPolicy
from trpo_fast.backends.registry import ANALYTIC
from trpo_fast.networks.network import forward
from trpo_fast.preconditioning import cost as preconditioner_cost
from trpo_fast.preconditioning import curvature, kfac, preconditioner
from trpo_fast.preconditioning.curvature import Curvature, precondition
from trpo_fast.preconditioning.preconditioner import Preconditioner
from trpo_fast.update.options import Options
from trpo_fast.update.trust_region import Problem

KINDS = ["diagonal", "kfac"]
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
every_kind = pytest.mark.parametrize("kind", KINDS)
BACKENDS = [name for name, backend in ANALYTIC.items() if backend.device != "cuda"]
every_backend = pytest.mark.parametrize("backend", BACKENDS)


def made(
    policy: MlpPolicy,
    data: dict[str, Any],
    kind: str,
    damping: float = 0.1,
    backend: str = "reference",
) -> Preconditioner:
    network, batch = recognised(policy, data)
    problem = ANALYTIC[backend].problem(network, flat_of(policy), batch, Options())
    found = Curvature().preconditioner(kind, network, problem, batch, damping)
    assert found is not None
    return found


def dense(found: Preconditioner) -> Tensor:
    """``M^-1`` ``[P, P]``."""
    size = len(found.diagonal)
    return torch.stack([found.apply(e) for e in torch.eye(size, dtype=torch.float64)], 1)


def solved(
    backend: str, policy: MlpPolicy, data: dict[str, Any], g: Tensor, **keywords: Any
) -> Any:
    network, batch = recognised(policy, data)
    options = Options(**{"cg_progress_tol": 0.0, **keywords})
    problem: Problem = ANALYTIC[backend].problem(network, flat_of(policy), batch, options)
    precondition(problem, Curvature(), network, batch, options)
    return problem.solve(g, options)


def statistics(
    backend: str, policy: MlpPolicy, data: dict[str, Any], **keywords: Any
) -> tuple[preconditioner.KroneckerStatistics, dict[int, preconditioner.Place]]:
    """What K-FAC's factors are asked of, and the layers."""
    network, batch = recognised(policy, data)
    options = Options(**{"precision": "fp32", **keywords})
    problem = ANALYTIC[backend].problem(network, flat_of(policy), batch, options)
    places = preconditioner.places_of(network, problem.parameters)
    return curvature.statistics_of(problem, network, batch, options.fisher_fraction), places


def uneven(name: str, hidden: tuple[int, ...]) -> tuple[MlpPolicy, dict[str, Any]]:
    """A problem whose observations have very different sizes."""
    case = BY_NAME[name]
    policy = make_policy(case, hidden=hidden)
    data = make_data(policy, case, rows=400)
    data["obs"] = data["obs"] * torch.tensor([3.0, 1.0, 1.0, 0.3, 0.1], dtype=torch.float64)
    return policy, data


def gradient(size: int, dtype: torch.dtype = torch.float64) -> Tensor:
    g = torch.randn(size, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return (g / g.norm()).to(dtype)


def orthogonal_signs(width: int) -> Tensor:
    """Some rows s of signs whose mean s s' is the identity, as that of all rows is (Sylvester)."""
    signs = torch.ones(1, 1, dtype=torch.float64)
    while len(signs) < width:
        signs = torch.cat([torch.cat([signs, signs], 1), torch.cat([signs, -signs], 1)])
    return signs[:, :width]


@every_case
def test_the_draw_is_a_square_root_of_the_metric(case: Case) -> None:
    policy = make_policy(case)
    data = make_data(policy, case, rows=3)
    network, batch = recognised(policy, data)
    outputs = forward(network.layers, batch.obs).detach()
    total = torch.zeros(3, outputs.shape[1], outputs.shape[1], dtype=torch.float64)
    patterns = orthogonal_signs(outputs.shape[1])
    for pattern in patterns:
        signs = pattern.expand_as(outputs)
        e = network.head.metric_root(network.at(outputs, batch.action_mask), signs).detach()
        total += e.unsqueeze(2) * e.unsqueeze(1) / len(patterns)
    assert torch.allclose(total, head_fisher(policy, outputs, batch.action_mask), atol=1e-12)


@every_case
@every_kind
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_it_is_symmetric_and_positive_definite(case: Case, kind: str, weighted: bool) -> None:
    policy = make_policy(case)
    M = dense(made(policy, make_data(policy, case, weighted=weighted), kind))
    assert torch.allclose(M, M.T, atol=1e-9)
    assert float(torch.linalg.eigvalsh((M + M.T) / 2).min()) > 0


NETWORKS = [
    ((), "tanh", 9, 3),
    ((1,), "relu", 1, 1),
    ((9,), "leaky_relu", 33, 6),
    ((48, 16, 8), "elu", 97, 15),
    ((16, 64), "silu", 200, 16),
    ((65, 33), "gelu", 700, 17),
    ((70, 130), "gelu_tanh", 65, 64),
    ((6,), "softplus", 20, 65),
    ((64, 64), "tanh", 600, 100),
]


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "reference"])
@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize(("hidden", "activation", "rows", "obs_width"), NETWORKS)
def test_every_backends_factors_are_the_references(
    backend: str,
    case: Case,
    dtype: torch.dtype,
    weighted: bool,
    hidden: tuple[int, ...],
    activation: str,
    rows: int,
    obs_width: int,
) -> None:
    policy = make_policy(case, hidden, activation, dtype, obs_width=obs_width)
    exact = make_policy(case, hidden, activation, torch.float64, obs_width=obs_width)
    exact.load_state_dict(policy.state_dict())
    data = make_data(exact, case, rows, weighted=weighted and rows > 1)
    cast = {k: v.to(dtype) if v.is_floating_point() else v for k, v in data.items()}
    sources = [
        statistics(name, module, inputs)
        for name, module, inputs in ((backend, policy, cast), ("reference", exact, data))
    ]
    for moments in ("input_moments", "output_moments"):
        with torch.no_grad():
            found, expected = (getattr(source, moments)(places, 999) for source, places in sources)
        assert len(found) == len(expected) == len(hidden) + 1
        for factor, exactly in zip(found, expected, strict=True):
            bound = 2e-5 if dtype is torch.float32 else 1e-12
            assert float((factor.double() - exactly).norm()) <= bound * float(exactly.norm())
            assert torch.equal(factor, factor.T)


@every_backend
@pytest.mark.parametrize(("precision", "bound"), [("bf16", 2**-7), ("bf16x3", 2**-7)])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_input_moments_of_rounded_activations_are_near(
    backend: str, precision: str, bound: float, weighted: bool
) -> None:
    case = BY_NAME["gaussian"]
    policy = make_policy(case, (70, 20), dtype=torch.float32, obs_width=17)
    data = make_data(policy, case, 301, weighted=weighted)
    exact = make_policy(case, (70, 20), obs_width=17)
    exact.load_state_dict(policy.state_dict())
    wide = {k: v.double() if v.is_floating_point() else v for k, v in data.items()}
    source, places = statistics(backend, policy, data, precision=precision, fisher_fraction=0.4)
    oracle, _ = statistics("reference", exact, wide, fisher_fraction=0.4)
    with torch.no_grad():
        found, expected = source.input_moments(places, 64), oracle.input_moments(places, 64)
    for A, exactly in zip(found, expected, strict=True):
        assert float((A.double() - exactly).norm()) <= bound * float(exactly.norm())


@every_backend
@pytest.mark.parametrize("size", [1, 16, 17, 64, 65, 130, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
def test_damped_inverses_are_the_dense_ones(backend: str, size: int, dtype: torch.dtype) -> None:
    case = BY_NAME["gaussian"]
    policy = make_policy(case, dtype=dtype)
    source, _ = statistics(backend, policy, make_data(policy, case))
    rows = torch.randn(size // 2 + 1, size, generator=torch.Generator().manual_seed(size)).double()
    factor = (rows.T @ rows / len(rows)).to(dtype)
    expected = torch.linalg.inv(factor.double() + 0.1 * torch.eye(size, dtype=torch.float64))
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(kfac.plain(source.inverse(factor, 0.1)))
    finally:
        torch.set_num_threads(before)
    bound = 1e-5 if dtype is torch.float32 else 1e-13
    for inverse in found:
        assert float((inverse.double() - expected).norm()) <= bound * float(expected.norm())
        assert torch.allclose(inverse, inverse.T, rtol=0, atol=bound * float(expected.norm()))
    with pytest.raises(torch.linalg.LinAlgError):
        source.inverse(factor, -2 * float(factor.trace()))


@pytest.mark.parametrize("hidden", [(), (4,), (4, 3)])
def test_one_row_and_one_output_make_exact_blocks(hidden: tuple[int, ...]) -> None:
    # Then F's blocks are (e e') (x) (a a') themselves, without any expectation of a product.
    from gymnasium import spaces

    case = Case("one", spaces.Box(-1.0, 1.0, (1,)), {})
    policy = make_policy(case, hidden=hidden)
    data = make_data(policy, case, rows=1)
    F = dense_fisher(policy, data)
    M = torch.linalg.inv(dense(made(policy, data, "kfac", damping=0.3)))
    at = 0
    layers = [p for name, p in policy.named_parameters() if name != "log_std"]
    sizes = [1] + [w.numel() + b.numel() for w, b in zip(layers[::2], layers[1::2], strict=True)]
    for size in sizes:
        block = slice(at, at + size)
        expected = F[block, block] + 0.3 * torch.eye(size, dtype=torch.float64)
        assert torch.allclose(M[block, block], expected, atol=1e-10)
        at += size
    assert at == len(F)


def test_one_row_and_one_output_make_the_exact_diagonal() -> None:
    from gymnasium import spaces

    case = Case("one", spaces.Box(-1.0, 1.0, (1,)), {})
    policy = make_policy(case, hidden=(4, 3))
    data = make_data(policy, case, rows=1)
    found = made(policy, data, "diagonal", damping=0.3)
    assert torch.allclose(1 / found.diagonal, dense_fisher(policy, data).diagonal() + 0.3)


@every_backend
@every_case
@every_kind
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_the_solution_is_the_dense_oracles(
    backend: str, case: Case, kind: str, weighted: bool
) -> None:
    policy = make_policy(case)
    data = make_data(policy, case, weighted=weighted)
    F = dense_fisher(policy, data)
    g = gradient(len(F))
    A = F + 0.1 * torch.eye(len(F), dtype=torch.float64)
    exact = torch.linalg.solve(A, g)
    found = solved(backend, policy, data, g, preconditioner=kind, cg_iters=300, cg_tol=1e-12)
    assert torch.allclose(found.x, exact, rtol=1e-8, atol=1e-10)
    assert found.quadratic == pytest.approx(float(exact @ A @ exact), rel=1e-9)
    assert found.residual == pytest.approx(float((g - A @ found.x).norm()), abs=1e-11)
    assert found.status is None


@every_backend
@pytest.mark.parametrize("name", ["gaussian", "gaussian_state_std", "categorical", "bernoulli"])
@pytest.mark.parametrize("hidden", [(16, 16), (12,), (8, 8, 8)])
def test_two_iterations_with_kfac_do_more_than_three_without(
    backend: str, name: str, hidden: tuple[int, ...]
) -> None:
    policy, data = uneven(name, hidden)
    network, batch = recognised(policy, data)
    _, g = (
        ANALYTIC[backend].problem(network, flat_of(policy), batch, Options()).surrogate_gradient()
    )

    def quality(kind: str, iters: int) -> float:
        """What the step improves at a given KL, but for a factor: sqrt(g.x) of CG's iterates."""
        found = solved(
            backend, policy, data, g, preconditioner=kind, damping=0.01, cg_iters=iters, cg_tol=0
        )
        return float(g @ found.x) ** 0.5

    assert quality("kfac", 2) > 1.05 * quality("none", 3)


@every_backend
def test_cholesky_inverses_serve_wide_layers(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kfac, "EIGEN_WIDTH", 8)
    policy, data = uneven("gaussian", (16, 16))
    blocks = [block for _, block in made(policy, data, "kfac").blocks]
    assert [block.scale is None for block in blocks] == [True, True, True]
    F = dense_fisher(policy, data)
    g = gradient(len(F))
    exact = torch.linalg.solve(F + 0.01 * torch.eye(len(F), dtype=torch.float64), g)
    options = {"damping": 0.01, "cg_iters": 500, "cg_tol": 1e-9}
    found = solved(backend, policy, data, g, preconditioner="kfac", **options)
    assert torch.allclose(found.x, exact, rtol=1e-6, atol=1e-7)


def freeze(policy: MlpPolicy, what: str) -> None:
    frozen = {
        "a weight": [policy.body[2].weight],
        "a bias": [policy.body[0].bias],
        "a layer": [policy.body[2].weight, policy.body[2].bias],
        "log_std": [policy.log_std],
    }[what]
    for p in frozen:
        p.requires_grad_(False)


@every_backend
@every_kind
@pytest.mark.parametrize("what", ["a weight", "a bias", "a layer", "log_std"])
def test_frozen_parameters_have_no_part_in_it(backend: str, kind: str, what: str) -> None:
    case = BY_NAME["gaussian"]
    policy = make_policy(case)
    data = make_data(policy, case)
    named = list(policy.named_parameters())
    F = dense_fisher(policy, data)
    freeze(policy, what)
    kept = torch.cat([torch.full((p.numel(),), p.requires_grad) for _, p in named])
    F = F[kept][:, kept]
    g = gradient(len(F))
    exact = torch.linalg.solve(F + 0.1 * torch.eye(len(F), dtype=torch.float64), g)
    found = solved(backend, policy, data, g, preconditioner=kind, cg_iters=300, cg_tol=1e-12)
    assert torch.allclose(found.x, exact, rtol=1e-8, atol=1e-10)


@every_kind
def test_without_damping_it_stays_finite(kind: str) -> None:
    case = BY_NAME["gaussian"]
    policy = make_policy(case, hidden=(20, 20))
    data = make_data(policy, case, rows=4)  # F is singular
    with torch.no_grad():
        policy.body[-1].weight.zero_()  # and so is all of G below the last layer
    M = dense(made(policy, data, kind, damping=0.0))
    assert torch.isfinite(M).all()


@every_kind
@pytest.mark.parametrize("log_std", [-200.0, 200.0])
def test_statistics_that_are_not_finite_leave_plain_cg(kind: str, log_std: float) -> None:
    case = BY_NAME["gaussian"]
    policy = make_policy(case, dtype=torch.float32)
    data = make_data(policy, case)
    with torch.no_grad():
        policy.log_std.fill_(log_std)
    network, batch = recognised(policy, data)
    state: dict[Tensor, Any] = {}
    problem = ANALYTIC["reference"].problem(network, flat_of(policy), batch, Options())
    found = Curvature(state).preconditioner(kind, network, problem, batch, 0.1)
    if found is None:
        assert not state
    else:  # 1 / sigma underflowed to 0, which is a number
        assert torch.isfinite(found.apply(torch.ones_like(found.diagonal))).all()
    assert (found is None) == (log_std < 0)


def test_it_draws_no_random_numbers_and_repeats_itself() -> None:
    case = BY_NAME["categorical"]
    policy = make_policy(case)
    data = make_data(policy, case)
    before = torch.random.get_rng_state()
    first, second = (dense(made(policy, data, "kfac")) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first, second)


@every_backend
def test_the_statistics_take_evenly_strided_rows(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(curvature, "INPUT_ROWS", 10)
    monkeypatch.setattr(curvature, "OUTPUT_ROWS", 10)
    case = BY_NAME["gaussian"]
    policy = make_policy(case)
    data = make_data(policy, case, rows=40)
    some = {key: value[::4] for key, value in data.items()}
    found, expected = (made(policy, d, "kfac", backend=backend) for d in (data, some))
    assert torch.equal(dense(found), dense(expected))


@pytest.mark.parametrize(
    ("rows", "hidden", "interval"),
    [(64, (64, 64), 5), (2048, (64, 64), 3), (25_000, (64, 64), 1), (4096, (1024, 1024), 1)],
)
def test_large_batches_renew_their_statistics_more_often(
    rows: int, hidden: tuple[int, ...], interval: int
) -> None:
    policy = make_policy(BY_NAME["gaussian"], hidden=hidden, obs_width=17)
    network, _ = recognised(policy, make_data(policy, BY_NAME["gaussian"]))
    assert preconditioner_cost.refresh_interval(network, rows) == interval
