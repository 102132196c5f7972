"""Tensor environments as libraries make them: small fakes with their exact conventions.

* ManiSkill: ``ManiSkillVectorEnv`` (``mani_skill/vector/wrappers/gymnasium.py``, its
  documentation's "Gymnasium API" page): episodes restart within the step, whose info then, and only
  then, has ``final_observation`` for all environments and the mask ``_final_observation``.
* gymnasium's ``JaxToTorch`` for vector environments (``wrappers/vector/array_conversion.py``):
  ``reset(seed=, options=)``, everything in ``info`` converted too, ``metadata`` the wrapped
  environment's, ``device`` None.
* Brax: ``VectorGymWrapper`` behind ``TorchWrapper`` (``brax/envs/wrappers``): gym's four values,
  ends as floats, ``info["truncation"]``, no last observations.
* Stable-Baselines3's key ``terminal_observation``, and ``terminal`` alone, which is no key.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from rollout_cases import Alternating, philox
from tensor_cases import Counter, LateCounter, collector
from torch import Tensor

from trpo_fast.rollouts.rollout import Rollout

STEPS = 11


class ManiSkill(Counter):
    """Counter as ``ManiSkillVectorEnv`` would step it, with what else its info holds."""

    def __init__(self, *, ignore_terminations: bool = False) -> None:
        super().__init__()
        self.ignore_terminations = ignore_terminations

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return super().reset(), {"reconfigure": False}

    def step(self, actions: Tensor) -> tuple[Any, ...]:
        obs, rewards, terminated, truncated, told = super().step(actions)
        infos: dict[str, Any] = {"elapsed_steps": self.at.clone(), "success": terminated.clone()}
        if self.ignore_terminations:
            truncated = truncated | terminated
            terminated = torch.zeros_like(terminated)
        dones = terminated | truncated
        if dones.any():
            final_info = dict(infos)
            infos |= {"final_observation": told["final_obs"], "final_info": final_info}
            infos |= dict.fromkeys(("_final_info", "_final_observation", "_elapsed_steps"), dones)
        return obs, rewards, terminated, truncated, infos


class Keyed(Counter):
    """Last observations under a key of its own, and nothing else in the info."""

    def __init__(self, key: str) -> None:
        super().__init__(finals=key)


class Brax(Counter):
    """Floats for ends, of which the info tells those that the episode's length made."""

    def __init__(self) -> None:
        super().__init__(finals=None)

    def step(self, actions: Tensor) -> tuple[Any, ...]:
        obs, rewards, terminated, truncated, _ = super().step(actions)
        done = (terminated | truncated).float()
        info = {"truncation": truncated.float(), "steps": self.at.float(), "first_obs": obs}
        return obs, rewards, done, info


def rolled(env: Any) -> Rollout:
    return collector(env).collect(Alternating(), None, STEPS, philox())


def assert_same(found: Rollout, wanted: Rollout, *names: str) -> None:
    for name in ("observations", "rewards", "valid", *names):
        assert torch.equal(getattr(found, name), getattr(wanted, name)), name
    assert found.episode_returns == wanted.episode_returns
    assert found.episode_lengths == wanted.episode_lengths


def test_maniskills_vector_environment_is_read() -> None:
    found, wanted = rolled(ManiSkill()), rolled(Counter())
    assert_same(found, wanted, "terminated", "truncated", "final_observations")
    assert len(found.final_observations) > 2


def test_episodes_that_maniskill_does_not_terminate_are_continued() -> None:
    found, plain = rolled(ManiSkill(ignore_terminations=True)), rolled(Counter())
    assert_same(found, plain)
    assert not found.terminated.any()
    assert torch.equal(found.truncated, plain.terminated | plain.truncated)
    # environment 0, whose ends are terminations otherwise, has its last observations, too
    _, envs = found.final_index
    shown = found.final_observations[envs == 0]
    assert torch.equal(shown[:, 1], torch.full((len(shown),), 3.0))
    assert len(shown) == int(plain.terminated.sum())


@pytest.mark.parametrize("key", ["final_obs", "final_observation", "terminal_observation"])
def test_last_observations_are_read_by_every_librarys_key(key: str) -> None:
    found, wanted = rolled(Keyed(key)), rolled(Counter())
    assert_same(found, wanted, "terminated", "truncated", "final_observations")


def test_an_unknown_key_is_warned_of_once_with_those_that_are_known() -> None:
    ours = collector(Keyed("terminal"))
    with pytest.warns(RuntimeWarning, match="final_obs or final_observation or terminal_") as told:
        found = ours.collect(Alternating(), None, STEPS, philox())
    assert len(told) == 1
    # the observation that the last action was chosen from stands in
    steps, envs = found.final_index
    assert torch.equal(found.final_observations, found.observations[steps, envs])
    ours.collect(Alternating(), None, STEPS, philox())


def test_braxs_truncations_are_told_from_terminations() -> None:
    with pytest.warns(RuntimeWarning, match="without giving their last observations"):
        found = rolled(Brax())
    assert_same(found, rolled(Counter()), "terminated", "truncated")


class Arrays:
    """Counter in NumPy, as the Jax environment that gymnasium's wrapper converts."""

    def __init__(self, inner: Counter) -> None:
        self.inner = inner

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return self.inner.reset().numpy(), {}

    def step(self, actions: Any) -> Any:
        *told, info = self.inner.step(torch.from_numpy(actions))
        return *(part.numpy() for part in told), {key: x.numpy() for key, x in info.items()}


def converted(inner: Counter) -> Any:
    """gymnasium's own conversion, of which JaxToTorch sets the libraries, around ``inner``."""
    pytest.importorskip("array_api_compat", reason="pip install 'gymnasium[array-api]'")
    from gymnasium.wrappers.vector.array_conversion import ArrayConversion

    class Plain(gymnasium.vector.VectorEnv):
        num_envs = inner.num_envs
        single_observation_space = inner.single_observation_space
        single_action_space = inner.single_action_space
        metadata = getattr(inner, "metadata", {"autoreset_mode": AutoresetMode.SAME_STEP})
        reset, step = Arrays(inner).reset, Arrays(inner).step

        def close(self, **options: Any) -> None:
            pass

    made = ArrayConversion(Plain(), env_xp=np, target_xp=torch)
    made.device = None
    return made


@pytest.mark.parametrize("kind", [Counter, LateCounter])
def test_gymnasiums_conversion_of_arrays_is_read(kind: Any) -> None:
    found, wanted = rolled(converted(kind())), rolled(kind())
    assert_same(found, wanted, "terminated", "truncated", "final_observations")
    assert (not found.valid.all()) == (kind is LateCounter)


def test_gymnasiums_environments_in_jax_are_stepped() -> None:
    pytest.importorskip("jax", reason="jax is not installed: pip install 'gymnasium[jax]'")
    pytest.importorskip("array_api_compat", reason="pip install 'gymnasium[array-api]'")
    from gymnasium.wrappers.vector import JaxToTorch

    env = JaxToTorch(gymnasium.make_vec("phys2d/CartPole-v1", num_envs=3, max_episode_steps=6))
    ours = collector(env)
    found = ours.collect(Alternating(), None, 16, philox())
    assert ours.env.resets_late
    # Its own limit: every seventh row only resets.
    assert torch.equal(~found.valid.all(1), torch.tensor([t in (6, 13) for t in range(16)]))
    assert found.episode_lengths == [6] * 6
    assert torch.isfinite(found.observations).all()
    steps, envs = found.final_index
    assert torch.equal(found.final_observations, found.observations[steps + 1, envs])
