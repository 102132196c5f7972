"""Evaluations: exact returns, seeds by episode number, masks, environments of every kind."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from toy_environments import TERMINATED, TRUNCATED, Masked, Scripted, Walk

from trpo_fast import TRPO
from trpo_fast.agent.actor import Actor
from trpo_fast.agent.evaluation import episode_seed, run_episodes
from trpo_fast.agent.evaluation_factories import _rendering_factory, environment_factory
from trpo_fast.environments.make import make_vector_env
from trpo_fast.networks.mlp import MlpPolicy


def zeros(observations, masks):
    return [0 for _ in observations]


def walk_toward_origin(observations, masks):
    return [np.clip(-o, -1, 1).astype(np.float32) for o in observations]


def test_returns_and_lengths_are_those_of_whole_episodes():
    result = run_episodes(
        zeros, lambda: Scripted(((3, TERMINATED), (2, TRUNCATED))), 3, seed=0, parallel=1
    )
    assert result.returns == (1 + 2 + 3, 11 + 12, 21 + 22 + 23)
    assert result.lengths == (3, 2, 3)
    assert result.mean == pytest.approx(np.mean([6, 23, 66]))
    assert result.std == pytest.approx(np.std([6, 23, 66]))
    assert result.mean_length == pytest.approx(8 / 3)


@pytest.mark.parametrize("parallel", [1, 2, 5, 16])
def test_scores_do_not_depend_on_how_many_run_side_by_side(parallel):
    results = [run_episodes(walk_toward_origin, Walk, 7, seed=3, parallel=p) for p in (7, parallel)]
    assert results[0] == results[1]
    assert len(set(results[0].returns)) == 7


def test_each_episode_has_its_own_seed():
    seeds = {episode_seed(seed, n) for seed in range(3) for n in range(50)}
    assert len(seeds) == 150
    assert max(seeds) < 2**31
    env = Scripted(((1, TERMINATED),))
    run_episodes(zeros, lambda: env, 3, seed=9, parallel=1)
    assert env.seeds == [episode_seed(9, n) for n in range(3)]


def test_environments_are_closed_also_after_an_error():
    closed = []

    class Closing(Scripted):
        def close(self):
            closed.append(1)

    def fail(observations, masks):
        raise RuntimeError("policy")

    with pytest.raises(RuntimeError, match="policy"):
        run_episodes(fail, Closing, 3, seed=0)
    assert len(closed) == 3


@pytest.mark.parametrize("episodes", [0, -1, 1.5, "3", None])
def test_no_number_of_episodes_is_a_mistake(episodes):
    with pytest.raises(ValueError, match=f"whole number >= 1 of episodes, got {episodes!r}"):
        run_episodes(zeros, Scripted, episodes, seed=0)


@pytest.mark.parametrize("place", ["info", "method", "observation"])
def test_masks_are_obeyed_wherever_they_come_from(place):
    env = make_vector_env(lambda: Masked(place), num_envs=1, seed=0)
    policy = MlpPolicy(env.observation_space, env.action_space, (8,))
    actor = Actor(policy, env.observation_space, env.action_space, None)

    def act(observations, masks):
        return actor.act_each(observations, masks, deterministic=True)[0]

    # The environment raises on a masked action.
    result = run_episodes(act, lambda: Masked(place), 4, seed=0)
    assert result.returns == (5.0,) * 4


def test_factories_for_every_kind_of_environment():
    made = [
        environment_factory("CartPole-v1", {})(),
        environment_factory("CartPole-v1", {"render_mode": "rgb_array"})(),
        environment_factory(gymnasium.make("CartPole-v1"), {})(),
        environment_factory(lambda length: Walk(length=length), {"length": 3})(),
        environment_factory(gymnasium.spec("CartPole-v1"), {"render_mode": "rgb_array"})(),
    ]
    assert made[4].render_mode == "rgb_array"
    assert made[0].spec.id == made[2].spec.id == "CartPole-v1"
    assert made[1].render_mode == "rgb_array"
    assert made[3].length == 3
    with pytest.raises(ValueError, match="pass env="):
        environment_factory(Walk(), {})


@pytest.mark.parametrize("mode", ["sync", "async", "vector_entry_point"])
@pytest.mark.parametrize("number", [1, 2])
def test_a_vector_of_gymnasiums_says_how_one_of_its_environments_is_made(mode, number):
    limit = {"max_episode_steps": 7}
    vector = gymnasium.make_vec("CartPole-v1", number, vectorization_mode=mode, **limit)
    try:
        env = environment_factory(vector, {})()
        env.reset(seed=0)
        assert [env.step(0)[3] for _ in range(7)] == [False] * 6 + [True]
        env.close()
        rendering = _rendering_factory(vector, {})()
        assert rendering.render_mode == "rgb_array"
        rendering.close()
    finally:
        vector.close()


def test_the_wrappers_of_a_vector_of_gymnasiums_are_put_around_each():
    vector = gymnasium.make_vec(
        "CartPole-v1",
        2,
        vectorization_mode="sync",
        vector_kwargs={"copy": False},
        wrappers=[gymnasium.wrappers.TimeAwareObservation],
    )
    env = environment_factory(vector, {})()
    assert env.observation_space == vector.single_observation_space
    assert env.observation_space.shape == (5,)
    with TRPO(vector, seed=0, rollout_steps=16) as agent:
        agent.learn(64, progress_bar=False)
        mean, _ = agent.evaluate(2)
    assert mean > 1
