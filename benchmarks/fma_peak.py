"""The machine's peak of float32 fused multiply-adds, measured: ``fma_peak.c`` on every thread."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".c")
SECONDS = 0.01  # of one sample
# What a forced instruction set may use of a newer machine.
MARCH = {"avx2": "haswell", "avx512": "skylake-avx512"}


@cache
def _chains() -> Callable[[int], float] | None:
    """A call that does so many rounds and gives the flop done; None without a C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "fma_peak.so"
        march = MARCH.get(os.environ.get("TRPO_FAST_ISA", ""), "native")
        flags = ["-O3", f"-march={march}", "-ffp-contract=fast", "-shared", "-fPIC"]
        subprocess.run([compiler, *flags, str(SOURCE), "-o", str(library)], check=True)
        chains = ctypes.CDLL(str(library)).fma_chains
    chains.restype, chains.argtypes = ctypes.c_double, [ctypes.c_long, ctypes.c_void_p]
    out = ctypes.c_float()
    # Releases the GIL.
    return lambda rounds: float(chains(rounds, ctypes.addressof(out)))


def measure(threads: int, samples: int = 3) -> float | None:
    """Best of some samples in GF/s over ``threads`` threads; None without a C compiler."""
    run = _chains()
    if run is None:
        return None
    rounds, best = 20_000, 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(samples + 1):
            start = time.perf_counter()
            flop = sum(pool.map(run, [rounds] * threads))
            seconds = time.perf_counter() - start
            best = max(best, flop / seconds / 1e9)
            rounds = max(rounds, int(rounds * SECONDS / seconds))
    return best


if __name__ == "__main__":
    import torch

    print(measure(torch.get_num_threads(), samples=100))
