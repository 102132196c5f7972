"""The native update among threads, signals and processes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from cpu_cases import Case, case
from patience import PATIENCE
from torch import Tensor

from trpo_fast import _native
from trpo_fast.update.options import Options

if _native.core is None:
    pytest.skip(f"no native module: {_native.load_error}", allow_module_level=True)


def test_bits_do_not_depend_on_the_number_of_threads() -> None:
    c = case(3000)
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            native = c.native()
            loss, g = native.surrogate_gradient()
            x = native.solve(g, Options()).x
            found.append((loss, g, x, native.evaluate(c.parameters.read() + 1e-3 * x)))
    finally:
        torch.set_num_threads(before)
    for loss, g, x, candidate in found[1:]:
        assert loss == found[0][0]
        assert torch.equal(g, found[0][1])
        assert torch.equal(x, found[0][2])
        assert candidate == found[0][3]


def test_parallel_callers_get_the_serial_result() -> None:
    cases = [case(500 + i) for i in range(8)]

    def solve(c: Case) -> Tensor:
        native = c.native()
        _, g = native.surrogate_gradient()
        return native.solve(g, Options()).x

    serial = [solve(c) for c in cases]
    found: dict[int, list[Tensor]] = {i: [] for i in range(8)}

    def work(i: int) -> None:
        for _ in range(5):
            found[i].append(solve(cases[i]))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(8):
        assert len(found[i]) == 5
        assert all(torch.equal(x, serial[i]) for x in found[i])


def run_beside(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program that may import the files of shared cases."""
    here = Path(__file__).parents[2]
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | {"PYTHONPATH": str(here)},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )


def test_the_gil_is_released_and_ctrl_c_is_answered() -> None:
    """The solve would go on for hours; a thread that never got the GIL could not end it."""
    code = """
import os, signal, sys, threading, time
from cpu_cases import Options, case
native = case(20000, 17).native()
_, g = native.surrogate_gradient()
main = threading.main_thread().ident
def watch():
    place, ticks = None, 0
    while ticks < 20:  # with the main thread at one and the same instruction of solve
        time.sleep(0.01)
        frame = sys._current_frames()[main]
        before, place = place, (frame.f_code.co_name, frame.f_lasti)
        ticks = ticks + 1 if place == before and place[0] == "solve" else 0
    os.kill(os.getpid(), signal.SIGINT)
try:
    threading.Thread(target=watch).start()
    native.solve(g, Options(cg_iters=10**7, cg_tol=0.0, damping=1e-9))
except KeyboardInterrupt:
    print("interrupted")
"""
    done = run_beside(code)
    assert done.stdout.strip() == "interrupted", done.stderr


def test_exit_does_not_abort_on_a_daemon_thread_in_native_code() -> None:
    code = """
import sys, threading, time
import torch
from cpu_cases import Options, case
from trpo_fast.backends.cpu.arguments import tensor_arg
native = case(2000, 17).native()
_, g = native.surrogate_gradient()
tensors = g, torch.empty_like(g)
v, out = (tensor_arg(t, torch.float32) for t in tensors)
started = threading.Event()
# Both hold what they use: the module's names go while they run.
def many(native, tensors, v=v, out=out, product=native._native.fisher_product, started=started):
    while True:  # nothing of torch's, whose own functions abort here
        started.set()
        product(v, 0.0, out)
def one(native, tensors):
    started.set()
    native.solve(g, Options(cg_iters=1000000, cg_tol=0.0, damping=1e-9))
run = {"many": many, "one": one}[sys.argv[1]]
threading.Thread(target=run, args=(native, tensors), daemon=True).start()
started.wait()
time.sleep(0.2)
print("main is done")
"""
    for calls in ("many", "one"):
        done = run_beside(code, calls)
        assert (done.returncode, done.stdout) == (0, "main is done\n"), done.stderr


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux's /proc")
def test_workers_block_signals(run_python: Any) -> None:
    code = """
import os, pathlib, signal, torch
from trpo_fast.backends.forward import mlp_forward
from trpo_fast.networks.network import Layer
torch.set_num_threads(3)
layer = Layer(torch.zeros(64, 64), None, "identity")
x = torch.zeros(5000, 64)
before = set(os.listdir("/proc/self/task"))
mlp_forward([layer], x)
new = set(os.listdir("/proc/self/task")) - before
interrupt = 1 << (signal.SIGINT - 1)
for task in new:
    status = pathlib.Path(f"/proc/self/task/{task}/status").read_text()
    blocked = int(status.split("SigBlk:")[1].split()[0], 16)
    assert blocked & interrupt, status
assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
print(len(new))
"""
    done = run_python(code)
    assert done.stdout.strip() == "2", done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_computes_the_same() -> None:
    c = case(3000)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        _, g = c.native().surrogate_gradient()
        child = os.fork()
        if child == 0:
            same = torch.equal(c.native().surrogate_gradient()[1], g)
            os._exit(0 if same else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        torch.set_num_threads(before)
