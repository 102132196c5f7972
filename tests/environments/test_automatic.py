"""vectorization="auto": where the environments end up, which nobody can tell from the results."""

from __future__ import annotations

import json
import os
import random
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rollout_cases import philox, policy_for
from toy_environments import Masked, Scripted, Walk
from worker_cases import assert_same, heard

from trpo_fast.agent.agent import TRPO
from trpo_fast.environments import automatic
from trpo_fast.environments.automatic import AutomaticEnvironments
from trpo_fast.environments.make import make_vector_env
from trpo_fast.environments.workers import Workers
from trpo_fast.rollouts.collector import RolloutCollector

# Seconds that passed in this process, whatever the machine is busy with.
PASSED = [0.0]


class Costly(Walk):
    """A walk whose steps take two milliseconds of the process that steps it."""

    def step(self, action: Any) -> Any:
        PASSED[0] += 2e-3
        return super().step(action)


def slow(method: Callable[..., Any], after: int = 0) -> Callable[..., Any]:
    """A method whose calls take a tenth of a second, but the first few."""
    calls = [0]

    def called(*arguments: Any) -> Any:
        calls[0] += 1
        PASSED[0] += 0.1 * (calls[0] > after)
        return method(*arguments)

    return called


@pytest.fixture(autouse=True)
def cores(monkeypatch: pytest.MonkeyPatch, unhurried: None) -> None:
    """As many as the tests were written for, whatever machine this is, and its clock."""
    del unhurried
    monkeypatch.setattr(automatic, "perf_counter", lambda: PASSED[0])
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)))
    monkeypatch.setattr("trpo_fast.base.threads._CONTROL_GROUP", Path("/nowhere"))
    monkeypatch.setattr(automatic, "HANDOVER", 4e-5)


def auto(kind: Any, num_envs: int = 6, **options: Any) -> Any:
    return make_vector_env(kind, num_envs=num_envs, seed=5, vectorization="auto", **options)


@pytest.fixture
def closing() -> Iterator[Callable[[Any], Any]]:
    """Environments that are closed at the end."""
    opened: list[Any] = []
    yield lambda env: opened.append(env) or env
    for env in opened:
        env.close()


def test_costly_steps_move_to_workers_and_change_nothing(closing: Callable[[Any], Any]) -> None:
    env = closing(auto(Costly))
    said = heard(env, 70)
    assert isinstance(env.current, Workers)
    assert env.choice.startswith("workers: 3 processes and this one on 4 cores, since a step of 6")
    assert_same(heard(make_vector_env(Costly, num_envs=6, seed=5), 70), said)


def later_python(monkeypatch: pytest.MonkeyPatch, methods: list[str]) -> None:
    """In which the first of these methods is multiprocessing's own choice."""
    known = automatic.multiprocessing
    monkeypatch.setattr(known, "get_start_method", lambda allow_none=False: None)
    monkeypatch.setattr(known, "get_all_start_methods", lambda: methods)


def test_processes_are_forked_where_the_program_has_not_chosen(
    closing: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    later_python(monkeypatch, ["forkserver", "spawn", "fork"])
    env = closing(auto(Costly))
    heard(env, 30)
    assert type(env.current.processes[0]).__name__ == "ForkProcess"


def test_cheap_steps_stay(closing: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(automatic, "HANDOVER", 1.0)
    env = closing(auto(Costly))
    assert_same(heard(make_vector_env(Costly, num_envs=6, seed=5), 70), heard(env, 70))
    assert env.choice.startswith("sync: a step of 6 takes ")
    assert env.choice.endswith("workers would save 0%")


class Disturbed(Walk):
    """Of cheap steps, of which six environments make twenty while others have the core."""

    taken = 0

    def step(self, action: Any) -> Any:
        type(self).taken += 1
        PASSED[0] += 1.5e-4 if self.taken <= 6 * 20 else 5e-6
        return super().step(action)


def test_a_short_disturbance_does_not_decide(closing: Callable[[Any], Any]) -> None:
    env = closing(auto(Disturbed))
    heard(env, 120)
    assert env.choice == "sync: a step of 6 takes 30 us here, and workers would save 0%"


def test_workers_that_are_no_quicker_are_given_up(
    closing: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Workers, "step", slow(Workers.step))
    env = closing(auto(Costly))
    said = heard(env, 70)
    assert not isinstance(env.current, Workers)
    assert "us in workers" in env.choice
    assert env.choice.startswith("sync: a step of 6 takes ")
    assert_same(heard(make_vector_env(Costly, num_envs=6, seed=5), 70), said)


def only_to_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the way back did not lead to the same."""
    leads_to = AutomaticEnvironments._leads_to
    monkeypatch.setattr(
        AutomaticEnvironments,
        "_leads_to",
        lambda self, where, *rest: isinstance(where, Workers) and leads_to(self, where, *rest),
    )


@pytest.mark.parametrize("leads", [True, False])
def test_workers_that_become_slow_are_left(
    leads: bool, closing: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Workers, "step", slow(Workers.step, after=automatic.STEPS + 4))
    monkeypatch.setattr(automatic, "WATCHED", 0.3)
    env = closing(auto(Costly))
    if not leads:
        only_to_workers(monkeypatch)
    said = heard(env, 90)
    assert isinstance(env.current, Workers) is not leads
    assert env.choice.startswith("sync: a step of 6 takes " if leads else "workers: ")
    assert_same(heard(make_vector_env(Costly, num_envs=6, seed=5), 90), said)


class Ticking(Costly):
    """Shows what no seed decides."""

    def step(self, action: Any) -> Any:
        observation, *rest = super().step(action)
        return (observation * 0 + time.time_ns() % 2**31, *rest)


class Growing(Costly):
    """Longer from episode to episode: nothing of the running one tells that."""

    episodes = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.episodes += 1
        return super().reset(seed=seed, options=options)


class OfThisProcess(Costly):
    """Cannot be made in any other."""

    home = os.getpid()

    def __init__(self) -> None:
        super().__init__()
        if os.getpid() != self.home:
            raise RuntimeError("one licence")


class Unclosable(Costly):
    """As environments of old are, whose viewer was never opened."""

    def close(self) -> None:
        raise AttributeError("'NoneType' object has no attribute 'close'")


class Rewarded(Costly):
    """Rewards that something beside the seed and the actions decides."""

    def reward(self) -> float:
        raise NotImplementedError

    def step(self, action: Any) -> Any:
        observation, _, *rest = super().step(action)
        return (observation, self.reward(), *rest)


COUNTED = [0]


class Counted(Rewarded):
    """Rewards by a count that the whole program shares."""

    def reward(self) -> float:
        COUNTED[0] += 1
        return float(COUNTED[0] % 7)


class DrawnByNumpy(Rewarded):
    """Rewards from NumPy's global generator."""

    def reward(self) -> float:
        return np.random.normal()  # noqa: NPY002


class DrawnByTorch(Rewarded):
    """Rewards from torch's."""

    def reward(self) -> float:
        return float(torch.rand(()))


class DrawnAtReset(Costly):
    """Python's decides where an episode begins."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        observation, info = super().reset(seed=seed, options=options)
        return observation + np.float32(random.random()), info


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (Counted, "do not depend on their seeds and actions alone"),
        (DrawnByNumpy, "they draw from random numbers of the whole program"),
        (DrawnByTorch, "they draw from random numbers of the whole program"),
        (DrawnAtReset, "they draw from random numbers of the whole program"),
        (Ticking, "do not depend on their seeds and actions alone"),
        (Growing, "do not depend on their seeds and actions alone"),
        (OfThisProcess, "workers could not be started .*one licence"),
        (Unclosable, "workers could not be started .*AttributeError"),
    ],
)
def test_what_cannot_move_stays(kind: Any, why: str) -> None:
    env = auto(kind)
    heard(env, 30)
    assert not isinstance(env.current, Workers)
    assert re.search(why, env.choice), env.choice
    heard(env, 3)


@pytest.mark.parametrize("kind", [DrawnByNumpy, DrawnByTorch, DrawnAtReset])
def test_where_they_stay_they_have_the_numbers_of_sync(kind: Any) -> None:
    said = []
    for vectorization in ("sync", "auto"):
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002
        torch.manual_seed(1)
        env = make_vector_env(kind, num_envs=6, seed=5, vectorization=vectorization)
        said.append(heard(env, 70))
        env.close()
    assert_same(*said)


def test_what_would_not_come_back_stays_with_the_workers(
    closing: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Workers, "step", slow(Workers.step))
    only_to_workers(monkeypatch)
    env = closing(auto(Costly))
    said = heard(env, 70)
    assert isinstance(env.current, Workers)
    assert "would not come back" in env.choice
    assert_same(heard(make_vector_env(Costly, num_envs=6, seed=5), 70), said)


def test_processes_that_cannot_be_started_leave_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        raise AssertionError("daemonic processes are not allowed to have children")

    monkeypatch.setattr("multiprocessing.process.BaseProcess.start", refused)
    env = auto(Costly)
    heard(env, 30)
    assert "workers could not be started" in env.choice
    env.close()


@pytest.mark.parametrize("place", ["observation", "info", "method"])
def test_action_masks_move_too(place: str, closing: Callable[[Any], Any]) -> None:
    class Slow(Masked):
        def step(self, action: Any) -> Any:
            PASSED[0] += 2e-3
            return super().step(action)

    collectors = [
        RolloutCollector(closing(env))
        for env in (
            auto(lambda: Slow(place)),
            make_vector_env(lambda: Slow(place), num_envs=6, seed=5),
        )
    ]
    policy = policy_for(collectors[0])
    one, other = (c.collect(policy, None, 40, philox()) for c in collectors)
    assert isinstance(collectors[0].env.current, Workers)
    assert torch.equal(one.observations, other.observations)
    assert torch.equal(one.action_masks, other.action_masks)
    assert torch.equal(one.actions, other.actions)


class Drawn(Scripted):
    """With a picture of each step."""

    render_mode = "rgb_array"


def leveled(levels: list[int]) -> Callable[[], Any]:
    """Walks of a length that their maker may change."""
    return lambda: Walk(length=7 + levels[0])


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"num_envs": 1}, "sync: one environment"),
        ({"cores": 1}, "sync: one core"),
        ({"method": "spawn"}, "sync: multiprocessing starts processes by spawn here"),
        ({"jax": True}, "sync: JAX is loaded"),
        ({"traced": True}, "sync: a debugger or a tracer is at work"),
        ({"system": "darwin"}, "sync: multiprocessing starts processes by spawn here"),
        ({"daemon": True}, "sync: this process is a daemon"),
        ({"kind": Drawn}, "sync: they render"),
        ({"kind": leveled([0])}, "sync: they may share a list with this program"),
        ({"ranks": "4"}, "sync: one core"),
    ],
)
def test_reasons_that_need_no_clock(
    options: dict[str, Any], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "cores" in options:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    if "method" in options:
        monkeypatch.setattr(automatic.multiprocessing, "get_start_method", lambda **_: "spawn")
    if "daemon" in options:
        daemon = SimpleNamespace(daemon=True)
        monkeypatch.setattr(automatic.multiprocessing, "current_process", lambda: daemon)
    if "jax" in options:
        monkeypatch.setitem(sys.modules, "jax", None)
    if "system" in options:
        monkeypatch.setattr(sys, "platform", options["system"])
        later_python(monkeypatch, ["spawn", "fork", "forkserver"])
    if "traced" in options:
        monkeypatch.setattr(sys, "gettrace", lambda: print)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", options.get("ranks", "1"))
    env = auto(options.get("kind", Scripted), num_envs=options.get("num_envs", 4))
    assert not isinstance(env, AutomaticEnvironments)
    assert env.choice.startswith(why)


def test_an_agent_says_what_was_chosen(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    options = {"num_envs": 4, "rollout_steps": 40, "hidden_sizes": (4,), "seed": 0}
    with TRPO(Costly, vectorization="auto", run_dir=tmp_path / "run", **options) as agent:
        assert agent.vectorization == "auto"
        agent.learn(320)
        assert agent.vectorization.startswith("workers: 3 processes and this one on 4 cores")
        said = agent.vectorization
    assert capsys.readouterr().out.count(f"environments: {said}") == 1
    written = json.loads((tmp_path / "run" / "config.json").read_text())
    assert written["stepping"] == said
    assert written["options"]["vectorization"] == "auto"
    with TRPO(Costly, vectorization="sync", **options) as other:
        other.learn(320, progress_bar=False)
    for one, two in zip(agent.policy.parameters(), other.policy.parameters(), strict=True):
        assert torch.equal(one, two)


def test_a_move_is_kept_after_an_interrupt(
    closing: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    collectors = [
        RolloutCollector(closing(env))
        for env in (auto(Costly), make_vector_env(Costly, num_envs=6, seed=5))
    ]
    policy = policy_for(collectors[0])
    step, left = Workers.step, [21]

    def interrupted(self: Any, *arguments: Any) -> Any:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Workers, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            collectors[0].collect(policy, None, 60, philox())
    one, other = (c.collect(policy, None, 30, philox(1)) for c in collectors)
    assert isinstance(collectors[0].env.current, Workers)
    np.testing.assert_array_equal(one.observations, other.observations)
