"""Preconditioners of the solve: built from curvature statistics that outlive an update.

The exact Fisher product stays in conjugate gradients, so a preconditioner changes how fast they
get to the natural gradient and never where they go. That is why its statistics may be some updates
old and come from a share of the rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from trpo_fast.networks.network import Network
from trpo_fast.preconditioning.kfac import (
    Block,
)
from trpo_fast.update.parameters import FlatParameters
from trpo_fast.update.trust_region import Problem


class Place(NamedTuple):
    """Where a layer's stepped parameters start in the flat vector; None: absent or frozen."""

    weight: int | None
    bias: int | None
    inputs: int
    outputs: int

    @property
    def columns(self) -> int:
        """Of the layer's part as a matrix ``[outputs, columns]``, the bias last."""
        return self.inputs * (self.weight is not None) + (self.bias is not None)


@dataclass(eq=False)
class Preconditioner:
    """``M^-1``, symmetric and positive definite, for one damping.

    Attributes:
        diagonal: ``[P]``, for every entry that no block covers.
        blocks: Layers with a block of their own, and where they stand.
        packed: A backend's own layout of all this, kept with it.
    """

    diagonal: Tensor
    blocks: Sequence[tuple[Place, Block]] = ()
    packed: Any = None

    def apply(self, r: Tensor) -> Tensor:
        """``M^-1 r`` ``[P]``."""
        z = self.diagonal * r
        for at, block in self.blocks:
            columns = []
            if at.weight is not None:
                W = r[at.weight : at.weight + at.inputs * at.outputs]
                columns.append(W.view(at.outputs, at.inputs))
            if at.bias is not None:
                columns.append(r[at.bias : at.bias + at.outputs].unsqueeze(1))
            X = block.apply(torch.cat(columns, 1))
            if at.weight is not None:
                part = X[:, : at.inputs].reshape(-1)
                z[at.weight : at.weight + at.inputs * at.outputs] = part
            if at.bias is not None:
                z[at.bias : at.bias + at.outputs] = X[:, -1]
        return z


class Preconditioned(Problem, Protocol):
    """What an analytic backend's problem is: its solve uses a preconditioner that is set.

    Attributes:
        preconditioner: What the solve uses; None for plain conjugate gradients.
        gains_known: Whether "auto" may choose one: what it gains has been measured there.
    """

    preconditioner: Preconditioner | None
    gains_known: bool


class KroneckerStatistics(ABC):
    """Computes K-FAC's factors. A problem that is one does so itself, over its own rows.

    To be inherited from: asking whether a problem fits a Protocol costs tens of microseconds.
    """

    @abstractmethod
    def input_moments(self, places: Mapping[int, Place], rows: int) -> list[Tensor]:
        """A of the layers in ``places``, over that many evenly strided rows of the Fisher's."""

    @abstractmethod
    def output_moments(
        self, places: Mapping[int, Place], rows: int, first: int = 0
    ) -> list[Tensor]:
        """G of the layers in ``places``, over that many evenly strided rows of the batch.

        ``first`` is the number of the first of them in the draw, as ``kfac.signs_of`` takes it.
        """

    @abstractmethod
    def inverse(self, factor: Tensor, damping: float) -> Tensor:
        """``(factor + damping I)^-1``, perhaps in slabs; LinAlgError where it is singular."""


def places_of(network: Network, parameters: FlatParameters) -> dict[int, Place]:
    """The layers with stepped parameters, by their index."""
    places = {}
    for index, layer in enumerate(network.layers):
        outputs, inputs = layer.weight.shape
        weight, bias = parameters.offset_of(layer.weight), parameters.offset_of(layer.bias)
        at = Place(weight, bias, inputs, outputs)
        if at.weight is not None or at.bias is not None:
            places[index] = at
    return places
