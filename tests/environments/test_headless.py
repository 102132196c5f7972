"""How MuJoCo draws where there is no display."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest

from trpo_fast.environments import headless
from trpo_fast.environments.headless import NONE_FOUND, draw_without_display

MUJOCO: Any = SimpleNamespace(unwrapped=SimpleNamespace(mujoco_renderer=object()))
OTHER: Any = SimpleNamespace(unwrapped=SimpleNamespace())


@pytest.fixture(autouse=True)
def without_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "")  # is restored, whatever a test leaves there
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(headless.sys, "platform", "linux")


def has(monkeypatch: pytest.MonkeyPatch, *libraries: str) -> None:
    monkeypatch.setattr(headless, "_is_installed", lambda library: library in libraries)


@pytest.mark.parametrize(
    ("libraries", "renderer"),
    [(("EGL", "OSMesa"), "egl"), (("OSMesa",), "osmesa")],
)
def test_without_a_display_the_first_that_is_installed_draws(monkeypatch, libraries, renderer):
    has(monkeypatch, *libraries)
    lines: list[str] = []
    assert draw_without_display(MUJOCO, lines.append) is None
    assert os.environ["MUJOCO_GL"] == renderer
    assert len(lines) == 1
    assert renderer in lines[0]
    assert draw_without_display(MUJOCO, lines.append) is None  # the choice stands
    assert len(lines) == 1


def test_where_nothing_can_draw_it_says_what_to_install(monkeypatch):
    has(monkeypatch)
    assert draw_without_display(MUJOCO, pytest.fail) == NONE_FOUND
    assert os.environ["MUJOCO_GL"] == ""


@pytest.mark.parametrize(
    ("name", "value"), [("MUJOCO_GL", "glfw"), ("DISPLAY", ":0"), ("WAYLAND_DISPLAY", "wayland-0")]
)
def test_a_display_or_a_choice_of_the_users_is_left_alone(monkeypatch, name, value):
    has(monkeypatch, "EGL")
    monkeypatch.setenv(name, value)
    before = os.environ["MUJOCO_GL"]
    assert draw_without_display(MUJOCO, pytest.fail) is None
    assert os.environ["MUJOCO_GL"] == before


def test_other_environments_are_left_alone(monkeypatch):
    has(monkeypatch)
    assert draw_without_display(OTHER, pytest.fail) is None


def test_mujoco_draws_where_egl_is(monkeypatch):
    pytest.importorskip("mujoco")
    if not headless._is_installed("EGL"):
        pytest.skip("EGL is not installed")
    import gymnasium

    env = gymnasium.make("InvertedPendulum-v5", render_mode="rgb_array")
    try:
        assert draw_without_display(env, lambda _: None) is None
        env.reset(seed=0)
        frame: Any = env.render()
        assert frame.shape[2] == 3
        assert frame.std() > 0
    finally:
        env.close()
