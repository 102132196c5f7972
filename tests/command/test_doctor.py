"""The installation report: facts that hold here, and hints that follow from the facts."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from trpo_fast import _native
from trpo_fast.base.install import install_line, rebuild_line
from trpo_fast.base.threads import usable_cores
from trpo_fast.command import doctor

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


def test_report_states_the_versions_in_use() -> None:
    report = doctor.doctor_report()
    assert report["packages"]["torch"] == torch.__version__
    assert report["packages"]["numpy"] == np.__version__
    assert report["threads"]["torch"] == torch.get_num_threads()
    assert report["cuda"]["available"] == torch.cuda.is_available()


def test_report_is_json_and_its_text_names_every_part() -> None:
    report = json.loads(json.dumps(doctor.doctor_report()))
    text = doctor.format_report(report)
    for part in ("native", "cuda", "threads", "extras", torch.__version__, *report["extras"]):
        assert part in text
    for hint in report["hints"]:
        assert hint in text


def test_report_says_which_rank_torchrun_started_and_its_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    for name, value in {**told, "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(6)))
    text = doctor.format_report(doctor.doctor_report())
    assert "rank 5 of 8 (on this machine 1), which trains with 3 threads; backends" in text
    monkeypatch.setenv("OMP_NUM_THREADS", "4")  # the user's word, which torch has followed
    monkeypatch.setattr("torch.get_num_threads", lambda: 4)
    assert "trains with 4 threads" in doctor.format_report(doctor.doctor_report())
    for name in told:
        monkeypatch.delenv(name)
    assert "this process alone" in doctor.format_report(doctor.doctor_report())


@pytest.mark.skipif(_native.core is None, reason="the native module is not built")
def test_report_names_the_native_module_and_its_instruction_set() -> None:
    native = doctor.doctor_report()["native"]
    assert native["available"]
    assert native["error"] is None
    assert Path(native["path"]).exists()
    assert native["isa"] in native["isas"]
    assert native["isas"][0] == "baseline"


@pytest.mark.skipif(_native.core is None, reason="the native module is not built")
def test_forced_instruction_set_is_reported(run_python) -> None:
    code = (
        "import json; from trpo_fast.command.doctor import doctor_report; "
        "print(json.dumps(doctor_report()['native']))"
    )
    forced = json.loads(run_python(code, TRPO_FAST_ISA="baseline").stdout)
    assert (forced["isa"], forced["isa_forced"]) == ("baseline", "baseline")
    unknown = json.loads(run_python(code, TRPO_FAST_ISA="vax").stdout)
    assert unknown["isa"] is None
    assert "vax" in unknown["error"]


@pytest.mark.skipif(_native.core is None, reason="the native module is not built")
@pytest.mark.parametrize("refusal", ["", "its products are wrong on this machine"])
def test_amx_that_stays_idle_is_a_hint(monkeypatch: pytest.MonkeyPatch, refusal: str) -> None:
    monkeypatch.delenv("TRPO_FAST_ISA", raising=False)
    monkeypatch.setattr(_native.core, "cpu_has_amx", lambda: True)
    monkeypatch.setattr(_native.core, "amx_refusal", lambda: refusal)
    report = doctor.doctor_report()
    assert f"AMX: {refusal or 'may be used'}" in doctor.format_report(report)
    hints = [hint for hint in report["hints"] if "AMX" in hint]
    assert [refusal in hint for hint in hints] == ([True] if refusal else [])


@pytest.mark.parametrize("installed", [True, False])
def test_vectorization_is_recommended(monkeypatch: pytest.MonkeyPatch, installed: bool) -> None:
    modules = ("json",) if installed else ("no_such_module_anywhere",)
    monkeypatch.setitem(doctor.EXTRAS, "envpool", modules)
    report = doctor.doctor_report()
    first, *_, last = report["vectorization"]
    assert first.startswith("envpool")
    assert (install_line("envpool") in first) != installed
    assert last.startswith("sync")
    text = doctor.format_report(report)
    assert all(line in text for line in report["vectorization"])


def test_extras_are_those_of_the_package() -> None:
    declared = tomllib.loads(PYPROJECT.read_text())["project"]["optional-dependencies"]
    assert set(doctor.EXTRAS) == set(declared)


def test_missing_extra_comes_with_its_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(doctor.EXTRAS, "mujoco", ("no_such_module_anywhere",))
    report = doctor.doctor_report()
    assert report["extras"]["mujoco"] == {
        "installed": False,
        "missing": ["no_such_module_anywhere"],
        "install": install_line("mujoco"),
    }
    assert any(install_line("mujoco") in hint for hint in report["hints"])


def test_missing_core_dependency_is_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_PACKAGES", ("torch", "no-such-distribution"))
    report = doctor.doctor_report()
    assert report["packages"]["no-such-distribution"] is None
    assert any("pip install no-such-distribution" in hint for hint in report["hints"])


def test_more_threads_than_cpus_is_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    cpus = usable_cores()
    monkeypatch.setattr(torch, "get_num_threads", lambda: cpus + 1)
    hints = doctor.doctor_report()["hints"]
    assert any(f"export OMP_NUM_THREADS={cpus}" in hint for hint in hints)


def test_cuda_build_without_a_device_is_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    report = doctor.doctor_report()
    assert any("nvidia-smi" in hint for hint in report["hints"])
    assert "built for 13.0; no device" in doctor.format_report(report)


def test_missing_native_module_is_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "core", None)
    monkeypatch.setattr(_native, "load_error", "The module is gone.")
    report = doctor.doctor_report()
    assert report["native"]["isa"] is None
    assert f"The module is gone. Here: {rebuild_line()}" in report["hints"]
    assert "pure-torch code is used" in doctor.format_report(report)


@pytest.mark.parametrize(("error", "usable"), [("no kernel image", False), ("", True)])
def test_kernels_that_a_device_cannot_run_are_named(
    monkeypatch: pytest.MonkeyPatch, error: str, usable: bool
) -> None:
    facts = {"runtime": 13000, "driver": 13000, "devices": 1, "error": None}
    core = SimpleNamespace(
        architectures="90-real", facts=lambda: facts, device_error=lambda index: error
    )
    monkeypatch.setattr(_native, "cuda", lambda: (core, None))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    card = SimpleNamespace(name="a card", major=7, minor=5, total_memory=2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    report = doctor.doctor_report()
    assert report["cuda"]["kernels"]["usable"] == usable
    hinted = any("unusable on device 0: no kernel image" in hint for hint in report["hints"])
    assert hinted != usable
    assert "built with CUDA 13.0 for 90-real" in doctor.format_report(report)
