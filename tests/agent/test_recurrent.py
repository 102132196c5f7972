"""The agent with a recurrent policy: what it remembers, and when it forgets."""

from __future__ import annotations

from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from agent_cases import small, weights
from gymnasium import spaces
from structured_cases import Pictures
from torch.nn.utils import parameters_to_vector
from toy_environments import BOTH, TERMINATED, TRUNCATED, Scripted

from trpo_fast import TRPO, RecurrentPolicy, RecurrentValueFunction, ValueFunction
from trpo_fast.agent.config import ConfigError
from trpo_fast.agent.recurrence import Numbered, RecurrentCritic, numbered
from trpo_fast.runs.checkpoint import CheckpointError, load_checkpoint, save_checkpoint

SIZES = {"policy": "recurrent", "cell_size": 5}


def scripted():
    return Scripted(((3, TERMINATED), (5, TRUNCATED), (2, BOTH), (40, TRUNCATED)))


def collected(agent, steps=16):
    return agent.collector.collect(agent.policy, agent.learner.normalizer, steps, agent.rng)


def by_hand(agent, rollout):
    """Log-probabilities and value states of a rollout, an environment and a step at a time."""
    policy, value, shown = agent.policy, agent.value_function, agent.learner.as_shown(rollout)
    steps, envs = rollout.rewards.shape
    logs, values = torch.zeros(steps, envs), torch.zeros(steps, envs)
    size = policy.trunk.size
    with torch.no_grad():
        for env in range(envs):
            memory = rollout.memory[env : env + 1].split(size, 1)
            own = value.initial_memory(1)
            for t in range(steps):
                if rollout.starts[t, env]:
                    memory, own = policy.initial_memory(1), value.initial_memory(1)
                obs = shown.observations[t, env][None]
                chosen, memory = policy.step(obs, memory)
                values[t, env], own = value.step(obs, own)
                logs[t, env] = chosen.log_prob(rollout.actions[t, env])
    return logs, values


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_the_memory_is_carried_from_step_to_step_and_over_rollouts(cell):
    with small(scripted, cell=cell, num_envs=2, **SIZES) as agent:
        first = collected(agent)
        assert first.starts[0].all()
        assert not first.memory.any()
        logs, _ = by_hand(agent, first)
        torch.testing.assert_close(first.log_probs, logs)
        second = collected(agent)
        # the script: episodes of 3, 5, 2 and 40 steps
        assert first.starts[:, 0].nonzero().flatten().tolist() == [0, 3, 8, 10]
        assert not second.starts[0].any()
        assert second.memory.abs().min(1).values.gt(0).all()
        torch.testing.assert_close(second.log_probs, by_hand(agent, second)[0])


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_the_ratio_is_one_at_the_start_of_an_update(cell):
    with small(scripted, cell=cell, **SIZES) as agent:
        optimizer, seen = agent.optimizer, []
        plain = optimizer.step

        def step(closure):
            with torch.no_grad():
                loss, distribution = closure()
            seen.append((float(loss), distribution))
            return plain(closure)

        optimizer.step = step
        learner, rollout = agent.learner, collected(agent)
        learner.update(rollout, agent.rng)
        ((loss, distribution),) = seen
        # the advantages have mean 0: the loss is that exactly where every ratio is 1
        assert abs(loss) < 1e-8
        replayed = distribution.log_prob(rollout.select(rollout.actions))
        torch.testing.assert_close(replayed, rollout.select(rollout.log_probs))


def test_values_are_those_of_the_sequences_and_of_where_they_stopped():
    with small(scripted, num_envs=2, **SIZES) as agent:
        learner, rollout = agent.learner, collected(agent)
        shown = learner.as_shown(rollout)
        values, last, final = learner._bootstrap(shown)
        torch.testing.assert_close(values, by_hand(agent, rollout)[1])
        # where the second episode was truncated: one more step, from its own memory
        value, size = agent.value_function, agent.value_function.trunk.size
        memory = value.initial_memory(1)
        with torch.no_grad():
            for t in range(3, 8):
                _, memory = value.step(shown.observations[t, 0][None], memory)
            stopped, _ = value.step(shown.final_observations[:1], memory)
            torch.testing.assert_close(final[7, 0], stopped[0])
            memory = value.initial_memory(1)
            for t in range(10, 16):
                _, memory = value.step(shown.observations[t, 0][None], memory)
            after, _ = value.step(shown.last_observations[:1], memory)
        torch.testing.assert_close(last[0], after[0])
        torch.testing.assert_close(learner.recurrence.memory[:1], torch.cat(memory, 1))
        assert size == 5


@pytest.mark.parametrize("mode", list(gym.vector.AutoresetMode))
def test_sequences_end_with_their_episodes_in_every_convention(mode):
    """NEXT_STEP has rows that only reset, which belong to none."""
    vector = gym.vector.SyncVectorEnv([scripted] * 2, autoreset_mode=mode)
    with TRPO(vector, rollout_steps=16, seed=0, hidden_sizes=(4,), **SIZES) as agent:
        rollout = collected(agent)
        rows = numbered(rollout)
        lengths = np.bincount(rows.sequence).tolist()
        resets = 0 if mode != gym.vector.AutoresetMode.NEXT_STEP else 3
        assert sorted(lengths) == sorted([3, 5, 2, 16 - 10 - resets] * 2)
        assert (rows.of[~rollout.valid.numpy()] == -1).all()
        assert rows.begins.all()
        for number in range(len(lengths)):
            steps = rows.step[rows.sequence == number]
            assert sorted(steps) == list(range(lengths[number]))
        torch.testing.assert_close(
            rollout.log_probs[rollout.valid], by_hand(agent, rollout)[0][rollout.valid]
        )


@pytest.mark.parametrize("env", ["CartPole-v1", Pictures])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_loaded_agent_goes_on_bit_for_bit(tmp_path, env, cell):
    def learnt(agent, steps):
        agent.learn(steps, progress_bar=False)
        return agent

    options = {"cell": cell, **SIZES}
    with learnt(small(env, **options), 192) as whole:
        with learnt(small(env, **options), 64) as half:
            path = half.save(tmp_path / "half")
        with learnt(TRPO.load(path, env), 128) as loaded:
            assert torch.equal(weights(loaded), weights(whole))
            memories = [a.collector.state()["memory"] for a in (loaded, whole)]
            assert np.array_equal(*memories)
            assert torch.equal(loaded.learner.recurrence.memory, whole.learner.recurrence.memory)
        with TRPO.load(path, env, num_envs=3) as other:  # their memory begins anew
            learnt(other, 96)


def test_an_interrupted_rollout_begins_again_with_its_memory():
    options = {"num_envs": 1, **SIZES}
    with small(**options) as agent, small(**options) as other:
        for each in (agent, other):
            each.learn(32, progress_bar=False)

        class Stop(Exception):  # noqa: N818
            pass

        plain, count = agent.env.step, [0]

        def step(*arguments):
            count[0] += 1
            if count[0] == 5:
                raise Stop
            return plain(*arguments)

        agent.env.step = step
        with pytest.raises(Stop):
            agent.learn(32, progress_bar=False)
        agent.env.step = plain
        for each in (agent, other):
            each.learn(32, progress_bar=False)
        assert torch.equal(weights(agent), weights(other))


def test_predict_hands_the_state_on_as_stable_baselines3_does():
    with small(**SIZES) as agent:
        obs = np.random.default_rng(0).normal(size=(3, 4, 4)).astype(np.float32)  # [t, env, :]
        _, state = agent.predict(obs[0])
        assert [part.shape for part in state] == [(1, 4, 5), (1, 4, 5)]
        fresh = np.array([False, True, False, False])
        _, carried = agent.predict(obs[1], state, fresh)
        _, zero = agent.predict(obs[1])
        np.testing.assert_array_equal(carried[0][:, 1], zero[0][:, 1])
        assert (carried[0][:, 0] != zero[0][:, 0]).any()
        # one by one it is the same
        _, single = agent.predict(obs[0, 2])
        action, single = agent.predict(obs[1, 2], single, np.array([False]))
        np.testing.assert_allclose(single[1][:, 0], carried[1][:, 2], atol=1e-6)
        assert action in (0, 1)
        _, again = agent.predict(obs[1, 2], single, np.array([True]))
        np.testing.assert_allclose(again[0][:, 0], zero[0][:, 2], atol=1e-6)
        with pytest.raises(ValueError, match=r"state has arrays of shapes .* expected 2 of"):
            agent.predict(obs[0], single)
        with pytest.raises(ValueError, match="episode_start of 2 entries for 4"):
            agent.predict(obs[0], state, [True, False])


class Recall(gym.Env):
    """A cue at the first step, asked for at the last: nobody without a memory can know it."""

    observation_space = spaces.Box(-1, 1, (2,))
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.cue, self.time = int(self.np_random.integers(2)), 0
        return np.array([2 * self.cue - 1, 0], np.float32), {}

    def step(self, action):
        self.time += 1
        over = self.time == 4
        shown = np.array([0, self.time == 3], np.float32)
        return shown, float(over and action == self.cue), over, False, {}


@pytest.mark.slow
def test_it_learns_what_only_a_memory_can_know():
    options = {"seed": 0, "num_envs": 8, "rollout_steps": 64, "hidden_sizes": (16,)}
    with TRPO(Recall, policy="recurrent", cell="gru", cell_size=16, **options) as agent:
        agent.learn(8_000, progress_bar=False)
        assert agent.evaluate(40, progress_bar=False)[0] > 0.95


def test_stable_baselines3_evaluates_it():
    evaluation = pytest.importorskip("stable_baselines3.common.evaluation")
    monitor = pytest.importorskip("stable_baselines3.common.monitor")
    with small(**SIZES) as agent:
        env = monitor.Monitor(gym.make("CartPole-v1"))
        mean, _ = evaluation.evaluate_policy(agent, env, 3)
        assert 5 < mean < 500


def test_a_memory_is_for_both_or_for_the_policy_alone():
    space, actions = spaces.Box(-1, 1, (4,)), spaces.Discrete(2)
    with pytest.raises(ConfigError, match="has a memory and the policy has none"):
        small(policy="multi_input", value_function=RecurrentValueFunction(space))
    own = RecurrentPolicy(space, actions, (8,), cell_size=4)
    with pytest.raises(ConfigError, match="takes structured observations"):
        small(policy=own, value_function=ValueFunction(space))
    with small(policy=own) as agent:
        assert isinstance(agent.value_function, RecurrentValueFunction)
        agent.learn(64, progress_bar=False)


def test_a_cell_of_a_size_that_the_file_has_not_is_refused(tmp_path):
    with small(**SIZES) as agent:
        path = agent.save(tmp_path / "small")
    state = load_checkpoint(path)
    state["config"]["cell_size"] = 10**6
    with pytest.raises(CheckpointError, match=r"cell_size is of 1000000000000 numbers or more"):
        TRPO.load(save_checkpoint(path, state))


def test_rows_of_a_sequence_are_numbered():
    starts = torch.tensor([[1, 0], [0, 0], [1, 0], [0, 1]], dtype=torch.bool)
    valid = torch.tensor([[1, 1], [1, 1], [1, 0], [1, 1]], dtype=torch.bool)
    rows = numbered(SimpleNamespace(starts=starts, valid=valid))
    assert rows.of.tolist() == [[0, 1], [0, 1], [2, -1], [2, 3]]
    assert rows.step.tolist() == [0, 0, 1, 1, 0, 1, 0]
    assert rows.begins.tolist() == [True, False, True, True]
    assert rows.env.tolist() == [0, 1, 0, 1]
    memory = rows.first(torch.tensor([[5.0], [7.0]]))
    assert memory.tolist() == [[0], [7], [0], [0]]


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_a_return_that_is_not_finite_leaves_out_its_row_alone(bad):
    sequence, step = np.repeat(np.arange(5), 4), np.tile(np.arange(4), 5)
    rows = Numbered(sequence, step, sequence, np.ones(5, bool), np.arange(5))
    value = RecurrentValueFunction(spaces.Box(-1, 1, (3,)), (8,), cell_size=4)
    critic = RecurrentCritic(value, learning_rate=1e-2, epochs=2, batch_size=64)
    critic.begin(rows, torch.zeros(5, 8))
    observations, returns = torch.randn(20, 3), torch.randn(20)
    returns[3] = bad
    before = parameters_to_vector(value.parameters()).clone()
    fit = critic.fit(observations, returns, np.random.default_rng(0))
    assert fit.skipped_rows == 1
    assert fit.loss is not None
    assert not torch.equal(before, parameters_to_vector(value.parameters()))
