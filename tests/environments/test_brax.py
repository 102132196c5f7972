"""Brax's environments in tensors, as examples/brax_tensors.py has them: dlpack, and no copies."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from agent_cases import small
from scripts import script

pytestmark = [
    pytest.mark.skipif(
        find_spec("brax") is None, reason="brax is not installed: pip install '.[brax]'"
    ),
    # What Brax says of itself, and JAX of Brax.
    pytest.mark.filterwarnings("ignore:Brax System:UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
ENVS, LIMIT = 3, 5


@pytest.fixture(scope="module")
def made() -> Iterator[Any]:
    """The example, with what Brax and JAX warn of themselves left out."""
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        yield script("examples/brax_tensors.py", patch)


@pytest.fixture(scope="module")
def env(made: Any) -> Any:
    return made.BraxTensors(num_envs=ENVS, episode_length=LIMIT)


def test_nothing_is_copied_on_the_way(made: Any, env: Any) -> None:
    def address(array: Any) -> int:
        return int(array.unsafe_buffer_pointer())

    def watched(state: Any, actions: Any, first: Any) -> Any:
        given.append(actions)
        return step(state, actions, first)

    given: list[Any] = []
    assert env.reset(seed=1).data_ptr() == address(env._state.obs)
    step, env._step = env._step, watched
    actions = torch.zeros(ENVS, 1)
    shown = env.step(actions)[0]
    env._step = step
    assert address(given[0]) == actions.data_ptr()
    assert shown.data_ptr() == address(env._state.obs)


def test_steps_are_braxs_own_and_last_observations_are_told(made: Any, env: Any) -> None:
    from brax import envs

    options = {"episode_length": LIMIT, "batch_size": ENVS, "backend": "generalized"}
    peer = envs.create("inverted_pendulum", **options)  # with its AutoResetWrapper
    step = made.jax.jit(peer.step)
    state, shown = made.jax.jit(peer.reset)(made.jax.random.PRNGKey(3)), env.reset(seed=3)
    ends = torch.zeros(ENVS, dtype=torch.int64)
    for t in range(3 * LIMIT):
        actions = torch.full((ENVS, 1), -1.0 if t % 4 else 3.0)
        state = step(state, made.jax.numpy.from_dlpack(actions))
        before = shown
        shown, reward, terminated, truncated, info = env.step(actions)
        told = [torch.from_dlpack(part) for part in (state.obs, state.reward, state.done)]
        torch.testing.assert_close(shown, told[0])
        torch.testing.assert_close(reward, told[1])
        assert torch.equal(terminated + truncated, told[2])
        over = told[2].bool()
        ends += over
        assert torch.equal(info["final_obs"][~over], shown[~over])
        assert (info["final_obs"][over] != shown[over]).any(1).all()
        assert (info["final_obs"] != before).any(1).all()
    assert (ends >= 3).all()


def test_an_agent_learns_from_it(env: Any) -> None:
    agent = small(env, vectorization="tensor", eval_envs=0)
    before = [p.detach().clone() for p in agent.policy.parameters()]
    agent.learn(4 * ENVS * 32, progress_bar=False)
    assert agent.num_timesteps == 4 * ENVS * 32
    assert not all(map(torch.equal, before, agent.policy.parameters()))
    assert max(agent.training.recent_lengths) == LIMIT
    assert f"{ENVS} in tensors on cpu" in agent.env.choice
