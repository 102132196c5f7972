"""Evaluation is guarded as training is: endless episodes, NaN, masks, environments that fail."""

from __future__ import annotations

import math
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from agent_cases import small
from faulty_environments import Faulty
from gymnasium import spaces
from toy_environments import TERMINATED, Poisoned, Raising, Scripted, Walk

from trpo_fast import cli
from trpo_fast.agent import evaluation
from trpo_fast.agent.actor import Actor
from trpo_fast.agent.evaluation import run_episodes
from trpo_fast.agent.evaluation_factories import recording_factory
from trpo_fast.base.errors import EnvironmentFault, EnvironmentSetupError
from trpo_fast.networks.mlp import MlpPolicy


def zeros(observations: Any, masks: Any) -> Any:
    return [0 for _ in observations]


class Endless(Scripted):
    """Every other episode never ends by itself."""

    def step(self, action: Any) -> Any:
        observation, _, _, _, info = super().step(action)
        return observation, 1.0, self.episode % 2 == 0 and self.time == 3, False, info


@pytest.mark.reliability("endless_episodes")
def test_an_episode_without_end_is_stopped_counted_and_warned_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(evaluation, "REPORT_SECONDS", 0.0)
    lines: list[str] = []
    with pytest.warns(UserWarning, match=r"2 of 4 .* stopped after 50 steps .*eval_max_steps"):
        result = run_episodes(
            zeros, Endless, 4, seed=0, parallel=1, max_steps=50, report=lines.append
        )
    assert result.returns == (3.0, 50.0, 3.0, 50.0)
    assert result.lengths == (3, 50, 3, 50)
    assert result.cut_short == 2
    assert "evaluating: 1 of 4 episodes, the longest running at step 7" in lines


@pytest.mark.reliability("endless_episodes")
def test_training_and_the_command_get_past_episodes_without_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gym.register("Endless-v0", entry_point=Endless)
    options = {"eval_every": 64, "eval_episodes": 2, "eval_max_steps": 20, "eval_envs": 1}
    with (
        small("Endless-v0", run_dir=tmp_path / "r", **options) as agent,
        pytest.warns(UserWarning, match="1 of 2 evaluation episodes were stopped after 20"),
    ):
        agent.learn(64, progress_bar=False)
    assert agent.progress.best_evaluation == (3 + 20) / 2
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert cli.main(["eval", str(tmp_path / "r"), "--episodes", "2"]) == 0
    assert "1 of 2 evaluation episodes were stopped after 20" in capsys.readouterr().err


@pytest.mark.reliability("endless_episodes")
def test_ctrl_c_ends_an_evaluation_and_closes_its_environments() -> None:
    closed = []

    class Interrupting(Endless):
        def step(self, action: Any) -> Any:
            if self.time == 2:
                raise KeyboardInterrupt
            return super().step(action)

        def close(self) -> None:
            closed.append(self)

    with pytest.raises(KeyboardInterrupt):
        run_episodes(zeros, Interrupting, 3, seed=0)
    assert len(closed) == 3


@pytest.mark.reliability("evaluation_nan")
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e39])
def test_a_reward_that_is_no_number_is_a_fault(value: float) -> None:
    def make() -> Any:
        return Poisoned("reward", (1, 2), value=value)

    where = rf"evaluation episode 1, step 2: .* reward {value} \(action 0\)".replace("+", r"\+")
    with pytest.raises(EnvironmentFault, match=where) as caught:
        run_episodes(zeros, make, 3, seed=0, parallel=1)
    assert (caught.value.env_index, caught.value.step) == (0, 2)
    with pytest.warns(RuntimeWarning, match=r"episode 1, step 2.*The episode is left out"):
        result = run_episodes(zeros, make, 3, seed=0, parallel=1, on_fault="drop")
    assert result.returns == (1 + 2 + 3, 21 + 22 + 23)
    assert result.dropped == 1


@pytest.mark.reliability("evaluation_nan")
def test_an_observation_that_is_no_number_is_a_fault_or_dropped() -> None:
    env = Scripted()
    policy = MlpPolicy(env.observation_space, env.action_space, (4,))
    actor = Actor(policy, env.observation_space, env.action_space, None)

    def act(observations: Any, masks: Any) -> Any:
        return actor.act_each(observations, masks, deterministic=True)[0]

    def make() -> Any:
        return Poisoned("observation", (1, 2))

    with pytest.raises(EnvironmentFault, match=r"evaluation episode 1, step 2: .*nan"):
        run_episodes(act, make, 3, seed=0, parallel=1)
    with pytest.warns(RuntimeWarning, match="left out"):
        result = run_episodes(act, make, 3, seed=0, parallel=1, on_fault="drop")
    assert result.lengths == (3, 3)
    with (
        pytest.warns(RuntimeWarning, match="left out"),
        pytest.raises(EnvironmentFault, match=r"every episode .* dropped"),
    ):
        run_episodes(act, lambda: Poisoned("reward", (0, 1)), 1, seed=0, on_fault="drop")


@pytest.mark.reliability("best_evaluation")
def test_a_nan_never_is_the_best_evaluation(tmp_path: Path) -> None:
    with small(
        lambda: Faulty("reward", at=130, length=20), eval_every=64, run_dir=tmp_path
    ) as agent:
        agent.progress.best_evaluation = math.nan  # as an older version left it
        with pytest.raises(EnvironmentFault, match="reward"):
            agent.learn(512, progress_bar=False)
    with small(lambda: Walk(length=5), eval_every=64) as agent:
        agent.progress.best_evaluation = math.nan
        agent.learn(64, progress_bar=False)
        assert math.isfinite(agent.progress.best_evaluation)


@pytest.mark.reliability("evaluation_raises")
@pytest.mark.parametrize("at", [0, 2])
def test_an_environment_that_raises_is_named_with_episode_and_step(at: int) -> None:
    where = "reset" if at == 0 else "step"
    text = rf"evaluation episode 0, step {at}: .*ZeroDivisionError: broken on purpose in {where}"
    with pytest.raises(EnvironmentFault, match=text) as caught:
        run_episodes(zeros, lambda: Raising(at), 2, seed=0)
    assert caught.value.step == at
    assert "broken on purpose" in caught.value.traceback
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


@pytest.mark.reliability("evaluation_raises")
def test_the_command_tells_of_it_without_a_traceback_of_ours(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with small("Faulty-v0", run_dir=tmp_path / "r") as agent:
        agent.learn(64, progress_bar=False)
    state = agent.save(tmp_path / "a")
    from trpo_fast.runs.checkpoint import load_checkpoint, save_checkpoint

    saved = load_checkpoint(state)
    saved["config"]["env_kwargs"] = {"fault": "raise", "at": 2}
    save_checkpoint(state, saved)
    assert cli.main(["eval", str(state), "--episodes", "1"]) == 1
    said = capsys.readouterr().err
    assert "error: evaluation episode 0, step 2" in said
    assert "broken on purpose" in said
    assert "faulty_environments.py" in said
    # From the call of the environment on, not from the command on.
    assert said.count("Traceback") == 1
    assert "trpo_fast/command/" not in said
    assert "run_episodes" not in said


class Hinted(gym.Env[Any, Any]):
    """Gives `mask(time)` in its infos, whatever its actions are."""

    observation_space = spaces.Box(-1, 100, (1,), np.float32)

    def __init__(self, space: Any, masks: Any) -> None:
        self.action_space, self.masks = space, masks

    def _info(self) -> dict[str, Any]:
        mask = self.masks[self.time % len(self.masks)]
        return {} if mask == "none" else {"action_mask": mask}

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        return np.zeros(1, np.float32), self._info()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        info = self._info()
        if isinstance(self.action_space, spaces.Discrete) and info.get("action_mask") is not None:
            assert info["action_mask"][int(action)]
        self.time += 1
        shown = np.array([self.time], np.float32)
        return shown, float(np.sum(action)) + self.time, False, self.time >= 6, self._info()


ONE, TWO = [True, False, False], [False, True, True]
HINTS = {
    "box": (spaces.Box(-1, 1, (2,), np.float32), [ONE]),
    "bits": (spaces.MultiBinary(3), [ONE, "none"]),
    "always": (spaces.Discrete(3), [ONE, TWO]),
    "sometimes": (spaces.Discrete(3), [ONE, "none", TWO]),
    "None": (spaces.Discrete(3), [ONE, None]),
    "None at first": (spaces.Discrete(3), [None, TWO]),
}


@pytest.mark.reliability("mask_rule")
@pytest.mark.parametrize("name", HINTS)
@pytest.mark.parametrize("vectorization", ["sync", "async", "workers"])
def test_masks_follow_one_rule_in_training_and_evaluation(name: str, vectorization: str) -> None:
    space, masks = HINTS[name]
    with small(lambda: Hinted(space, masks), vectorization=vectorization) as agent:
        agent.learn(64, progress_bar=False)
        agent.evaluate(3)


@pytest.mark.reliability("mask_rule")
def test_predict_takes_masks_by_the_same_rule() -> None:
    with small(lambda: Hinted(spaces.Discrete(3), [ONE])) as agent:
        two = np.zeros((2, 1), np.float32)
        actions, _ = agent.predict(two, action_masks=[None, [False, False, True]])
        assert actions[1] == 2
        for mask, text in (([True, True], "2 entries"), ([False] * 3, "allows no choice")):
            with pytest.raises(ValueError, match=text):
                agent.predict(two[0], action_masks=mask)
            with pytest.raises(ValueError, match=text):
                agent.predict(two, action_masks=[mask, mask])
        with pytest.raises(ValueError, match="1 rows for 2 observations"):
            agent.predict(two, action_masks=[ONE])
    with small(Walk) as agent, pytest.raises(ValueError, match="are for discrete choices"):
        agent.predict(np.zeros(2), action_masks=[True, False])


@pytest.mark.reliability("normalising_wrapper")
def test_a_normalising_wrapper_of_the_environments_own_is_warned_of() -> None:
    for wrapper, name in (
        (gym.wrappers.NormalizeObservation, "obs_rms"),
        (gym.wrappers.NormalizeReward, "return_rms"),
    ):
        with pytest.warns(RuntimeWarning, match=rf"{wrapper.__name__} .*{name}.*begin anew"):
            run_episodes(zeros, lambda w=wrapper: w(Scripted()), 1, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_episodes(zeros, lambda: gym.wrappers.ClipReward(Scripted(), 0, 1), 1, seed=0)


class OnlyOne(Walk):
    """A simulator of which one instance may live."""

    alive = 0

    def __init__(self, **keywords: Any) -> None:
        if OnlyOne.alive:
            raise RuntimeError("the licence is in use")
        super().__init__(**keywords)
        OnlyOne.alive += 1

    def close(self) -> None:
        OnlyOne.alive = 0


class Mine(gym.Wrapper[Any, Any, Any, Any]):
    """A wrapper that holds an object."""

    def __init__(self, env: Any, held: Any) -> None:
        super().__init__(env)
        self.held = held


@pytest.mark.reliability("no_second_environment")
@pytest.mark.parametrize("kind", ["one instance", "a wrapper", "no spec"])
def test_an_environment_that_cannot_be_made_again_is_refused_before_training(kind: str) -> None:
    OnlyOne.alive = 0
    env: Any = {
        "one instance": lambda: OnlyOne,
        "a wrapper": lambda: Mine(gym.make("CartPole-v1"), object()),
        "no spec": Walk,
    }[kind]()
    with small(env, eval_every=64, num_envs=1) as agent:
        with pytest.raises(EnvironmentSetupError, match=r"pass env=|leave eval_every at 0"):
            agent.learn(64, progress_bar=False)
        assert agent.num_timesteps == 0


@pytest.mark.reliability("eval_envs")
def test_an_evaluation_makes_no_more_environments_than_asked_for() -> None:
    made: list[int] = []

    def make() -> Any:
        made.append(1)
        return Walk(length=3)

    with small(make, eval_envs=1) as agent:
        before = len(made)
        one = agent.evaluate(5)
        assert len(made) == before + 1
    with small(make) as agent:
        assert agent.evaluate(5) == pytest.approx(one)


# Recording


class Painted(Scripted):
    """Renders `frame`; raises where that is an exception."""

    def __init__(self, frame: Any, render_mode: str | None = None, modes: Any = None) -> None:
        super().__init__(((3, TERMINATED),))
        self.frame, self.render_mode = frame, render_mode
        self.metadata = {"render_modes": modes or ["rgb_array"], "render_fps": 10}

    def render(self) -> Any:
        if isinstance(self.frame, Exception):
            raise self.frame
        return self.frame


@pytest.fixture
def videos(monkeypatch: pytest.MonkeyPatch) -> None:
    """A moviepy that writes the number of its frames."""

    class Clip:
        def __init__(self, frames: list[Any], fps: float) -> None:
            self.frames = frames

        def write_videofile(self, path: str, logger: Any) -> None:
            Path(path).write_text(str(len(self.frames)))

    module = types.ModuleType("moviepy.video.io.ImageSequenceClip")
    module.ImageSequenceClip = Clip  # type: ignore[attr-defined]
    for name in ("moviepy", "moviepy.video", "moviepy.video.io"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)


PICTURE = np.zeros((8, 8, 3), np.uint8)


@pytest.mark.reliability("render")
@pytest.mark.usefixtures("videos")
@pytest.mark.parametrize("own", [False, True], ids=["asked", "renders already"])
def test_each_episode_is_a_file(tmp_path: Path, own: bool) -> None:
    env = (lambda: Painted(PICTURE, "rgb_array")) if own else Painted
    kwargs = {} if own else {"frame": PICTURE}
    make = recording_factory(env, kwargs, tmp_path / "v")
    run_episodes(zeros, make, 2, seed=0, parallel=1)
    files = sorted((tmp_path / "v").glob("*.mp4"))
    assert [file.read_text() for file in files] == ["4", "4"]


@pytest.mark.reliability("render")
@pytest.mark.usefixtures("videos")
@pytest.mark.parametrize(
    ("frame", "text"),
    [
        (None, "gave NoneType"),
        (PICTURE[:, :, 0], r"gave an array of shape \(8, 8\)"),
        (ValueError("no display"), "raised ValueError: no display"),
        ("text", "gave str"),
    ],
)
def test_frames_that_make_no_video_are_named(tmp_path: Path, frame: Any, text: str) -> None:
    make = recording_factory(Painted, {"frame": frame}, tmp_path / "v")
    with pytest.raises(EnvironmentSetupError, match=rf"Painted cannot be recorded: .*{text}"):
        run_episodes(zeros, make, 1, seed=0)


@pytest.mark.reliability("render")
@pytest.mark.usefixtures("videos")
@pytest.mark.parametrize("mode", [None, "human", "ansi"])
def test_what_renders_to_no_array_is_refused_at_once(tmp_path: Path, mode: str | None) -> None:
    make = recording_factory(lambda: Painted(PICTURE, mode, ["human", "ansi"]), {}, tmp_path / "v")
    with pytest.raises(EnvironmentSetupError, match=rf"render mode is {mode!r} \(it knows human"):
        run_episodes(zeros, make, 1, seed=0)
