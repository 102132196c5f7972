"""What an environment is made with comes back exactly from a file, or is refused in words."""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pytest
from agent_cases import small
from toy_environments import Walk

from trpo_fast import cli
from trpo_fast.agent.agent import TRPO
from trpo_fast.agent.config import ConfigError
from trpo_fast.agent.portable import NotPortable, from_json, same, to_json
from trpo_fast.runs.checkpoint import CheckpointError, load_checkpoint, save_checkpoint

VALUES: list[Any] = [
    (0.7, math.inf),
    ((1, 2), [3, (4,)]),
    {3, 1, 2},
    frozenset({(1, "a")}),
    {1: "one", (2, 3): None, "$x": {"$tensor": 1}},
    {"$tuple": [1]},
    math.nan,
    -0.0,
    0.1,
    2**80,
    complex(1, math.inf),
    Path("models/robot.xml"),
    b"\x00\xff",
    "text \udcff",
    True,
    None,
    np.float32(0.1),
    np.float64(math.nan),
    np.int8(-3),
    np.bool_(True),
    np.str_("name"),
    np.datetime64("2024-02-29"),
    np.arange(6.0).reshape(2, 3),
    np.array([1, 2], ">i4"),
    np.array(3.5, np.float32),
    np.empty((0, 4), np.uint8),
    np.array([True, False]),
]


def identical(a: Any, b: Any) -> bool:
    """The same types and bits all the way down."""
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray | np.generic):
        return (a.dtype, np.shape(a), a.tobytes()) == (b.dtype, np.shape(b), b.tobytes())
    if isinstance(a, dict):
        return list(map(repr, a)) == list(map(repr, b)) and all(identical(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(identical, a, b))
    return repr(a) == repr(b) if isinstance(a, float | complex) else bool(a == b)


@pytest.mark.reliability("env_kwargs")
@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_values_come_back_as_they_were(value: Any) -> None:
    text = json.dumps(to_json({"deep": [value]}, "env_kwargs"), allow_nan=False)
    assert identical(from_json(json.loads(text)), {"deep": [value]})
    assert same(value, from_json(json.loads(text))["deep"][0])
    assert not same(value, [value])


class Number(int):
    pass


class Pair(NamedTuple):
    a: int
    b: int


@pytest.mark.reliability("env_kwargs_refused")
@pytest.mark.parametrize(
    "value",
    [
        object(),
        len,
        Number(3),
        Pair(1, 2),
        OrderedDict(a=1),
        PureWindowsPath("x"),
        np.array([None]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_would_come_back_as_something_else_is_named(value: Any) -> None:
    with pytest.raises(NotPortable, match=rf"env_kwargs\['a'\]\[1\] is a .*{type(value).__name__}"):
        to_json({"a": [0, value]}, "env_kwargs")


@pytest.mark.parametrize(
    "node",
    [
        {"$numpy": ["|O", [1], "AAAAAAAAAAA="]},
        {"$numpy": ["<f8", [3], "AAAA"]},
        {"$numpy": ["<f8", [-1, -1], "AAAAAAAAAAA="]},
        {"$float": "__import__('os')"},
        {"$bytes": "?"},
        {"$unknown": 1},
        {"$set": [[1]]},
        {"$dict": [[1]]},
        {"$path": 3},
        {"$tuple": 3},
    ],
    ids=str,
)
def test_a_file_of_somebody_else_makes_no_value(node: Any) -> None:
    with pytest.raises(ValueError, match="stands for no value"):
        from_json(node)


class Told(Walk):
    """Remembers what it was made with."""

    last: Any = None

    def __init__(self, given: Any = None, other: int = 0) -> None:
        super().__init__()
        Told.last = given, other


gym.register("Told-v0", entry_point=Told)


@pytest.mark.reliability("env_kwargs")
@pytest.mark.parametrize(
    "value", [(0.7, math.inf), np.float32(0.1), Path("a"), np.arange(3)], ids=repr
)
def test_load_eval_and_resume_make_the_same_environment(value: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    kwargs = {"given": value, "other": 3}
    with small("Told-v0", env_kwargs=kwargs, run_dir=run) as agent:
        agent.learn(64, progress_bar=False)
    json.loads((run / "config.json").read_text())
    file = next((run / "checkpoints").glob("step-*"))

    def made_again() -> bool:
        found, Told.last = Told.last, None
        return identical(list(found), [value, 3])

    assert made_again()
    with TRPO.load(file) as loaded:
        assert identical(loaded.config.env_kwargs, kwargs)
        assert made_again()
    # The same value again changes nothing.
    with TRPO.load(file, env_kwargs=kwargs) as loaded:
        assert loaded.training.pending_collector is not None
    assert cli.main(["eval", str(run), "--episodes", "1"]) == 0
    assert made_again()
    resume = ["train", "Told-v0", "--total-steps", "128", "--run-dir", str(run), "--resume"]
    assert cli.main([*resume, "--quiet"]) == 0
    assert made_again()


@pytest.mark.reliability("env_kwargs_refused")
def test_what_no_file_can_hold_is_refused_when_the_run_begins(tmp_path: Path) -> None:
    kwargs = {"given": object()}
    with small("Told-v0", env_kwargs=kwargs) as agent:
        agent.learn(64, progress_bar=False)  # nothing is written: nothing is lost
        with pytest.raises(
            ConfigError, match=r"env_kwargs\['given'\] is a builtins.object.*functi"
        ):
            agent.save(tmp_path / "a")
    with small("Told-v0", env_kwargs=kwargs, run_dir=tmp_path / "run") as agent:
        with pytest.raises(ConfigError, match=r"env_kwargs\['given'\] is a builtins.object.*env="):
            agent.learn(64, progress_bar=False)
        assert agent.num_timesteps == 0
    assert not (tmp_path / "run").exists()


def test_a_damaged_value_in_a_checkpoint_is_named(tmp_path: Path) -> None:
    with small("Told-v0") as agent:
        path = agent.save(tmp_path / "a")
    state = load_checkpoint(path)
    state["config"]["env_kwargs"] = {"given": {"$numpy": ["|O", [1], ""]}}
    save_checkpoint(path, state)
    with pytest.raises(CheckpointError, match=r"cannot be used: \$numpy with"):
        TRPO.load(path)


@pytest.mark.reliability("env_kwargs")
def test_hoppers_own_range_is_kept(tmp_path: Path) -> None:
    pytest.importorskip("mujoco")
    kwargs = {"healthy_z_range": (0.2, math.inf), "terminate_when_unhealthy": False}
    with small("Hopper-v5", env_kwargs=kwargs, vectorization="sync") as agent:
        path = agent.save(tmp_path / "a")
    with TRPO.load(path) as loaded:
        assert loaded.env.vector.envs[0].unwrapped._healthy_z_range == (0.2, math.inf)
        assert loaded.evaluate(1) == agent.evaluate(1)
