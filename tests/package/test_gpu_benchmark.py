"""The GPU benchmark's steps, on the CPU: checked answers, failures as lines, one table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from scripts import ROOT, script


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    module = script("benchmarks/gpu.py", monkeypatch)
    monkeypatch.setattr(module, "SECONDS", 0.0)
    return module


def test_a_dry_run_checks_every_contender(gpu: Any, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "lines.json"
    assert gpu.main(["--dry-run", "--out", str(out)]) == 0
    lines = json.loads(out.read_text())["lines"]
    measured = {(line["operation"], line["contender"]) for line in lines}
    for operation in ("product", "update"):
        assert {(operation, gpu.TORCH), (operation, "trpo_fast reference")} <= measured
    assert all(line["call_us"] > 0 and line["failure"] is None for line in lines)
    capsys.readouterr()
    assert gpu.main(["--show", str(out), str(tmp_path / "missing.json")]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(lines) + 2
    assert gpu.main(["--show", str(tmp_path / "missing.json")]) == 1


def test_a_failure_is_a_line_and_the_rest_goes_on(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("launching failed\nwith details")

    monkeypatch.setattr(gpu.double_backward, "update", broken)
    monkeypatch.setitem(gpu.TOLERANCE, "fp32", 1e-12)
    out = tmp_path / "lines.json"
    assert gpu.main(["--dry-run", "--out", str(out)]) == 1
    lines = json.loads(out.read_text())["lines"]
    found = {(line["operation"], line["contender"]): line["failure"] for line in lines}
    wrong = [line for line in lines if str(line["failure"]).startswith("wrong answer")]
    assert all(line["call_us"] > 0 for line in wrong)  # its time is known all the same
    assert found["update", gpu.TORCH] == "RuntimeError: launching failed"
    assert found["product", gpu.TORCH].startswith("wrong answer: relative error")
    assert found["update", "trpo_fast reference"] is None  # equal to itself
    assert "launching failed" in capsys.readouterr().out
