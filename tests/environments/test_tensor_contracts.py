"""Tensor environments: which contracts are read, and what is said of those that are broken."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from rollout_cases import Alternating, philox
from tensor_cases import Counter, LateCounter, collector
from tensor_environments import TensorCartPole, TensorPendulum, VecEnv
from torch import Tensor

from trpo_fast.base.errors import (
    EnvironmentFault,
    EnvironmentSetupError,
    MissingExtraError,
    UnknownEnvironmentError,
    UnsupportedSpaceError,
)
from trpo_fast.environments.flattening import ObservationFlattener, action_converter
from trpo_fast.environments.tensor_environments import TensorEnvironments
from trpo_fast.environments.tensor_flattening import TensorFlattener, tensor_action_converter
from trpo_fast.environments.tensor_source import make_tensor_env
from trpo_fast.networks.mlp import MlpPolicy

NESTED = spaces.Dict(
    {
        "arm": spaces.Tuple([spaces.Box(-1, 1, (2, 3)), spaces.Discrete(3, start=-1)]),
        "bits": spaces.MultiBinary(2),
        "cells": spaces.MultiDiscrete([2, 4], start=[0, 5]),
        "picture": spaces.Box(0, 255, (2, 2), np.uint8),
    }
)


def batch_of(space: spaces.Space[Any], count: int) -> Any:
    """``count`` samples, as gymnasium stacks them."""
    from gymnasium.vector.utils import batch_space

    batched = batch_space(space, count)
    batched.seed(0)
    return batched.sample()


def in_tensors(batch: Any) -> Any:
    if isinstance(batch, dict):
        return {key: in_tensors(part) for key, part in batch.items()}
    if isinstance(batch, tuple):
        return tuple(in_tensors(part) for part in batch)
    return torch.from_numpy(np.array(batch))


@pytest.mark.parametrize("space", [NESTED, spaces.Box(-1, 1, (3,), np.float64), NESTED["bits"]])
def test_rows_are_those_of_the_flattener_in_numpy(space: Any) -> None:
    batch = batch_of(space, 5)
    flatten = TensorFlattener(space, torch.device("cpu"))
    rows = flatten(in_tensors(batch), torch.empty(5, flatten.width, dtype=flatten.dtype))
    expected = ObservationFlattener(space)(batch)
    assert torch.equal(rows, torch.from_numpy(expected))


@pytest.mark.parametrize(
    ("space", "options"),
    [
        (spaces.Box(-0.3, 0.7, (2,)), {}),
        (spaces.Box(-0.3, 0.7, (2, 2), np.float64), {}),
        (spaces.Box(-0.3, 0.7, (2,)), {"distribution": "squashed"}),
        (spaces.Box(-0.3, 0.7, (2, 2), np.float64), {"scale_actions": True}),
        (spaces.Discrete(4, start=2), {}),
        (spaces.MultiDiscrete([2, 3], start=[1, 4]), {}),
        (spaces.MultiBinary(3), {}),
    ],
)
def test_actions_are_those_of_the_converter_in_numpy(space: Any, options: dict[str, Any]) -> None:
    policy = MlpPolicy(spaces.Box(-1, 1, (3,)), space, **options)
    actions = policy(torch.randn(64, 3)).sample()

    class Own(torch.nn.Module):
        pass

    for module in (policy, Own()):
        if options and module is not policy:
            continue  # tanh is the policy's own
        expected = action_converter(module, space)(actions)
        found = tensor_action_converter(module, space, torch.device("cpu"))(actions)
        assert found.dtype == torch.from_numpy(expected).dtype
        assert torch.equal(found, torch.from_numpy(expected))
        assert found.data_ptr() != actions.data_ptr()


class OldForm(Counter):
    """(obs, reward, done, info), with truncations in the info."""

    def __init__(self, key: str | None) -> None:
        super().__init__()
        self.key = key

    def step(self, actions: Tensor) -> tuple[Any, ...]:
        obs, rewards, terminated, truncated, info = super().step(actions)
        told = {} if self.key is None else {self.key: truncated.float()}
        return obs, rewards, (terminated | truncated).float(), info | told


@pytest.mark.parametrize("key", ["time_outs", "truncation", "TimeLimit.truncated", None])
def test_four_values_tell_truncations_in_the_info(key: str | None) -> None:
    found = collector(OldForm(key)).collect(Alternating(), None, 8, philox())
    whole = collector(Counter()).collect(Alternating(), None, 8, philox())
    ended = whole.terminated | whole.truncated
    assert torch.equal(found.truncated, whole.truncated if key else torch.zeros_like(ended))
    assert torch.equal(found.terminated | found.truncated, ended)


class Groups(VecEnv):
    """rsl_rl's contract with plain dicts, and without `reset`."""

    def __init__(self, env: Any, group: str = "policy") -> None:
        super().__init__(env)
        self.group = group

    def _groups(self, obs: Tensor) -> Any:
        return {self.group: obs, "privileged": self.env.state.float()}


@pytest.mark.parametrize("group", ["policy", "actor"])
def test_rsl_rls_contract_is_read(group: str) -> None:
    env = TensorEnvironments(Groups(TensorPendulum(4), group), name="pendulum", seed=0)
    assert env.observation_space == spaces.Box(-np.inf, np.inf, (3,), np.float32)
    assert env.action_space == spaces.Box(-np.inf, np.inf, (1,), np.float32)
    assert "rsl_rl" in env.choice
    rows = env.rows(4)
    env.reset(rows)
    inner = env.env.env
    assert torch.equal(rows, inner.observe(inner.state))
    inner.elapsed[1:3] = 199
    found = env.step(torch.zeros(4, 1), rows)
    assert found.truncated.tolist() == [False, True, True, False]
    assert not found.terminated.any()
    assert found.final_observations is None


def test_rsl_rls_own_class_of_observations_is_read() -> None:
    pytest.importorskip("tensordict")
    env = TensorEnvironments(VecEnv(TensorPendulum(4), privileged=True), name="p", seed=0)
    assert env.observation_width == 3


def test_groups_without_a_policys_are_named() -> None:
    with pytest.raises(EnvironmentFault, match=r"groups \['critic', 'privileged'\], and none"):
        TensorEnvironments(Groups(TensorPendulum(4), "critic"), name="pendulum", seed=0)


def test_spaces_may_be_told_by_what_is_shown() -> None:
    class Untold(Counter):
        single_observation_space = None

        def shown(self) -> Any:
            return {"a": super().shown(), "b": (self.at.double(),)}

    env = TensorEnvironments(Untold(), name="untold", seed=0)
    assert env.observation_space["a"].shape == (3,)
    assert env.observation_space["b"][0].shape == ()
    assert (env.observation_width, env.observation_dtype) == (4, np.float64)


class Broken(Counter):
    """Returns something else at one place of what a step returns."""

    def __init__(self, place: int, change: Any) -> None:
        super().__init__()
        self.place, self.change = place, change

    def step(self, actions: Tensor) -> Any:
        found = list(super().step(actions))
        found[self.place] = self.change(found[self.place])
        return tuple(found)


@pytest.mark.parametrize(
    ("place", "change", "text"),
    [
        (0, lambda x: x.numpy(), r"observation is a ndarray, not a torch.Tensor"),
        (0, lambda x: x[:, :2], r"observation has shape \(3, 2\), its space says \(3, 3\)"),
        (0, lambda x: x.to("meta"), "observation is on meta, the environment is on cpu"),
        (0, lambda x: x.clone().requires_grad_(), "observation requires a gradient"),
        (0, lambda x: x.to_sparse(), "must be dense and real"),
        (0, lambda x: x.cfloat(), "must be dense and real"),
        (1, lambda x: x[:, None], r"the reward has shape \(3, 1\), expected \(3,\)"),
        (1, lambda x: 1.0, "the reward is a float, not a torch.Tensor"),
        (1, lambda x: x.requires_grad_(), "the reward requires a gradient"),
        (2, lambda x: x.to("meta"), "terminated is on meta"),
        (3, lambda x: x[:2], r"truncated has shape \(2,\)"),
        (4, lambda x: None, "a NoneType for info, not a dict"),
        (4, lambda x: {"final_obs": x["final_obs"].numpy()}, "final observation is a ndarray"),
        (4, lambda x: {"action_mask": 1}, "action masks are not read from tensor environments"),
    ],
)
def test_what_a_contract_does_not_allow_is_named(place: int, change: Any, text: str) -> None:
    ours = collector(Broken(place, change))
    with pytest.raises(EnvironmentFault, match=text):
        ours.collect(Alternating(), None, 8, philox())
    ours.env.env.change = lambda x: x
    assert ours.collect(Alternating(), None, 8, philox()).num_valid == 24


def test_fractions_are_refused_where_the_space_has_none() -> None:
    class Whole(Counter):
        single_observation_space = spaces.MultiDiscrete([9, 9, 9])

    with pytest.raises(EnvironmentFault, match=r"observation is torch.float32, its space .* int64"):
        collector(Whole()).collect(Alternating(), None, 1, philox())


def test_an_exception_of_the_environment_is_told_with_its_traceback() -> None:
    def fail(_: Any) -> Any:
        raise RuntimeError("physics exploded")

    with pytest.raises(EnvironmentFault, match="Broken raised RuntimeError: physics expl") as found:
        collector(Broken(0, fail)).collect(Alternating(), None, 1, philox())
    assert "in fail" in found.value.traceback


@pytest.mark.parametrize("returned", [None, (1, 2, 3)])
def test_a_step_of_another_form_is_named(returned: Any) -> None:
    class Odd(Counter):
        def step(self, actions: Tensor) -> Any:
            return returned

    with pytest.raises(EnvironmentFault, match=r"step\(\) returned .*, not \(obs, reward"):
        collector(Odd()).collect(Alternating(), None, 1, philox())


@pytest.mark.parametrize(
    ("lack", "error", "text"),
    [
        ({"step": None}, EnvironmentSetupError, r"Lacking has no step\(\)"),
        ({"num_envs": None}, EnvironmentSetupError, "Lacking.num_envs is None"),
        ({"single_action_space": None}, EnvironmentSetupError, "has no single_action_space"),
        ({"single_action_space": spaces.Text(3)}, UnsupportedSpaceError, "actions of Text"),
        ({"single_observation_space": spaces.Text(3)}, UnsupportedSpaceError, "of Text"),
        ({"metadata": {"autoreset_mode": "Disabled"}}, EnvironmentSetupError, "leaves resets"),
    ],
)
def test_what_an_environment_lacks_is_named(lack: Any, error: Any, text: str) -> None:
    class Lacking(Counter):
        pass

    env = Lacking()
    for name, value in lack.items():
        setattr(env, name, value)
    with pytest.raises(error, match=text):
        collector(env)


def test_masks_in_observations_are_refused() -> None:
    class Masked(Counter):
        single_observation_space = spaces.Dict(
            {"obs": spaces.Box(-1, 1, (3,)), "action_mask": spaces.MultiBinary(2)}
        )

        def shown(self) -> Any:
            mask = torch.ones(self.num_envs, 2, dtype=torch.int8)
            return {"obs": super().shown(), "action_mask": mask}

    with pytest.raises(EnvironmentSetupError, match="masks are not read from tensor"):
        collector(Masked())


@pytest.mark.parametrize("choices", [True, False])
def test_masks_that_a_method_gives_are_refused_where_actions_are_choices(choices: bool) -> None:
    class Method(Counter):
        single_action_space = spaces.Discrete(2) if choices else spaces.Box(-1, 1, (2,))

        def action_masks(self) -> Tensor:
            return torch.ones(self.num_envs, 2)

        def step(self, actions: Tensor) -> Any:
            *found, info = super().step(actions)
            return *found, info | {"action_mask": self.action_masks()}

    if choices:
        with pytest.raises(EnvironmentSetupError, match=r"has action_masks\(\): action masks"):
            collector(Method())
    else:
        env = TensorEnvironments(Method(), name="m", seed=0)
        env.step(torch.zeros(3, 2), env.rows(3))


def test_environments_in_numpy_are_sent_elsewhere() -> None:
    class InNumPy(Counter):
        def reset(self) -> Any:
            return super().reset().numpy()

    with pytest.raises(EnvironmentFault, match=r"holds a ndarray.*vectorization='sync'"):
        collector(InNumPy())


def test_a_factory_is_given_what_it_has_parameters_for() -> None:
    seen: dict[str, Any] = {}

    def factory(num_envs: int, device: str = "none", **more: Any) -> Counter:
        seen.update(num_envs=num_envs, device=device, **more)
        return Counter(num_envs)

    made = make_tensor_env(factory, num_envs=5, seed=3, env_kwargs={"size": 2}, device="cpu")
    assert made.num_envs == 5
    assert seen == {"num_envs": 5, "device": "cpu", "size": 2}
    with pytest.raises(EnvironmentSetupError, match="come too late for Counter"):
        make_tensor_env(Counter(), num_envs=5, seed=3, env_kwargs={"size": 2})


def test_an_object_has_its_own_number_and_seeds_where_it_takes_one() -> None:
    one, same, other = (
        make_tensor_env(TensorCartPole(6, seed=9), num_envs=2, seed=seed) for seed in (1, 1, 2)
    )
    rows = [env.rows(6) for env in (one, same, other)]
    for env, out in zip((one, same, other), rows, strict=True):
        env.reset(out)
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])


def test_a_module_and_factory_are_imported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = ModuleType("some_simulator")
    module.make, module.number = LateCounter, 3  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "some_simulator", module)
    made = make_tensor_env("some_simulator:make", num_envs=4, seed=0)
    assert (made.name, made.num_envs, made.resets_late) == ("some_simulator:make", 4, True)
    (tmp_path / "needing_more.py").write_text("import not_installed_anywhere\n")
    (tmp_path / "half_written.py").write_text("def make(:\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, error, text in (
        ("CartPole-v1", EnvironmentSetupError, "module:factory, got 'CartPole-v1'"),
        ("no_such_module:make", UnknownEnvironmentError, "no module 'no_such_module'"),
        ("some_simulator:made", UnknownEnvironmentError, "has no 'made'"),
        ("some_simulator:number", EnvironmentSetupError, "is a int; it must be a function"),
        ("needing_more:make", MissingExtraError, "not_installed_anywhere"),
        ("half_written:make", EnvironmentSetupError, "cannot be imported: SyntaxError"),
        (".module:make", EnvironmentSetupError, "cannot be imported: TypeError"),
    ):
        with pytest.raises(error, match=text):
            make_tensor_env(name, num_envs=4, seed=0)
