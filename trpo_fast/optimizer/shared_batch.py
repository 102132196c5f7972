"""A rank's batch in a data-parallel step: read like any other, then told to the other ranks."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from trpo_fast.base.modes import seeded_generators, twice_differentiable
from trpo_fast.base.ranks import Ranks, checksum
from trpo_fast.base.tensors import strided_rows
from trpo_fast.base.trees import tree_map
from trpo_fast.networks.network import Network
from trpo_fast.optimizer.batch_reader import unit_of
from trpo_fast.update.batch import Batch
from trpo_fast.update.options import Options
from trpo_fast.update.parameters import FlatParameters
from trpo_fast.update.share import Own, share_of


class Read(NamedTuple):
    """What a rank made of its arguments.

    Attributes:
        batch: Checked; where there are no rows, one that stands for their shapes alone.
        empty: Whether there are none.
        weight_scale: What ``BatchReader`` divided the weights by.
        network, backend: What will serve it.
    """

    batch: Batch
    empty: bool
    weight_scale: float
    network: Network | str
    backend: str


def shared_batch(
    ranks: Ranks,
    read: Callable[[], Read],
    parameters: FlatParameters,
    options: Options,
    statistics: Callable[[], int],
) -> tuple[Batch, Network | str]:
    """This rank's batch with its share of all ranks' rows, and the network it goes through.

    Raises:
        RankError: the ranks differ, or another one refused its batch.
    """
    found: list[Read] = []

    def tell() -> Own:
        own = read()
        found.append(own)
        batch, empty = own.batch, own.empty
        rows = 0 if empty else batch.rows
        kind = "" if isinstance(own.network, Network) else "generic"
        weights, fisher = (0.0, 0.0) if empty else _weights(batch, options.fisher_fraction)
        assert batch.advantages is not None  # noqa: S101
        return Own(
            checksum([parameters.start]),
            settings_of(options, parameters, kind, own.backend, statistics()),
            rows,
            own.weight_scale,
            weights,
            fisher,
            0.0 if empty else float(batch.advantages.abs().max()) * batch.unit,
        )

    share = share_of(ranks, tell)
    batch, network = found[0].batch, found[0].network
    unit = unit_of(share.greatest)
    advantages = batch.advantages
    if unit != batch.unit and advantages is not None:  # a power of two: exact
        advantages = (advantages.double() * (batch.unit / unit)).to(advantages.dtype)
    return batch._replace(share=share, unit=unit, advantages=advantages), network


def settings_of(options: Options, parameters: FlatParameters, *more: Any) -> int:
    """A checksum of what decides the steps of an update beside the rows."""
    text = repr((options, parameters.sizes, str(parameters.dtype), *more))
    return zlib.crc32(text.encode())


def stand_in(values: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """One row of zeros for arguments without rows, or whose weights are all 0; whether it is so.

    Args:
        values: ``step``'s arguments by name.
    """
    obs, weights = values["obs"], values["weights"]
    empty = _first_rows(obs) == 0
    if weights is not None and not empty:
        empty = not bool((torch.as_tensor(weights) != 0).any())
    if not empty:
        return values, False
    found = {name: _one_row(value) for name, value in values.items()}
    found["weights"] = None
    if found["action_mask"] is not None:
        found["action_mask"] = tree_map(
            lambda mask: None if mask is None else torch.ones_like(mask), found["action_mask"]
        )
    return found, True


def any_action(policy: nn.Module, obs: Any, device: torch.device) -> Any:
    """An action of a stand-in's row: one that the policy might draw there, at no random number.

    Zeros would do for many distributions, but a Beta's support, say, does not hold them.
    """
    devices = [device] if device.type == "cuda" else []
    with torch.no_grad(), seeded_generators(0, devices), twice_differentiable(policy):
        return policy(obs).sample()


def _first_rows(tree: Any) -> int:
    while isinstance(tree, dict | tuple | list) and tree:
        tree = next(iter(tree.values())) if isinstance(tree, dict) else tree[0]
    shape = tree.shape if isinstance(tree, Tensor) else np.shape(tree)
    return int(shape[0]) if shape else -1


def _one_row(value: Any) -> Any:
    if value is None:
        return None
    if isinstance(value, dict):
        return {key: _one_row(item) for key, item in value.items()}
    if isinstance(value, tuple | list) and value and not np.isscalar(value[0]):
        return tuple(_one_row(item) for item in value)
    tensor = value if isinstance(value, Tensor) else torch.as_tensor(value)
    return tensor.new_zeros(1, *tensor.shape[1:])


def _weights(batch: Batch, fraction: float) -> tuple[float, float]:
    """Sums of weights over all rows and over the Fisher's."""
    rows = batch.rows
    chosen = None if fraction == 1 else strided_rows(rows, fraction, torch.device("cpu"))
    if batch.weights is None:
        return float(rows), float(rows if chosen is None else len(chosen))
    weights = batch.weights.double().cpu()
    return float(weights.sum()), float((weights if chosen is None else weights[chosen]).sum())


def unwrapped(module: nn.Module, *, shared: bool) -> nn.Module:
    """The policy inside a ``DistributedDataParallel``.

    Raises:
        ValueError: the wrapper shards the parameters, or without ``shared`` every rank would make
            a step of its own.
    """
    name = type(module).__name__
    sharded = name == "FullyShardedDataParallel" or any(
        type(p).__name__ == "DTensor" for p in module.parameters()
    )
    if sharded:
        raise ValueError(
            f"the parameters of this {name} are sharded over ranks, and a trust-region step is one "
            "over whole vectors: give TRPOOptimizer the plain module, whole on every rank, and "
            "process_group="
        )
    if not isinstance(module, nn.parallel.DistributedDataParallel):
        return module
    if not shared:
        raise ValueError(
            "the policy is wrapped in DistributedDataParallel, whose gradients TRPOOptimizer does "
            "not read: every rank would step on its own rows. Give "
            "process_group=torch.distributed.group.WORLD as well"
        )
    inner: nn.Module = module.module
    return inner
