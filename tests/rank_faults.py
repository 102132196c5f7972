"""What goes wrong on one rank, and what that does to all: programs for ``rank_processes``."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
from rank_cases import closure_of, own_rows
from torch import nn
from update_cases import BY_NAME, Wrapped, bits, make_data, make_policy, same_bits

from trpo_fast import TRPOOptimizer
from trpo_fast.base import ranks as ranks_module
from trpo_fast.update import share

CASE = BY_NAME["gaussian"]
SPLIT = 9, 18, 12, 1  # rows of each rank


def said(call: Callable[[], Any]) -> str:
    try:
        return f"returned {call()}"
    except Exception as error:  # noqa: BLE001 (for the test to look at)
        return f"{type(error).__name__}: {error}"


def faults(_: Any) -> dict[str, Any]:
    """Faults after which the same group makes a good step, and two that end it: what each said."""
    rank = torch.distributed.get_rank()
    found: dict[str, Any] = {}
    for backend in ("cpu", "reference", "generic"):
        policy = make_policy(CASE, dtype=torch.float32)
        module: nn.Module = Wrapped(policy) if backend == "generic" else policy
        optimizer = TRPOOptimizer(
            module,
            backend="auto" if backend == "generic" else backend,
            process_group=torch.distributed.group.WORLD,
        )
        data = {k: own_rows(v, SPLIT) for k, v in make_data(policy, CASE).items()}
        start = bits(policy)

        def step(bad: str = "", value: Any = None, optimizer: Any = optimizer, data: Any = data):
            given = {**data, bad: value} if rank == 1 and bad else data
            return optimizer.step(**given)

        def untouched(policy: Any = policy, start: Any = start) -> bool:
            return same_bits(policy, start)

        found[f"{backend} nan"] = (
            said(lambda data=data, step=step: step("obs", data["obs"] * float("nan"))),
            untouched(),
        )
        found[f"{backend} shape"] = (
            said(lambda data=data, step=step: step("actions", data["actions"][:3])),
            untouched(),
        )
        # finite, but of such a ratio that the loss is not
        step("old_log_prob", torch.full((SPLIT[1],), -2e3))
        found[f"{backend} infinite"] = optimizer.last_result.status.value, untouched()
        if rank == 1:
            optimizer.param_groups[0]["max_kl"] = 0.5
        found[f"{backend} options"] = said(step), untouched()
        optimizer.param_groups[0]["max_kl"] = 0.01
        if rank == 1:
            with torch.no_grad():
                next(policy.parameters()).add_(1e-3)
        found[f"{backend} parameters"] = said(step).split(":")[0], rank == 1 or untouched()
        with torch.no_grad():
            for p, before in zip(policy.parameters(), start, strict=False):
                p.copy_(before)
        step()
        found[f"{backend} good"] = optimizer.last_result.accepted, not untouched()
    found.update(_closures(rank))
    found["version"] = other_version()
    if rank != 1:
        found["dies"] = gone()
    else:  # and its process ends
        _optimizer()
    return found


def _closures(rank: int) -> dict[str, Any]:
    policy = make_policy(CASE, dtype=torch.float32)
    optimizer = TRPOOptimizer(
        policy.parameters(), process_group=torch.distributed.group.WORLD, backtrack_coeff=0.5
    )
    data = {k: own_rows(v, SPLIT) for k, v in make_data(policy, CASE).items()}
    start, calls = bits(policy), 0
    good = closure_of(policy, data)

    def closure() -> Any:
        nonlocal calls
        calls += 1
        if rank == 1 and calls == 2:
            raise KeyError("the second call")
        return good()

    found = {"closure raises": (said(lambda: optimizer.step(closure)), same_bits(policy, start))}
    optimizer.step(good)
    found["closure good"] = optimizer.last_result.accepted, not same_bits(policy, start)
    return found


def other_version() -> str:
    """Rank 1 says that it has another torch."""
    before = ranks_module._identity
    if torch.distributed.get_rank() == 1:
        own = ranks_module._identity()
        ranks_module._identity = lambda: {**own, "torch": "1.13"}  # type: ignore[assignment]
    found = said(lambda: ranks_module.Ranks(torch.distributed.group.WORLD))
    ranks_module._identity = before
    return found


def gone(group: Any = None, **options: Any) -> tuple[str, float, bool]:
    """A step without the other rank: what it says, when, and whether the weights stay."""
    policy, optimizer, data = _optimizer(group, **options)
    start, began = bits(policy), time.monotonic()
    text = said(lambda: optimizer.step(**data))
    return text, time.monotonic() - began, same_bits(policy, start)


def interrupted(_: Any) -> Any:
    """Rank 1's second Fisher product is interrupted, which ends its process; what others find."""
    if torch.distributed.get_rank() == 1:
        products = 0
        own = share.SharedProblem.fisher_product

        def interrupted(self: Any, v: Any) -> Any:
            nonlocal products
            products += 1
            if products == 2:
                raise KeyboardInterrupt
            return own(self, v)

        share.SharedProblem.fisher_product = interrupted  # type: ignore[method-assign]
    return gone(backend="reference")


def hangs(seconds: float) -> Any:
    """Rank 1 sleeps after making its optimizer; what the other one finds."""
    group = torch.distributed.new_group(timeout=timedelta(seconds=10))
    if torch.distributed.get_rank() == 0:
        return gone(group)
    _optimizer(group)
    time.sleep(seconds)
    return None


def _optimizer(group: Any = None, **options: Any) -> tuple[Any, TRPOOptimizer, dict[str, Any]]:
    policy = make_policy(CASE, dtype=torch.float32)
    group = group or torch.distributed.group.WORLD
    optimizer = TRPOOptimizer(policy, process_group=group, **options)
    return policy, optimizer, {k: own_rows(v, SPLIT) for k, v in make_data(policy, CASE).items()}


def unlike(argument: Any) -> list[Any]:
    """Steps of ranks with other instruction sets: their arithmetic rounds otherwise."""
    from rank_cases import run

    found = run(argument)
    alike = ranks_module.Ranks(torch.distributed.group.WORLD).alike
    return [alike, found]
