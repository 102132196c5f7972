"""The torch environments that other tests train on, beside gymnasium's, step for step."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from tensor_environments import TensorCartPole, TensorEnvironment, TensorPendulum, VecEnv

IDS = {"CartPole-v1": TensorCartPole, "Pendulum-v1": TensorPendulum}
# torch's vectorised sine is within an ulp of libm's: float64 states drift by a few ulps a step,
# and so do the observations, which are rounded from them to float32.
# In float32 the start states are already rounded; see `test_float32_follows_for_a_while`.
DRIFT = 1e-9


def _draw(env: TensorEnvironment, generator: torch.Generator) -> torch.Tensor:
    if isinstance(env, TensorCartPole):
        return torch.randint(0, 2, (env.num_envs,), generator=generator)
    # Past both bounds at times, where the torque is clipped.
    return 2.0 * torch.randn(env.num_envs, 1, generator=generator)


def _place(peer: Any, state: torch.Tensor) -> None:
    peer.reset()
    peer.unwrapped.state = state.double().numpy().copy()


@pytest.mark.parametrize("env_id", IDS)
def test_every_step_is_gymnasiums(env_id: str) -> None:
    env = IDS[env_id](3, seed=1)
    peers = [gymnasium.make(env_id) for _ in range(env.num_envs)]
    for peer, state in zip(peers, env.state, strict=True):
        _place(peer, state)
    generator, ends = torch.Generator().manual_seed(2), 0
    for _ in range(450):
        actions = _draw(env, generator)
        obs, reward, terminated, truncated, info = env.step(actions)
        for row, peer in enumerate(peers):
            seen, earned, fell, cut, _ = peer.step(actions[row].numpy())
            assert info["final_obs"][row].numpy() == pytest.approx(seen, rel=1e-6, abs=DRIFT)
            assert float(reward[row]) == pytest.approx(float(earned), rel=1e-9, abs=DRIFT)
            assert (bool(terminated[row]), bool(truncated[row])) == (fell, cut)
            assert bool(info["_final_obs"][row]) == (fell or cut)
            if fell or cut:
                ends += 1
                _place(peer, env.state[row])
            else:
                assert env.state[row].numpy() == pytest.approx(peer.unwrapped.state, abs=DRIFT)
                assert torch.equal(obs[row], info["final_obs"][row])
    assert ends >= 2 * env.num_envs


@pytest.mark.parametrize("env_id", IDS)
def test_float32_follows_for_a_while(env_id: str) -> None:
    exact = IDS[env_id](64, seed=3)
    single = IDS[env_id](64, seed=3, dtype=torch.float32)
    single.state = exact.state.float()
    generator = torch.Generator().manual_seed(4)
    for _ in range(8):  # no pole falls in so few steps
        actions = _draw(exact, generator)
        exact.step(actions)
        _, reward, *_ = single.step(actions)
        assert reward.dtype == single.state.dtype == torch.float32
        # Roundings of 6e-8 relative, of values up to 8, eight times.
        torch.testing.assert_close(single.state.double(), exact.state, rtol=1e-5, atol=1e-5)


def test_cartpole_is_truncated_at_500_steps_and_pendulum_at_200() -> None:
    for env in (TensorCartPole(5), TensorPendulum(5)):
        before = env.limit - 1
        env.elapsed = torch.tensor([0, before, before - 1, 3, before])
        actions = _draw(env, torch.Generator().manual_seed(1))
        obs, _, terminated, truncated, info = env.step(actions)
        assert truncated.tolist() == [False, True, False, False, True]
        assert not terminated.any()
        assert env.elapsed.tolist() == [1, 0, before, 4, 0]
        assert torch.equal(info["_final_obs"], truncated)
        changed = (obs != info["final_obs"]).any(1)
        assert torch.equal(changed, truncated)


@pytest.mark.parametrize("env_id", IDS)
def test_spaces_and_start_states_are_gymnasiums(env_id: str) -> None:
    env, peer = IDS[env_id](2000), gymnasium.make(env_id)
    assert env.single_observation_space == peer.observation_space
    assert env.single_action_space == peer.action_space
    starts = np.stack([(peer.reset(seed=k), peer.unwrapped.state)[1] for k in range(200)])
    width = starts.max(0) - starts.min(0)
    for found, bound in ((env.state.min(0), starts.min(0)), (env.state.max(0), starts.max(0))):
        assert np.abs(found.values.numpy() - bound).max() < 0.05 * width.max()


def test_seeds_repeat_and_differ() -> None:
    first, again, other = TensorPendulum(4, seed=7), TensorPendulum(4, seed=7), TensorPendulum(4)
    assert torch.equal(first.state, again.state)
    assert not torch.equal(first.state, other.state)
    other.reset(seed=7)
    assert torch.equal(first.state, other.state)


def test_actions_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(4,\), not \(4, 1\)"):
        TensorPendulum(4).step(torch.zeros(4))


def test_the_vec_env_face_says_time_outs_apart_from_falls() -> None:
    pytest.importorskip("tensordict", reason="tensordict is not installed: pip install '.[test]'")
    env = VecEnv(TensorCartPole(3), privileged=True)
    env.episode_length_buf = torch.tensor([499, 499, 0])
    env.env.state[1, 0] = 2.5  # fallen, and out of time as well
    obs, reward, dones, extras = env.step(torch.tensor([[0.3], [-0.2], [5.0]]))
    assert dones.tolist() == [True, True, False]
    assert extras["time_outs"].tolist() == [True, False, False]
    assert reward.dtype == torch.float32
    assert set(obs.keys()) == {"policy", "privileged"}
    assert obs["policy"].shape == (3, 4)
    assert torch.equal(obs["policy"], env.get_observations()["policy"])
    assert env.episode_length_buf.tolist() == [0, 0, 1]
