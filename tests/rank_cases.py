"""Data-parallel steps that tests make on several ranks, and as one process on all rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from update_cases import BY_NAME, Wrapped, make_data, make_policy

from trpo_fast import TRPOOptimizer
from trpo_fast.base.trees import tree_map


@dataclass(frozen=True)
class Steps:
    """Some updates of one policy, each on a batch of its own that is split over the ranks."""

    name: str
    split: tuple[int, ...]  # rows of each rank
    case: str = "gaussian"
    backend: str = "cpu"  # or "closure"
    options: dict[str, Any] = field(default_factory=dict)
    weighted: bool = False
    updates: int = 2
    dtype: torch.dtype = torch.float64
    hidden: tuple[int, ...] = (7, 6)


def made(steps: Steps, group: Any) -> list[dict[str, Any]]:
    """What each update did, with the parameters after it."""
    case = BY_NAME[steps.case]
    policy = make_policy(case, steps.hidden, dtype=steps.dtype)
    module: nn.Module = Wrapped(policy) if steps.backend in ("generic", "closure") else policy
    named = steps.backend in ("cpu", "reference")
    optimizer = TRPOOptimizer(
        module,
        backend=steps.backend if named else "auto",
        process_group=group,
        **steps.options,
    )
    found = []
    for update in range(steps.updates):
        with torch.random.fork_rng([]):
            data = make_data(
                make_policy(case, steps.hidden, dtype=steps.dtype),
                case,
                sum(steps.split),
                seed=update,
                weighted=steps.weighted,
            )
        data["old_log_prob"] = None
        if group is not None:
            data = {k: own_rows(v, steps.split) for k, v in data.items()}
            if steps.backend == "closure" and not len(data["obs"]):
                # torch has no KL of distributions without rows: one that does not count
                data = {k: v if v is None else v.new_ones(1, *v.shape[1:]) for k, v in data.items()}
                data["weights"] = torch.zeros(1, dtype=steps.dtype)
        if steps.backend == "closure":
            optimizer.step(closure_of(module, data))
        else:
            optimizer.step(**data)
        result = optimizer.last_result
        assert result is not None
        flat = torch.cat([p.detach().reshape(-1) for p in policy.parameters()])
        found.append({"theta": flat.clone(), **result.figures()})
    if optimizer.ranks is not None:
        found[-1]["collectives"] = optimizer.ranks.collectives
        found[-1]["bytes"] = optimizer.ranks.bytes
    return found


def own_rows(value: Any, split: tuple[int, ...]) -> Any:
    rank = torch.distributed.get_rank()
    return tree_map(lambda t: None if t is None else t.split(list(split))[rank], value)


def closure_of(module: nn.Module, data: dict[str, Any]) -> Callable[[], tuple[Any, ...]]:
    """The same loss as a user writes it: a mean over the rows that this process has."""
    masks = {} if "action_mask" not in data else {"action_mask": data["action_mask"]}
    with torch.no_grad():
        before = module(data["obs"], **masks).log_prob(data["actions"])

    def closure() -> tuple[Any, ...]:
        distribution = module(data["obs"], **masks)
        ratio = (distribution.log_prob(data["actions"]) - before).exp()
        gain = ratio * data["advantages"]
        weights = data.get("weights")
        if weights is None:
            return -gain.mean(), distribution
        return -(weights * gain).sum() / weights.sum(), distribution, weights

    return closure


def run(cases: list[Steps]) -> list[list[dict[str, Any]]]:
    """On a rank: its share of every case."""
    return [made(case, torch.distributed.group.WORLD) for case in cases]
