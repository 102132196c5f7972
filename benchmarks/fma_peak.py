"""The machine's peak of float32 fused multiply-adds, measured: ``fma_peak.c`` on every thread."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".c")
SECONDS = 0.05


def measure(threads: int, repeats: int = 5) -> float | None:
    """Best of ``repeats`` in GF/s over ``threads`` threads; None without a C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "fma_peak.so"
        flags = ["-O3", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC"]
        subprocess.run([compiler, *flags, str(SOURCE), "-o", str(library)], check=True)
        chains = ctypes.CDLL(str(library)).fma_chains
    chains.restype, chains.argtypes = ctypes.c_double, [ctypes.c_long, ctypes.c_void_p]
    out = ctypes.c_float()

    def run(rounds: int) -> float:
        flop: float = chains(rounds, ctypes.addressof(out))  # releases the GIL
        return flop

    rounds = 100_000
    with ThreadPoolExecutor(threads) as pool:
        best = 0.0
        for _ in range(repeats + 1):
            start = time.perf_counter()
            flop = sum(pool.map(run, [rounds] * threads))
            seconds = time.perf_counter() - start
            best = max(best, flop / seconds / 1e9)
            rounds = max(rounds, int(rounds * SECONDS / seconds))
    return best


if __name__ == "__main__":
    import torch

    print(measure(torch.get_num_threads()))
