"""A saved state with one odd value: refused when it is loaded, or an agent that learns from it."""

from __future__ import annotations

import copy
import math
import os
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from agent_cases import small, weights
from torch import nn

from trpo_fast import TRPO
from trpo_fast.base.errors import UserError
from trpo_fast.runs.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from trpo_fast.schedulers import MaxKlScheduler

# What JSON reads 1e400 as is infinity; a whole number stays one, however long it is.
PLAIN = [None, "text", "", -1, 0.5, math.nan, math.inf, -math.inf, 10**400, True, [], [1], {}]
PLAIN += [{"a": 1}, 2**63, -(2**70)]
TINY = {"rollout_steps": 8, "num_envs": 2, "critic_epochs": 1, "critic_batch_size": 8}
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "discrete": ("CartPole-v1", {"preconditioner": "kfac"}),
    "continuous": ("Pendulum-v1", {"preconditioner": "diagonal", "vectorization": "auto"}),
    "bare": (
        "CartPole-v1",
        {"normalize_observations": False, "normalize_rewards": False, "eval_every": 8},
    ),
}


def arrays(real: Any = None) -> list[Any]:
    """Arrays that are none of a saved agent's, and some made of the one that is."""
    odd: list[Any] = [np.zeros(0), np.zeros((3, 1), np.float32), np.array(2), torch.zeros(2, 2)]
    odd += [torch.zeros(0), torch.tensor(math.nan), torch.zeros(3, dtype=torch.int64)]
    if isinstance(real, torch.Tensor | np.ndarray):
        tensor = torch.as_tensor(real)
        odd += [
            *(tensor[None], tensor.reshape(-1)[:-1], tensor.to(torch.int16)),
            *(tensor.to(torch.complex64), tensor.double(), tensor.bool()),
            *(torch.full_like(tensor, -1), tensor.numpy(), torch.from_numpy(tensor.numpy())),
        ]
        if tensor.is_floating_point():
            odd += [torch.full_like(tensor, bad) for bad in (math.nan, math.inf, -math.inf)]
        odd += [torch.as_tensor(value).numpy() for value in odd[7:]]
    return odd


def leaves(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every value with its place; those that hold others are values, too."""
    if path:
        yield path, node
    if isinstance(node, dict | list):
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            yield from leaves(node[key], (*path, key))


def replaced(state: Any, path: tuple[Any, ...], value: Any) -> Any:
    changed = copy.deepcopy(state)
    node = changed
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return changed


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """The state of an agent of a case, after two updates."""
    found: dict[str, dict[str, Any]] = {}

    def state(case: str) -> dict[str, Any]:
        if case not in found:
            env, options = CASES[case]
            with small(env, **(TINY | options)) as agent:
                agent.learn(32, progress_bar=False)
                path = agent.save(tmp_path_factory.mktemp(case) / "agent")
            found[case] = load_checkpoint(path)
        return found[case]

    return state


def outcome(path: Path, state: Any) -> str:
    """ "" where the checkpoint is refused or an agent learns from it, else what went wrong."""
    save_checkpoint(path, state)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other episodes, or slower code
        try:
            agent = TRPO.load(path)
        except UserError:
            return ""
        except Exception as error:  # noqa: BLE001
            return f"load raised {error!r}"
        try:
            agent.learn(1, progress_bar=False)
            return "" if bool(weights(agent).isfinite().all()) else "parameters are not finite"
        except Exception as error:  # noqa: BLE001
            return f"learn raised {error!r}"
        finally:
            agent.close()


PARTS = ("agent", "config", "learner", "collector")


def part_of(place: tuple[Any, ...]) -> str:
    return place[0] if place[0] in PARTS else "rest"


@pytest.mark.reliability("odd_values")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "part"),
    [
        *(("discrete", part) for part in (*PARTS, "rest")),
        *(("continuous", part) for part in ("learner", "collector")),
        ("bare", "learner"),
    ],
)
def test_no_odd_value_is_met_after_loading(tmp_path, saved, case, part, monkeypatch):
    # Thousands of files, and nobody cuts the power.
    monkeypatch.setattr(os, "fsync", lambda _: None)
    state = saved(case)
    # Each place meets some of the values and each value some of the places, unless all are asked.
    stride = 1 if "TRPO_FAST_EVERY_ODD_VALUE" in os.environ else 8
    wrong = [
        f"{'/'.join(map(str, place))} as {odd!r}: {failure}"
        for index, (place, value) in enumerate(leaves(state))
        if part_of(place) == part
        for odd in [*PLAIN, *arrays(value)][index % stride :: stride]
        if (failure := outcome(tmp_path / "c.safetensors", replaced(state, place, odd)))
    ]
    assert not wrong, "\n".join(wrong)


def test_the_state_itself_is_learnt_from(tmp_path, saved):
    """And all of its kinds of values are there to be replaced."""
    for case in CASES:
        assert outcome(tmp_path / "c.safetensors", saved(case)) == ""
    places = {"/".join(map(str, place)) for place, _ in leaves(saved("discrete"))}
    assert {
        *("learner/critic/0/exp_avg_sq", "learner/statistics/returns/returns", "rng/buffer_pos"),
        *("learner/optimizer/max_kl", "collector/actions", "progress/num_timesteps"),
        *("config/gamma", "learner/counters", "agent/policy", "recent_returns/0"),
    } <= places
    kept = [saved(case)["learner"]["curvature"] for case in ("discrete", "continuous")]
    names = {name for each in kept for entry in each.values() for name in entry}
    assert names == {"preconditioner_age", "kfac_G", "kfac_pi", "fisher_diagonal"}


@pytest.mark.reliability("odd_values")
@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        ("progress/num_timesteps", "64", "progress/num_timesteps is '64', expected a whole number"),
        ("progress/time_elapsed", math.nan, "time_elapsed is nan, expected a finite number"),
        ("rng/buffer_pos", 5, "rng/buffer_pos is 5, expected a whole number from 0 to 4"),
        ("rng/state/counter", [1], "rng/state/counter has 1 items, expected 4"),
        ("custom_networks", None, "custom_networks is None, expected a list"),
        ("agent", None, "agent is None, expected a mapping"),
        ("config", [], "config is [], expected a mapping"),
        ("learner/counters", {}, "learner/counters/train/unscaled_advantages is missing"),
        ("learner/optimizer/max_kl", math.inf, "learner/optimizer/max_kl is inf: max_kl must be"),
        ("learner/optimizer/backend", "cuda", "backend is 'cuda', the networks are on 'cpu'"),
        ("learner/critic/0/exp_avg", "x", "critic/0/exp_avg is 'x', expected a tensor"),
        ("learner/critic/0/exp_avg", math.nan, "critic/0/exp_avg holds a NaN or an infinity"),
        ("learner/critic/0/exp_avg_sq", math.inf, "exp_avg_sq holds a NaN or an infinity"),
        ("learner/critic/0/exp_avg_sq", -1.0, "exp_avg_sq holds -1, expected at least 0"),
        ("learner/critic/0/step", -1.0, "critic/0/step holds -1, expected at least 0"),
        ("learner/critic/99", {}, "learner/critic/99 is none that is known"),
        ("learner/curvature/0/kfac_G", math.nan, "curvature/0/kfac_G holds a NaN"),
        ("learner/curvature/0/kfac_G", -1.0, "has kfac_G with -1"),
        ("learner/curvature/0/kfac_pi", 0.0, "has kfac_pi with 0"),
        ("learner/statistics/observations/var", -1.0, "var holds -1.0 to -1.0, expected at least"),
        ("collector/actions", 7, "collector/actions holds actions that are none of Discrete(2)"),
        ("collector/action_counts", 1, "collector/action_counts are 2 together, actions"),
        ("collector/lengths", None, "collector/lengths is None, expected an array of int64"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(tmp_path, saved, place, value, words):
    state = copy.deepcopy(saved("discrete"))
    *path, key = place.split("/")
    node = state
    for part in path:
        node = node[part]
    if isinstance(value, int | float) and isinstance(node.get(key), torch.Tensor | np.ndarray):
        node[key][...] = value  # in an array as it should be
    else:
        node[key] = value
    path = save_checkpoint(tmp_path / "c.safetensors", state)
    with pytest.raises(CheckpointError, match=re.escape(words)):
        TRPO.load(path)


@pytest.mark.reliability("odd_values")
def test_everything_wrong_is_listed_and_no_more_than_a_screen_of_it(tmp_path, saved):
    state = copy.deepcopy(saved("discrete"))
    state["progress"].update(num_updates=-1, num_episodes=0.5)
    with pytest.raises(CheckpointError) as caught:
        TRPO.load(save_checkpoint(tmp_path / "c.safetensors", state))
    assert "num_updates is -1" in str(caught.value)
    assert "num_episodes is 0.5" in str(caught.value)
    state["recent_returns"] = ["x"] * 90
    with pytest.raises(CheckpointError, match="and 80 more"):
        TRPO.load(save_checkpoint(tmp_path / "c.safetensors", state))


@pytest.mark.reliability("sizes")
@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("num_envs", 10**9, "config/num_envs is 1000000000"),
        ("hidden_sizes", [10**9], "config/hidden_sizes is of 1000000000 numbers or more"),
        ("hidden_sizes", [10**5, 10**5], "config/hidden_sizes is of"),
        ("hidden_sizes", [1] * 10**5, "config/hidden_sizes is of 199999 numbers or more"),
        ("value_hidden_sizes", [10**9], "config/value_hidden_sizes is of"),
    ],
)
@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("case", ["discrete", "bare"])
def test_sizes_that_the_arrays_have_not_are_refused_before_anything_is_made(
    tmp_path, saved, monkeypatch, case, trained, option, value, words
):
    state = copy.deepcopy(saved(case))
    state["config"][option] = value
    if not trained:
        state["collector"] = {}
    path = save_checkpoint(tmp_path / "c.safetensors", state)

    def make(*_: Any, **__: Any) -> None:
        raise AssertionError("environments are made")

    monkeypatch.setattr("trpo_fast.agent.making.make_vector_env", make)
    for options in ({}, {"predict_only": True}, {"num_envs": 1}):
        with pytest.raises(CheckpointError, match=words):
            TRPO.load(path, **options)


def test_a_buffer_may_be_infinite_where_the_module_has_it_so(tmp_path):
    class Buffered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 1)
            self.register_buffer("limits", torch.tensor([-math.inf, 0.0]))

        def forward(self, obs: torch.Tensor) -> torch.Tensor:
            return self.inner(obs).squeeze(-1)

    with small(value_function=Buffered()) as agent:
        path = agent.save(tmp_path / "c")
    TRPO.load(path, value_function=Buffered()).close()
    state = load_checkpoint(path)
    state["learner"]["value_function"]["limits"][1] = math.nan
    save_checkpoint(path, state)
    with pytest.raises(CheckpointError, match="value_function/limits holds a NaN"):
        TRPO.load(path, value_function=Buffered())


class Extra(nn.Module):
    """A value function with state of other kinds than most have."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 1)
        self.register_buffer("narrow", torch.ones(3).to(torch.float8_e4m3fn))

    def get_extra_state(self) -> Any:
        return {"version": 1}

    def set_extra_state(self, state: Any) -> None:
        self.version = state["version"]

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        return self.inner(obs).squeeze(-1)


def test_extra_state_and_narrow_buffers_come_back(tmp_path):
    with small(value_function=Extra()) as agent:
        agent.learn(64, progress_bar=False)
        path = agent.save(tmp_path / "c")
    with TRPO.load(path, value_function=Extra()) as again:
        assert again.value_function.version == 1
        assert torch.equal(weights(again), weights(agent))


def test_what_schedulers_keep_in_the_group_is_theirs(tmp_path):
    with small() as agent:
        MaxKlScheduler(agent.optimizer, lambda update: 0.9**update)
        torch.optim.lr_scheduler.LambdaLR(agent.optimizer, lambda update: 0.5**update)
        group = agent.optimizer.param_groups[0]
        group["name"] = "policy"
        group["lr"], group["max_kl"] = torch.tensor(0.25), np.float32(0.5)
        agent.learn(64, progress_bar=False)
        path = agent.save(tmp_path / "c")
    with TRPO.load(path) as again:
        loaded = again.optimizer.param_groups[0]
        assert (loaded["lr"], loaded["max_kl"]) == (0.25, 0.5)
        again.learn(64, progress_bar=False)
    state = load_checkpoint(path)
    # As files written once have it, and as none has.
    state["learner"]["optimizer"].update(initial_max_kl=0.01, params=1)
    with TRPO.load(save_checkpoint(tmp_path / "d.safetensors", state)) as again:
        again.learn(64, progress_bar=False)


def test_what_is_changed_need_not_fit(tmp_path):
    with small() as agent:
        path = agent.save(tmp_path / "c")
    state = load_checkpoint(path)
    state["config"].update(backend="cuda", device="cuda")
    state["learner"]["optimizer"]["backend"] = "cuda"
    path = save_checkpoint(tmp_path / "d.safetensors", state)
    with TRPO.load(path, device="cpu", backend="auto") as again:
        assert again.optimizer.param_groups[0]["backend"] == "auto"


@pytest.mark.parametrize("changes", [{"num_envs": 3}, {"seed": 7}, {}])
def test_an_agent_for_predict_alone_can_be_saved_and_loaded(tmp_path, changes):
    with small() as agent:
        agent.learn(64, progress_bar=False)
        path = agent.save(tmp_path / "c")
    again = TRPO.load(path, predict_only=True, **changes).save(tmp_path / "d")
    kept = load_checkpoint(again)["collector"]
    assert bool(kept) is not bool(changes)
    with TRPO.load(again) as third:
        third.learn(64, progress_bar=False)
