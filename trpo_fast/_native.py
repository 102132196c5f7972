"""The one door to the compiled modules: ``trpo_fast._core``, and ``_core_cuda`` on demand.

Everything that wants native speed asks ``core`` here, and takes its pure-torch path when it is
``None``; code that is imported only where it is not calls ``kernels``, the same module with its
types. Set ``TRPO_FAST_REQUIRE_NATIVE=1`` to turn that silent fallback into an ImportError, as the
test suite does, so that a broken build cannot pass for a slow one.
"""

from __future__ import annotations

import importlib
import os
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING

_served: set[int] = set()  # devices that the CUDA kernels run on


def _load() -> tuple[ModuleType | None, str | None]:
    try:
        return importlib.import_module("trpo_fast._core"), None
    except ModuleNotFoundError as error:
        found = f"not built ({error})"
    except (ImportError, OSError) as error:
        found = f"present but cannot be loaded ({error})"
    message = (
        f"The native module trpo_fast._core is {found}. trpo_fast works without it, on slower "
        "pure-torch code. Building it needs a C++17 compiler and Python's headers; trpo-fast "
        "doctor prints the line that does (in a checkout: make build)."
    )
    return None, " ".join(message.split())


@cache
def cuda() -> tuple[ModuleType | None, str | None]:
    """The module ``trpo_fast._core_cuda``, or why there is none. Loaded at the first call only."""
    try:
        return importlib.import_module("trpo_fast._core_cuda"), None
    except ModuleNotFoundError as error:
        found = f"not built ({error})"
    except (ImportError, OSError) as error:
        found = f"present but cannot be loaded ({error})"
    message = (
        f"the native module trpo_fast._core_cuda is {found}; it is built where a device is present "
        "and nvcc is found: put CUDA's bin directory on PATH and reinstall (in a checkout: make "
        "build), or anywhere, for every device, with -C cmake.define.TRPO_FAST_CUDA=ON added to pip"
    )
    return None, " ".join(message.split())


def cuda_on(device: int) -> tuple[ModuleType | None, str | None]:
    """``cuda()``, or why it cannot run on that device: too old a driver, or kernels for others."""
    module, error = cuda()
    if module is None or device in _served:
        return module, error
    error = module.device_error(device)
    if error:
        return None, error.rstrip(".")
    _served.add(device)
    return module, None


core: ModuleType | None
load_error: str | None
core, load_error = _load()
if TYPE_CHECKING:
    from trpo_fast import _core

    kernels = _core
else:
    kernels = core

if core is None and os.environ.get("TRPO_FAST_REQUIRE_NATIVE", "0") not in ("", "0"):
    raise ImportError(f"TRPO_FAST_REQUIRE_NATIVE is set, but: {load_error}")
