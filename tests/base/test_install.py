"""The pip lines that messages print work where the package came from."""

from __future__ import annotations

import json
import shlex
from importlib import metadata
from pathlib import Path

import pytest

from trpo_fast.base.install import install_line, rebuild_line


def came_from(monkeypatch: pytest.MonkeyPatch, direct_url: str | None) -> None:
    class Distribution:
        def read_text(self, name: str) -> str | None:
            assert name == "direct_url.json"
            return direct_url

    monkeypatch.setattr(metadata, "distribution", lambda _: Distribution())


def url_of(path: Path, **more: object) -> str:
    return json.dumps({"url": path.as_uri(), **more})


@pytest.mark.parametrize("folder", ["checkout", "my check-out's copy"])
@pytest.mark.parametrize("editable", [False, True])
def test_a_checkout_is_named_by_its_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: str, editable: bool
) -> None:
    checkout = tmp_path / folder
    checkout.mkdir()
    came_from(monkeypatch, url_of(checkout, dir_info={"editable": editable}))
    option = ["-e"] if editable else []
    assert shlex.split(install_line("sb3")) == ["pip", "install", *option, f"{checkout}[sb3]"]
    assert shlex.split(rebuild_line())[-1] == str(checkout)


def test_a_wheel_is_named_by_its_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wheel = tmp_path / "trpo_fast-1-py3-none-any.whl"
    wheel.touch()
    came_from(monkeypatch, url_of(wheel, archive_info={}))
    assert shlex.split(install_line("mujoco")) == ["pip", "install", f"{wheel}[mujoco]"]


@pytest.mark.parametrize(
    "direct_url",
    [
        pytest.param(None, id="an index"),
        pytest.param("not JSON", id="damaged"),
        pytest.param('{"url": "https://example.org/trpo_fast.whl"}', id="an address"),
        pytest.param('{"url": "file:///no/such/checkout"}', id="a checkout that is gone"),
    ],
)
def test_else_by_its_name(monkeypatch: pytest.MonkeyPatch, direct_url: str | None) -> None:
    came_from(monkeypatch, direct_url)
    assert install_line("mujoco") == "pip install 'trpo-fast[mujoco]'"
    assert rebuild_line().endswith(" trpo-fast")


def test_without_metadata_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    assert install_line("video") == "pip install 'trpo-fast[video]'"
