"""The notebooks of the documentation: their cells run one after another, without Jupyter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest

NOTEBOOKS = Path(__file__).parents[2] / "docs" / "notebooks"


def cells(name: str) -> list[dict[str, Any]]:
    notebook = json.loads((NOTEBOOKS / name).read_text())
    assert notebook["nbformat"] == 4
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def run(name: str) -> dict[str, Any]:
    """What the names of a notebook mean after its last cell."""
    found: dict[str, Any] = {}
    for number, cell in enumerate(cells(name)):
        exec(compile("".join(cell["source"]), f"{name}, cell {number}", "exec"), found)
    return found


@pytest.fixture(autouse=True)
def without_a_window(tmp_path, monkeypatch):
    """Pictures are drawn and not shown, and what is written goes away with the test."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    before = mpl.get_backend()
    plt.switch_backend("agg")
    monkeypatch.setattr(plt, "show", lambda: None)
    yield
    plt.close("all")
    plt.switch_backend(before)


@pytest.mark.parametrize("name", sorted(path.name for path in NOTEBOOKS.glob("*.ipynb")))
def test_outputs_are_left_out(name: str) -> None:
    for cell in cells(name):
        assert not cell["outputs"]
        assert cell["execution_count"] is None


@pytest.mark.slow
def test_the_first_run_learns_and_goes_on() -> None:
    found = run("first_run.ipynb")
    directory = found["directory"]
    assert (directory / "learning_curve.png").stat().st_size > 1_000
    assert found["steps"] == list(range(2_048, 40_961, 2_048))
    assert max(found["divergences"]) <= 0.01
    curve = found["left"].lines[0].get_ydata()
    assert np.array_equal(curve, found["returns"], equal_nan=True)
    assert found["returns"][-1] > 3 * found["returns"][0]
    assert found["mean"] > 200
    assert found["score"] > 200
    assert found["loaded"].num_timesteps == 40_960 + 4_096
    found["agent"].close()
    found["loaded"].close()


@pytest.mark.slow
def test_a_loop_of_ones_own_learns_within_its_trust_region() -> None:
    found = run("own_loop.ipynb")
    returns = found["returns"]
    assert np.mean(returns[-20:]) > 4 * np.mean(returns[:20])
    assert len(found["divergences"]) == 15
    assert 0 < max(found["divergences"]) <= 0.02
    assert found["optimizer"].path == "fused"
    found["envs"].close()
