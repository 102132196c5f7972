"""What this installation is made of, and what to do about what is missing: ``trpo-fast doctor``."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
from typing import Any

import torch
import torch.distributed as dist

from trpo_fast import _native
from trpo_fast.base.install import install_line, rebuild_line
from trpo_fast.base.output import say
from trpo_fast.base.threads import usable_cores
from trpo_fast.command.ranks import threads_of_rank

# The importable names each extra brings; tests hold the keys against pyproject.toml.
EXTRAS: dict[str, tuple[str, ...]] = {
    "mujoco": ("mujoco", "imageio"),
    "box2d": ("Box2D", "pygame"),
    "envpool": ("envpool",),
    "brax": ("brax",),
    "video": ("moviepy", "pygame"),
    "export": ("onnx", "onnxscript"),
    "sb3": ("stable_baselines3", "sb3_contrib"),
    "tianshou": ("tianshou",),
    "skrl": ("skrl",),
    "rsl-rl": ("rsl_rl",),
    "ray": ("ray", "pyarrow", "pydantic"),
    "bench": (
        *("pytest", "pytest_benchmark", "stable_baselines3", "sb3_contrib", "skrl", "tianshou"),
        "rsl_rl",
    ),
    "test": (
        *("pytest", "xdist", "hypothesis", "stable_baselines3", "sb3_contrib", "skrl"),
        *("tianshou", "tyro", "rsl_rl", "onnx", "onnxscript", "onnxruntime", "optuna"),
    ),
    "track": ("wandb",),
    "tune": ("optuna",),
    "docs": ("sphinx", "furo", "myst_parser"),
    "dev": ("mypy", "ruff", "clang_format", "pre_commit", "scikit_build_core", "pybind11"),
}
_PACKAGES = (
    "torch",
    "numpy",
    "numba",
    "gymnasium",
    "safetensors",
    "tensorboard",
    "rich",
    "matplotlib",
)
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


def doctor_report() -> dict[str, Any]:
    """Collect the facts about this installation.

    Returns:
        A JSON-serialisable dict: ``trpo_fast``, ``python`` and ``platform`` (strings),
        ``packages`` (name -> version, or None where missing), ``native``, ``cuda``, ``threads``,
        ``ranks`` (what torchrun told this process),
        ``vectorization`` (which to choose, in words), ``extras`` (name -> installed, missing
        modules, install line), and ``hints``: sentences that each say what is wrong and how to
        mend it, empty when all is well.
    """
    report: dict[str, Any] = {
        "trpo_fast": _version("trpo_fast"),
        "python": f"{platform.python_version()} ({sys.executable})",
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "packages": {name: _version(name) for name in _PACKAGES},
        "native": _native_facts(),
        "cuda": _cuda_facts(),
        "threads": _thread_facts(),
        "ranks": _rank_facts(),
        "extras": {name: _extra_facts(name) for name in EXTRAS},
    }
    report["vectorization"] = _vectorization(report)
    report["hints"] = _hints(report)
    return report


def format_report(report: dict[str, Any]) -> str:
    """The report of ``doctor_report`` as plain text for a terminal."""
    native, cuda, threads = report["native"], report["cuda"], report["threads"]
    lines = [
        f"trpo_fast   {report['trpo_fast'] or 'not installed as a package'}",
        f"python      {report['python']}",
        f"platform    {report['platform']}",
        "packages    " + ", ".join(f"{k} {v or 'missing'}" for k, v in report["packages"].items()),
    ]
    if native["available"]:
        forced = f" (TRPO_FAST_ISA={native['isa_forced']})" if native["isa_forced"] else ""
        isas = ", ".join(native["isas"])
        lines.append(f"native      {native['path']}")
        lines.append(f"            instruction set: {native['isa']}{forced}; available: {isas}")
        lines.append(f"            AMX: {native['amx'] or 'may be used'}")
    else:
        lines.append("native      not available: the pure-torch code is used")
    built = f"built for {cuda['torch_build']}" if cuda["torch_build"] else "a CPU build"
    devices = "; ".join(cuda["devices"]) or "no device"
    lines += [
        f"cuda        torch is {built}; {devices}",
        f"            kernels: {cuda['kernels']['state']}",
        f"threads     torch {threads['torch']} of {threads['usable_cpus']} usable CPUs"
        + "".join(f", {k}={v}" for k, v in threads["environment"].items()),
        f"ranks       {_ranks_in_words(report['ranks'])}",
        "vectorize   " + f"\n{' ' * 12}".join(report["vectorization"]),
        "extras",
    ]
    for name, extra in report["extras"].items():
        state = "installed" if extra["installed"] else f"missing: {extra['install']}"
        lines.append(f"  {name:<10}{state}")
    if report["hints"]:
        lines += ["", "What to do", *(f"  * {hint}" for hint in report["hints"])]
    else:
        lines += ["", "No problem found."]
    return "\n".join(lines)


def _rank_facts() -> dict[str, Any]:
    """What torchrun told this process, and by what its ranks could talk."""
    backends = {"gloo": dist.is_gloo_available, "nccl": dist.is_nccl_available}
    usable = [name for name, found in backends.items() if dist.is_available() and found()]
    told = {name.lower(): os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return {"backends": usable, **told, "threads": threads_of_rank()}


def _ranks_in_words(facts: dict[str, Any]) -> str:
    by = ", ".join(facts["backends"]) or "none, so one rank only"
    if facts["rank"] is None or facts["world_size"] is None:
        return f"this process alone; backends of torch.distributed: {by}"
    return (
        f"rank {facts['rank']} of {facts['world_size']} (on this machine {facts['local_rank']}), "
        f"which trains with {facts['threads']} threads; backends of torch.distributed: {by}"
    )


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _native_facts() -> dict[str, Any]:
    core, error = _native.core, _native.load_error
    isa, isas, amx = None, [], None
    if core is not None:
        amx = core.amx_refusal()
        try:
            isa, isas = core.isa(), list(core.available_isas())
        except RuntimeError as refused:  # TRPO_FAST_ISA names what this CPU cannot run
            error = str(refused)
    return {
        "available": core is not None,
        "path": None if core is None else core.__file__,
        "isa": isa,
        "isas": isas,
        "isa_forced": os.environ.get("TRPO_FAST_ISA"),
        "amx": amx,
        "amx_idle": core is not None and core.cpu_has_amx() and bool(amx),
        "error": error,
    }


def _cuda_facts() -> dict[str, Any]:
    available = torch.cuda.is_available()
    devices = []
    for index in range(torch.cuda.device_count() if available else 0):
        properties = torch.cuda.get_device_properties(index)
        devices.append(
            f"{properties.name} (sm_{properties.major}{properties.minor}, "
            f"{properties.total_memory / 2**30:.0f} GiB)"
        )
    return {
        "torch_build": torch.version.cuda,
        "available": available,
        "devices": devices,
        "kernels": _kernel_facts(),
    }


def _kernel_facts() -> dict[str, Any]:
    """Whether _core_cuda is built and can run, and in words why not."""
    core, error = _native.cuda()
    if core is None:
        nothing = {"built": False, "driver": None, "runtime": None, "usable": False}
        return {**nothing, "state": f"not built: {error}"}
    facts = core.facts()
    runtime, driver = _cuda_version(facts["runtime"]), _cuda_version(facts["driver"])
    state = f"built with CUDA {runtime} for {core.architectures}, "
    if facts["driver"] == 0:
        state += "unusable: no NVIDIA driver is installed"
    elif facts["error"]:
        state += f"unusable with a driver for CUDA {driver}: {facts['error']}"
    elif not torch.cuda.is_available():
        state += "unusable: this torch does not reach the device"
    else:
        errors = [core.device_error(index) for index in range(torch.cuda.device_count())]
        broken = [f"device {i}: {error}" for i, error in enumerate(errors) if error]
        if broken:
            state += (
                f"unusable on {'; '.join(broken)}. A build on this machine serves its devices, "
                "one with TRPO_FAST_CUDA=ON every device"
            )
        else:
            state += f"usable with a driver for CUDA {driver}"
    return {
        "built": True,
        "driver": driver,
        "runtime": runtime,
        "usable": state.count("unusable") == 0,
        "state": state,
    }


def _cuda_version(number: int) -> str | None:
    return f"{number // 1000}.{number % 1000 // 10}" if number else None


def _thread_facts() -> dict[str, Any]:
    return {
        "torch": torch.get_num_threads(),
        "usable_cpus": usable_cores(),
        "environment": {k: os.environ[k] for k in _THREAD_VARIABLES if k in os.environ},
    }


def _extra_facts(name: str) -> dict[str, Any]:
    missing = [module for module in EXTRAS[name] if importlib.util.find_spec(module) is None]
    return {"installed": not missing, "missing": missing, "install": install_line(name)}


def _vectorization(report: dict[str, Any]) -> list[str]:
    """Which vectorization to choose here; docs/end-to-end.md has the figures behind it."""
    installed = report["extras"]["envpool"]["installed"]
    first = "envpool, where EnvPool has the environment: its threads step it without Python"
    lines = [first if installed else f"{first} ({install_line('envpool')})"]
    if report["threads"]["usable_cpus"] > 1:
        lines.append(
            "auto otherwise: worker processes where its first steps show that they pay, sync "
            "elsewhere; both give the same bits, and resume is bit for bit"
        )
    return [*lines, "sync, where there is one core: no cost between processes"]


def _hints(report: dict[str, Any]) -> list[str]:
    hints = []
    if report["native"]["error"]:
        hints.append(f"{report['native']['error']} Here: {rebuild_line()}")
    if report["native"]["amx_idle"] and not report["native"]["isa_forced"]:
        hints.append(
            f"This CPU has AMX, which is not used: {report['native']['amx']}. Products of "
            'precision="bf16" are computed by AVX512-BF16 instead: right, but more slowly'
        )
    missing = [name for name, version in report["packages"].items() if version is None]
    if missing:
        hints.append(f"Core dependencies are missing: pip install {' '.join(missing)}")
    if not report["extras"]["mujoco"]["installed"]:
        hints.append(
            "MuJoCo environments (HalfCheetah-v5, Ant-v5, ...) need an extra: "
            f"{install_line('mujoco')}"
        )
    threads = report["threads"]
    if threads["torch"] > threads["usable_cpus"]:
        hints.append(
            f"torch uses {threads['torch']} threads on {threads['usable_cpus']} usable CPUs, which "
            f"slows everything down: export OMP_NUM_THREADS={threads['usable_cpus']}"
        )
    if report["cuda"]["available"] and not report["cuda"]["kernels"]["usable"]:
        hints.append(
            f"The CUDA kernels are {report['cuda']['kernels']['state']}. Policies on the device "
            "run through torch, more slowly"
        )
    if report["cuda"]["torch_build"] and not report["cuda"]["available"]:
        hints.append(
            "torch is built for CUDA but finds no usable device; training runs on the CPU. "
            "If there is one, check the driver with nvidia-smi."
        )
    return hints


def add_doctor(commands: Any) -> None:
    """Add `doctor` to the commands of a parser."""
    command = commands.add_parser("doctor", help="check this installation", allow_abbrev=False)
    command.add_argument("--json", action="store_true", help="as JSON")
    command.set_defaults(run=_doctor, parser=command)


def _doctor(options: argparse.Namespace) -> int:
    report = doctor_report()
    say(json.dumps(report, indent=2) if options.json else format_report(report))
    return 0
