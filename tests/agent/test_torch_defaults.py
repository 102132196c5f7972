"""torch's default dtype and device belong to the program, not to the agent."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from agent_cases import SMALL, small, weights
from gymnasium import spaces

from trpo_fast.agent.agent import TRPO
from trpo_fast.networks.mlp import MlpPolicy
from trpo_fast.runs.checkpoint import CheckpointError


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


KINDS = (torch.float32, torch.float64)


@pytest.mark.reliability("saved_dtype")
@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize(("saved", "loaded"), [KINDS, KINDS[::-1]])
def test_an_agent_keeps_its_dtype_and_its_bits(
    env: str, saved: torch.dtype, loaded: torch.dtype, tmp_path: Path
) -> None:
    with default_dtype(saved), small(env) as agent:
        agent.learn(128, progress_bar=False)
        path = agent.save(tmp_path / "a")
        agent.learn(128, progress_bar=False)
        score = agent.evaluate(2)
    with default_dtype(loaded), TRPO.load(path) as again:
        assert next(again.policy.parameters()).dtype is saved
        assert next(again.value_function.parameters()).dtype is saved
        again.learn(128, progress_bar=False)
        assert torch.equal(weights(again), weights(agent))
        assert again.evaluate(2) == score
        assert torch.get_default_dtype() is loaded


@pytest.mark.reliability("saved_dtype")
def test_a_module_of_another_dtype_is_refused(tmp_path: Path) -> None:
    shown, taken = spaces.Box(-1, 1, (4,)), spaces.Discrete(2)
    with small(policy=MlpPolicy(shown, taken, (8,)).double()) as agent:
        agent.learn(64, progress_bar=False)
        path = agent.save(tmp_path / "a")
    with pytest.raises(CheckpointError, match=r"policy is torch.float64, here it is torch.float32"):
        TRPO.load(path, policy=MlpPolicy(shown, taken, (8,)))
    with TRPO.load(path, policy=MlpPolicy(shown, taken, (8,)).double()) as again:
        # The other network, made here, is float32 as it was.
        assert torch.equal(weights(again).float(), weights(agent).float())
        assert next(again.value_function.parameters()).dtype is torch.float32


@pytest.mark.reliability("default_device")
@pytest.mark.parametrize("way", ["set_default_device", "with"])
@pytest.mark.parametrize(
    ("env", "options"),
    [
        ("CartPole-v1", {}),
        ("Pendulum-v1", {"preconditioner": "kfac", "state_dependent_std": True}),
        ("Pendulum-v1", {"relative_damping": True, "backend": "reference"}),
    ],
)
def test_another_default_device_changes_nothing(
    way: str, env: str, options: dict[str, Any], tmp_path: Path
) -> None:
    """The meta device holds no numbers: what is made there by mistake fails at once."""

    def run(path: Path) -> tuple[torch.Tensor, tuple[float, float]]:
        with small(env, **options) as agent:
            agent.learn(64, progress_bar=False)
            agent.save(path)
        with TRPO.load(path, num_envs=SMALL["num_envs"]) as again:
            again.learn(64, progress_bar=False)
            again.predict(again.observation_space.sample())
            return weights(again), again.evaluate(2)

    expected = run(tmp_path / "a")
    if way == "with":
        with torch.device("meta"):
            found = run(tmp_path / "b")
    else:
        torch.set_default_device("meta")
        try:
            found = run(tmp_path / "b")
        finally:
            torch.set_default_device(None)
    assert torch.equal(found[0], expected[0])
    assert found[1] == expected[1]
