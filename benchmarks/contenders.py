"""Everyone who is timed, behind one interface. Ours and plain torch here, the peers in peer_*.py.

All get the same weights and the same batch as torch tensors, none is charged for collecting or
shuffling data or for its critic, and all solve the same problem: see each one for how its
definition of the KL is matched.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Protocol

import double_backward
import numpy as np
import pytest
import torch
from cases import CG_ITERS, DAMPING, MAX_KL, Case, Size, case_of
from torch import Tensor

from trpo_fast import TRPOOptimizer, _native, natural_gradient
from trpo_fast.backends.registry import fused_problem
from trpo_fast.networks.network import Network
from trpo_fast.optimizer.batch_reader import BatchReader, fused_batch
from trpo_fast.recognition.recognizer import network_of
from trpo_fast.update.options import Options
from trpo_fast.update.parameters import FlatParameters


class Contender(Protocol):
    """A way to do the update. Flat vectors follow the case's ``policy.parameters()``."""

    def product(self) -> Callable[[], Tensor]:
        """A call that gives ``(F + damping I) vector``; what a solve does once is done."""

    def solve(self) -> Callable[[], Tensor]:
        """A call that gives x of ``(F + damping I) x = gradient``, all preparations included."""

    def update(self) -> Callable[[], object]:
        """A call that does one policy update in place."""

    def reset(self) -> None:
        """Put the initial weights back."""

    def theta(self) -> Tensor:
        """The current weights ``[P]``."""

    def ours(self, product: Tensor) -> Tensor:
        """What ``product`` gave, in our order of parameters and for our KL."""

    def our_solution(self, solution: Tensor) -> Tensor:
        """What ``solve`` gave, in our order of parameters and for our KL."""


class _OnOurPolicy:
    """What works on the case's own ``MlpPolicy``."""

    def __init__(self, case: Case) -> None:
        self.case = case

    def reset(self) -> None:
        torch.nn.utils.vector_to_parameters(self.case.theta.clone(), self.case.policy.parameters())

    def theta(self) -> Tensor:
        return torch.cat([p.detach().reshape(-1) for p in self.case.policy.parameters()])

    def ours(self, product: Tensor) -> Tensor:
        return product

    def our_solution(self, solution: Tensor) -> Tensor:
        return solution


class TrpoFast(_OnOurPolicy):
    """This package through its public interface, on a named backend."""

    def __init__(self, case: Case, backend: str, precision: str = "fp32") -> None:
        super().__init__(case)
        self.backend, self.precision = backend, precision

    def product(self) -> Callable[[], Tensor]:
        """The product of a solve in progress: the one call here below the public interface."""
        case = self.case
        network = network_of(case.policy)
        assert isinstance(network, Network), network
        named = dict(case.policy.named_parameters())
        parameters = FlatParameters(list(named.values()), list(named))
        reader = BatchReader(case.obs, None, dtype=torch.float32, device=case.obs.device)
        batch = fused_batch(reader.inputs(), network.head, case.size.obs, torch.float32)
        options = Options(precision=self.precision, backend=self.backend)
        problem = fused_problem(network, parameters, batch, options)
        problem.fisher_product(case.vector)
        damped = DAMPING * case.vector.numpy()

        def run() -> Tensor:
            product = problem.fisher_product(case.vector)
            # As a solve does it, without torch: for a long vector torch would wake its OpenMP
            # threads, and those then spin on the core that the next product's worker wants.
            np.add(product.numpy(), damped, out=product.numpy())
            return product

        return run

    def solve(self) -> Callable[[], Tensor]:
        case = self.case

        def run() -> Tensor:
            x, _ = natural_gradient(
                case.policy,
                case.obs,
                case.gradient,
                damping=DAMPING,
                cg_iters=CG_ITERS,
                cg_tol=0.0,
                preconditioner="none",
                precision=self.precision,
                backend=self.backend,
            )
            return x

        return run

    def update(self) -> Callable[[], object]:
        case = self.case
        optimizer = TRPOOptimizer(
            case.policy,
            max_kl=MAX_KL,
            damping=DAMPING,
            cg_iters=CG_ITERS,
            cg_tol=0.0,
            preconditioner="none",
            precision=self.precision,
            backend=self.backend,
        )
        return lambda: optimizer.step(
            obs=case.obs,
            actions=case.actions,
            advantages=case.advantages,
            old_log_prob=case.log_prob,
        )


class DoubleBackward(_OnOurPolicy):
    """Plain torch, twice backward through the mean KL."""

    def product(self) -> Callable[[], Tensor]:
        product = double_backward.fisher(self.case)
        return lambda: product(self.case.vector)

    def solve(self) -> Callable[[], Tensor]:
        case = self.case
        return lambda: double_backward.conjugate_gradient(
            double_backward.fisher(case), case.gradient
        )

    def update(self) -> Callable[[], object]:
        return lambda: double_backward.update(self.case)


def _peer(module: str, package: str) -> Callable[[Case], Contender]:
    def build(case: Case) -> Contender:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install 'trpo-fast[bench]'")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the peer's, of its own dependencies
            contender: Contender = importlib.import_module(module).Peer(case)
        return contender

    return build


def _native_backend(precision: str) -> Callable[[Case], Contender]:
    def build(case: Case) -> Contender:
        if _native.core is None:
            pytest.skip(f"no native module: {_native.load_error}")
        return TrpoFast(case, "cpu", precision)

    return build


OURS = "trpo_fast"
CONTENDERS: dict[str, Callable[[Case], Contender]] = {
    OURS: _native_backend("fp32"),
    "trpo_fast, bf16": _native_backend("bf16"),
    "trpo_fast, plain torch": lambda case: TrpoFast(case, "reference"),
    "double backward": DoubleBackward,
    "sb3-contrib": _peer("peer_sb3", "sb3_contrib"),
    "tianshou": _peer("peer_tianshou", "tianshou"),
}


@lru_cache(maxsize=len(CONTENDERS))
def contender_of(name: str, size: Size) -> Contender:
    contender = CONTENDERS[name](case_of(size))
    contender.reset()
    return contender
