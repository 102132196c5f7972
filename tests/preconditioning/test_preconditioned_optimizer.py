"""A preconditioned optimizer: its state, its life over many updates, and where it cannot serve."""

from __future__ import annotations

import copy
import io
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from update_cases import BY_NAME, Wrapped, bits, make_data, make_policy, same_bits

from trpo_fast import TRPO, MlpPolicy, TRPOOptimizer
from trpo_fast.backends.registry import ANALYTIC
from trpo_fast.preconditioning.cost import REFRESH
from trpo_fast.preconditioning.curvature import AGE

GAUSSIAN = BY_NAME["gaussian"]
BACKENDS = [name for name, backend in ANALYTIC.items() if backend.device != "cuda"]
every_backend = pytest.mark.parametrize("backend", BACKENDS)
every_kind = pytest.mark.parametrize("kind", ["diagonal", "kfac"])


def steps(policy: MlpPolicy, opt: TRPOOptimizer, seeds: range) -> list[Any]:
    results = []
    for seed in seeds:
        data = make_data(policy, GAUSSIAN, seed=seed)
        opt.step(**data)
        results.append(opt.last_result)
    return results


def pair(backend: str, kind: str) -> tuple[MlpPolicy, TRPOOptimizer]:
    policy = make_policy(GAUSSIAN, dtype=torch.float32)
    return policy, TRPOOptimizer(policy, backend=backend, preconditioner=kind)


@every_backend
@every_kind
def test_every_step_keeps_the_promise(backend: str, kind: str) -> None:
    policy, opt = pair(backend, kind)
    results = steps(policy, opt, range(8))
    assert any(result.accepted for result in results)
    for result in results:
        assert not result.accepted or (result.kl <= 0.01 and result.actual_improvement > 0)


@every_backend
@every_kind
def test_statistics_do_not_outlive_a_change_of_dtype(backend: str, kind: str) -> None:
    policy, opt = pair(backend, kind)
    steps(policy, opt, range(1))
    policy.double()
    twin = copy.deepcopy(policy)
    fresh = TRPOOptimizer(twin, backend=backend, preconditioner=kind)
    assert [r.status for r in steps(policy, opt, range(2))] == ["accepted"] * 2
    steps(twin, fresh, range(2))
    assert same_bits(policy, bits(twin))


@every_backend
@every_kind
def test_statistics_follow_a_parameter_that_is_frozen_or_thawed(backend: str, kind: str) -> None:
    policy, opt = pair(backend, kind)
    assert policy.log_std is not None
    for frozen in (False, True, False):
        policy.log_std.requires_grad_(not frozen)
        before = policy.log_std.detach().clone()
        assert [r.status for r in steps(policy, opt, range(1))] == ["accepted"]
        assert torch.equal(policy.log_std, before) == frozen


@every_backend
@every_kind
@pytest.mark.parametrize("before", [1, REFRESH - 1, REFRESH, REFRESH + 2])
def test_a_loaded_state_goes_on_bit_for_bit(backend: str, kind: str, before: int) -> None:
    policy, opt = pair(backend, kind)
    steps(policy, opt, range(before))
    file = io.BytesIO()
    torch.save((policy.state_dict(), opt.state_dict()), file)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    other, again = pair(backend, kind)
    other.load_state_dict(weights)
    again.load_state_dict(state)
    copied, by_copy = copy.deepcopy((policy, opt))
    first = steps(policy, opt, range(50, 50 + REFRESH + 1))
    assert steps(other, again, range(50, 50 + REFRESH + 1)) == first
    assert steps(copied, by_copy, range(50, 50 + REFRESH + 1)) == first
    assert same_bits(other, bits(policy))
    assert same_bits(copied, bits(policy))


def test_the_statistics_are_renewed_every_few_updates() -> None:
    policy, opt = pair("reference", "kfac")
    weight = policy.body[0].weight
    seen = []
    for seed in range(2 * REFRESH + 1):
        steps(policy, opt, range(seed, seed + 1))
        seen.append(opt.state[weight]["kfac_G"])
    distinct = [seen[0]] + [b for a, b in itertools.pairwise(seen) if b is not a]
    assert len(distinct) == 3
    assert opt.state[weight][AGE] == 1


@every_kind
def test_foreign_statistics_are_made_anew(kind: str) -> None:
    policy, opt = pair("reference", kind)
    steps(policy, opt, range(1))
    for entry in opt.state.values():
        for name in entry:
            if name != AGE:
                entry[name] = torch.ones(2, 2)
    expected_policy, expected = pair("reference", kind)
    steps(expected_policy, expected, range(1))
    expected.state.clear()
    assert steps(policy, opt, range(1, 3)) == steps(expected_policy, expected, range(1, 3))


@every_kind
def test_the_generic_path_refuses_it_in_words(kind: str) -> None:
    policy = make_policy(GAUSSIAN)
    data, before = make_data(policy, GAUSSIAN), bits(policy)
    opt = TRPOOptimizer(Wrapped(policy), preconditioner=kind)
    with pytest.raises(ValueError, match=f"{kind}.*recognised.*preconditioner='auto'"):
        opt.step(**data)
    closure_opt = TRPOOptimizer(policy.parameters(), preconditioner=kind)
    with pytest.raises(ValueError, match=f"{kind}.*closure.*preconditioner='auto'"):
        closure_opt.step(lambda: (torch.zeros(()), policy(data["obs"])))
    assert same_bits(policy, before)


@pytest.mark.parametrize(
    ("rows", "hidden", "served"), [(64, (64, 64), False), (2048, (64, 64), True), (40, (7,), False)]
)
def test_auto_decides_by_size(rows: int, hidden: tuple[int, ...], served: bool) -> None:
    policy = make_policy(GAUSSIAN, hidden=hidden, dtype=torch.float32)
    opt = TRPOOptimizer(policy)
    opt.step(**make_data(policy, GAUSSIAN, rows=rows))
    assert bool(opt.state) == served


@pytest.mark.parametrize(
    ("damping", "relative", "served"),
    [(0.0099, False, False), (0.01, False, True), (0.0049, True, False), (0.005, True, True)],
)
def test_auto_leaves_small_dampings_to_plain_iterations(
    damping: float, relative: bool, served: bool
) -> None:
    ends = {}
    for kind in ("auto", "none", "kfac"):
        policy = make_policy(GAUSSIAN, hidden=(64, 64), dtype=torch.float32)
        data = make_data(policy, GAUSSIAN, rows=2048)
        TRPOOptimizer(policy, damping=damping, relative_damping=relative, preconditioner=kind).step(
            **data
        )
        ends[kind] = bits(policy)
    assert not all(map(torch.equal, ends["none"], ends["kfac"]))
    assert all(map(torch.equal, ends["auto"], ends["kfac" if served else "none"]))


def test_plain_cg_is_not_stopped_by_its_progress() -> None:
    policy = make_policy(GAUSSIAN, dtype=torch.float32)
    opt = TRPOOptimizer(policy, preconditioner="none", cg_progress_tol=0.9, cg_tol=0.0)
    opt.step(**make_data(policy, GAUSSIAN))
    assert opt.last_result is not None
    assert opt.last_result.cg_iters == 10


@every_backend
def test_a_preconditioned_solve_stops_where_an_iteration_gains_little(backend: str) -> None:
    counts = []
    for tol in (0.0, 0.05, 0.5):
        policy = make_policy(GAUSSIAN, dtype=torch.float32)
        opt = TRPOOptimizer(
            policy, backend=backend, preconditioner="kfac", cg_progress_tol=tol, cg_tol=0.0
        )
        opt.step(**make_data(policy, GAUSSIAN, rows=400))
        assert opt.last_result is not None
        counts.append(opt.last_result.cg_iters)
    assert counts[0] == 10
    assert counts[0] > counts[1] > counts[2]


def test_an_agent_resumes_it_bit_for_bit(tmp_path: Path) -> None:
    keywords = {"num_envs": 2, "rollout_steps": 64, "seed": 3, "preconditioner": "kfac"}
    with TRPO("CartPole-v1", **keywords) as agent:
        agent.learn(3 * 128, progress_bar=False)
        path = agent.save(tmp_path / "half.safetensors")
        agent.learn((REFRESH + 1) * 128, progress_bar=False)
        expected = bits(agent.policy)
    with TRPO.load(path) as resumed:
        resumed.learn((REFRESH + 1) * 128, progress_bar=False)
        assert same_bits(resumed.policy, expected)
