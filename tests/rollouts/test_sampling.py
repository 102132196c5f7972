"""Actions drawn from given noise follow the policy's distribution, natively as in torch."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from toy_environments import Scripted
from update_cases import HYBRID_SPACE

from trpo_fast import _native
from trpo_fast.environments.flattening import action_converter
from trpo_fast.environments.make import make_vector_env
from trpo_fast.environments.nested_actions import ActionNesting, is_nested_space
from trpo_fast.networks.head import Head, Outputs
from trpo_fast.networks.heads import (
    BernoulliHead,
    CategoricalHead,
    GaussianHead,
    MultiCategoricalHead,
    StateStdGaussianHead,
)
from trpo_fast.networks.mlp import MlpPolicy
from trpo_fast.networks.network import Network
from trpo_fast.recognition.recognizer import network_of
from trpo_fast.rollouts import samplers
from trpo_fast.rollouts.collector import RolloutCollector
from trpo_fast.rollouts.normalization import ObservationNormalizer
from trpo_fast.rollouts.rollout import Recording
from trpo_fast.rollouts.samplers import NativeSampler, NetworkSampler

N = 200_000


def noise_of(head: Head, rows: int = N) -> torch.Tensor:
    return torch.from_numpy(head.noise(np.random.default_rng(0), 1, rows, double=False)[0])


def within(observed: torch.Tensor, expected: torch.Tensor, deviation: torch.Tensor) -> None:
    """Means of N draws lie within 5 standard errors (the seed is fixed)."""
    error = (observed - expected).abs() / (deviation / math.sqrt(N))
    assert float(error.max()) < 5


@pytest.mark.parametrize("kind", ["gaussian", "gaussian_state_std"])
def test_gaussian_moments(kind: str) -> None:
    mean, log_std = torch.tensor([1.0, -2.0, 0.0]), torch.tensor([-1.0, 0.5, 2.0])
    if kind == "gaussian":
        head: Head = GaussianHead(3)
        at = Outputs(mean.expand(N, 3), log_std)
    else:
        head = StateStdGaussianHead(3)
        at = Outputs(torch.cat([mean, log_std]).expand(N, 6))
    actions = head.draw(at, noise_of(head))
    assert actions.shape == (N, 3)
    std = log_std.exp()
    within(actions.mean(0), mean, std)
    within((actions - mean).square().mean(0), std**2, math.sqrt(2) * std**2)
    noise = (actions - mean) / std
    within((noise[:, 0] * noise[:, 1]).mean(), torch.tensor(0.0), torch.tensor(1.0))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_categorical_frequencies(masked: bool, dtype: torch.dtype) -> None:
    logits = torch.tensor([0.0, 2.0, -1.0, 1.0, -2000.0], dtype=dtype)
    mask = torch.tensor([True, False, True, True, False]) if masked else None
    head = CategoricalHead(5)
    rows = None if mask is None else mask.expand(N, 5)
    actions = head.draw(Outputs(logits.expand(N, 5), mask=rows), noise_of(head))
    assert actions.dtype == torch.int64
    assert actions.shape == (N, 1)
    one = Outputs(logits[None], mask=None if mask is None else mask[None])
    reference = head.distribution(one)
    probabilities = reference.probs[0]
    frequencies = torch.bincount(actions[:, 0], minlength=5) / N
    assert (frequencies[probabilities == 0] == 0).all()
    some = probabilities > 1e-30
    deviation = (probabilities * (1 - probabilities)).sqrt()
    within(frequencies[some], probabilities[some], deviation[some])


def test_multi_categorical_and_bernoulli_frequencies() -> None:
    blocks = MultiCategoricalHead((3, 2))
    logits = torch.tensor([0.0, 1.0, -1.0, 0.5, -0.5])
    actions = blocks.draw(Outputs(logits.expand(N, 5)), noise_of(blocks))
    for block, column in zip(logits.split([3, 2]), actions.unbind(-1), strict=True):
        p = block.softmax(-1)
        within(torch.bincount(column, minlength=len(p)) / N, p, (p * (1 - p)).sqrt())
    bits = BernoulliHead(2)
    logits = torch.tensor([-1.0, 2.0])
    actions = bits.draw(Outputs(logits.expand(N, 2)), noise_of(bits))
    assert set(actions.unique().tolist()) == {0.0, 1.0}
    p = logits.sigmoid()
    within(actions.mean(0), p, (p * (1 - p)).sqrt())


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-53])
def test_extreme_logits_and_a_single_choice_are_certain(uniform: float) -> None:
    head = CategoricalHead(3)
    noise = torch.full((1000, 1), uniform, dtype=torch.float64)
    logits = torch.tensor([[-1e4, 1e4, 0.0]]).expand(1000, 3)
    assert (head.draw(Outputs(logits), noise) == 1).all()
    only = torch.tensor([[False, True, False]]).expand(1000, 3)
    assert (head.draw(Outputs(torch.zeros(1000, 3), mask=only), noise) == 1).all()


SPACES: dict[str, spaces.Space[Any]] = {
    "box": spaces.Box(-1, 1, (3,), np.float32),
    "box, 2-D, double": spaces.Box(-0.5, 2, (2, 2), np.float64),
    "discrete": spaces.Discrete(5, start=4),
    "multi-discrete": spaces.MultiDiscrete([3, 2, 4]),
    "multi-binary": spaces.MultiBinary(3),
    "nested": HYBRID_SPACE,
}


CASES = [(name, False) for name in SPACES] + [("discrete", True), ("multi-discrete", True)]
CASES.append(("nested", True))


def both(
    name: str, dtype: torch.dtype, envs: int, *, masked: bool, far: float = 0.0, **options: Any
) -> list[Any]:
    """(recording, environments' actions, log-probabilities) of the native sampler and its twin.

    With ``far`` observations are float64, around that number.
    """
    space, steps, width = SPACES[name], 3, 7
    seeds = torch.Generator().manual_seed(0)
    observations = spaces.Box(-1, 1, (width,))
    policy = MlpPolicy(observations, space, (64, 20), generator=seeds, **options).to(dtype)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=seeds)
    normalizer = ObservationNormalizer((width,), clip=1.5)
    normalizer.observe(np.random.default_rng(0).normal(1 + far, 2, (40, width)))
    normalizer.commit()
    net = network_of(policy)
    assert isinstance(net, Network)
    source = np.random.default_rng(1)
    rows = source.normal(1 + far, 2, (steps + 1, envs, width))
    rows = rows if far else rows.astype(np.float32)
    masks = source.random((steps, envs, sum(net.head.nvec))) < 0.7
    masks[..., np.cumsum([0, *net.head.nvec[:-1]]) if masked else []] = True

    class Shaped(Scripted):
        action_space = space

    env = make_vector_env(Shaped, num_envs=envs, seed=0)
    found = []
    for kind in (NativeSampler, NetworkSampler):
        recording = Recording(env, steps)
        recording.observations = rows.copy()
        recording.masks = masks if masked else None
        rng = np.random.Generator(np.random.Philox(2))
        with torch.no_grad():
            sampler = kind(policy, normalizer, recording, space, net, rng)
            given = [np.array(sampler(t)) for t in range(steps)]
            found.append((recording.actions, np.stack(given), sampler.log_probs()))
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("envs", [1, 8, 100])
@pytest.mark.parametrize(("name", "masked"), CASES)
def test_the_native_step_is_its_torch_twin(
    name: str, envs: int, dtype: torch.dtype, masked: bool
) -> None:
    compare(both(name, dtype, envs, masked=masked), name, dtype)


@pytest.mark.parametrize(
    "options",
    [{"distribution": "squashed"}, {"distribution": "beta"}, {"state_dependent_std": True}],
    ids=str,
)
@pytest.mark.parametrize("name", ["box", "nested"])
def test_the_native_step_serves_every_distribution(name: str, options: dict[str, Any]) -> None:
    compare(both(name, torch.float32, 8, masked=False, **options), name, torch.float32)


@pytest.mark.parametrize("options", [{"scale_actions": True}, {"distribution": "beta"}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["box", "box, 2-D, double"])
def test_the_environments_actions_are_the_policys_own_to_the_bit(
    name: str, dtype: torch.dtype, options: dict[str, Any]
) -> None:
    space = SPACES[name]
    policy = MlpPolicy(spaces.Box(-1, 1, (7,)), space, (4,), **options).to(dtype)
    actions, given, _ = both(name, dtype, 8, masked=False, **options)[0]
    expected = action_converter(policy, space)(actions.flatten(0, 1)).reshape(given.shape)
    assert np.array_equal(given, expected)
    assert given.dtype == space.dtype


@pytest.mark.reliability("clock")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("envs", [1, 8, 100])
def test_the_native_step_takes_the_mean_off_before_it_narrows(
    envs: int, dtype: torch.dtype
) -> None:
    found = both("box", dtype, envs, masked=False, far=1.7e9)
    compare(found, "box", dtype)
    assert found[0][0].std() > 0.1


def compare(found: list[Any], name: str, dtype: torch.dtype) -> None:
    (actions, given, log_probs), (expected, expected_given, expected_log_probs) = found
    rounding = 1e-5 if dtype == torch.float32 else 1e-12
    # Uniform noise at the very edge of a category may fall either way: at these seeds none does.
    torch.testing.assert_close(actions, expected, rtol=rounding, atol=rounding)
    np.testing.assert_allclose(given, expected_given, rtol=rounding, atol=rounding)
    assert given.dtype == expected_given.dtype
    assert given.shape == expected_given.shape
    space = SPACES[name]
    own = ActionNesting(space).one if is_nested_space(space) else np.asarray
    assert all(own(row) in space for step in given for row in step)
    torch.testing.assert_close(log_probs, expected_log_probs, rtol=10 * rounding, atol=rounding)


def test_the_number_of_threads_changes_no_bit() -> None:
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(both("box", torch.float32, 200, masked=False)[0])
    finally:
        torch.set_num_threads(before)
    for one, other in zip(*found, strict=True):
        assert np.array_equal(np.asarray(one), np.asarray(other))


def test_what_the_environments_are_given_is_never_written_again() -> None:
    kept: list[np.ndarray] = []

    class Keeping(Scripted):
        action_space = SPACES["box"]

        def step(self, action: Any) -> Any:
            kept.append(action)
            return super().step(action)

    collector = RolloutCollector(make_vector_env(Keeping, num_envs=2, seed=0))
    policy = MlpPolicy(collector.env.observation_space, collector.env.action_space, (4,))
    rng = np.random.Generator(np.random.Philox(0))
    first = collector.collect(policy, None, 4, rng)
    copies = [action.copy() for action in kept]
    second = collector.collect(policy, None, 4, rng)
    assert all(np.array_equal(a, b) for a, b in zip(copies, kept, strict=False))
    kept[0][:] = 7
    assert not (first.actions == 7).any()
    assert not torch.equal(first.actions, second.actions)


def test_without_the_native_module_the_same_noise_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for core in (_native.core, None):
        monkeypatch.setattr(samplers._native, "core", core)
        env = make_vector_env(Scripted, num_envs=2, seed=0)
        policy = MlpPolicy(
            env.observation_space, env.action_space, generator=torch.Generator().manual_seed(0)
        )
        rng = np.random.Generator(np.random.Philox(0))
        found.append(RolloutCollector(env).collect(policy, None, 10, rng))
    assert torch.equal(found[0].actions, found[1].actions)
    torch.testing.assert_close(found[0].log_probs, found[1].log_probs)
