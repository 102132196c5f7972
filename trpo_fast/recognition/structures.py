"""A recognised module as layers and head over slots, read off what was traced."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import Tensor
from torch.distributions import Beta, Distribution, Independent, Normal

from trpo_fast.base.trees import leaves, named, refilled
from trpo_fast.networks import network
from trpo_fast.networks.beta import BetaHead
from trpo_fast.networks.head import Head
from trpo_fast.networks.heads import GaussianHead, StateStdGaussianHead, head_of_outputs
from trpo_fast.networks.joint import JointDistribution
from trpo_fast.networks.joint_head import JointHead
from trpo_fast.networks.network import Layer, Network
from trpo_fast.recognition.tracing import Tracer
from trpo_fast.recognition.values import (
    Allowed,
    Chain,
    Columns,
    Constant,
    Exp,
    Masked,
    Raised,
    Row,
    Shifted,
    Slot,
    Stacked,
    Step,
    Unknown,
    Value,
)

KNOWN_HEADS = (
    "Independent(Normal, 1), Independent(Beta, 1), Categorical, trpo_fast's MaskedCategorical and "
    "MultiCategorical, Independent(Bernoulli, 1), and its JointDistribution of these"
)
MASK = "forward does not lay its action_mask, as it is given, over the logits"


@dataclass(frozen=True)
class Structure:
    """A recognised module: layers, and for a policy its head; tensors are given by slots.

    ``log_std`` is a slot, or the logarithm of a fixed standard deviation.
    """

    steps: tuple[Step, ...]
    head: Head | None = None
    log_std: int | float | None = None

    def slots(self) -> Iterator[int]:
        """The slots of the tensors that the structure uses."""
        if isinstance(self.log_std, int):
            yield self.log_std
        for step in self.steps:
            yield step.weight
            if step.bias is not None:
                yield step.bias

    def layers(self, tensors: Sequence[Tensor]) -> tuple[Layer, ...]:
        """The layers, with the tensors that are in their slots now."""
        return tuple(
            Layer(
                tensors[s.weight],
                None if s.bias is None else tensors[s.bias],
                s.activation,
                s.parameter,
            )
            for s in self.steps
        )

    def network(self, tensors: Sequence[Tensor]) -> Network:
        """The policy's network, with the tensors that are in their slots now."""
        assert self.head is not None  # noqa: S101
        log_std = None
        if isinstance(self.log_std, int):
            log_std = tensors[self.log_std]
        elif self.log_std is not None:
            log_std = tensors[self.steps[0].weight].new_full((self.head.log_stds,), self.log_std)
        return Network(self.layers(tensors), self.head, log_std)


def policy_structure(tracer: Tracer, result: Any) -> Structure | str:
    """The structure of a policy from what its ``forward`` returned, or why there is none.

    Where the tracer has a mask, ``forward`` laid it over the logits as the head would.
    """
    if not isinstance(result, Distribution):
        return f"forward returns a {type(result).__name__}, not a torch Distribution"
    replaced = _replaced_method(result)
    if replaced is not None:
        return f"forward replaces {replaced} of the distribution that it returns"
    if type(result) is JointDistribution:
        return _of_parts(tracer, result)
    inner: Any = result
    if type(result) is Independent and result.reinterpreted_batch_ndims == 1:
        inner = result.base_dist
    wrapped = inner is not result
    kind = type(inner)
    if wrapped and kind in (Normal, Beta):
        if tracer.masked is not None:
            return MASK
        return _gaussian(tracer, inner) if kind is Normal else _beta(tracer, inner)
    # Before the logits are asked for, which makes them.
    from_probs = "probs" in inner.__dict__ and "logits" not in inner.__dict__
    found = head_of_outputs(result)
    if found is not None and from_probs:
        return f"the {kind.__name__} is made from probs; make it from logits"
    if found is not None:
        return _of_outputs(tracer, *found)
    name = f"Independent({kind.__name__})" if wrapped else kind.__name__
    return f"forward returns {name}; the fused path knows {KNOWN_HEADS}"


def _replaced_method(distribution: Distribution) -> str | None:
    """What is callable among the attributes of a distribution itself, or of what it is made of."""
    parts: list[Any] = distribution.leaves if type(distribution) is JointDistribution else []
    for name, value in vars(distribution).items():
        if callable(value):
            return name
        parts += value if type(value) is list else [value]
    found = (_replaced_method(part) for part in parts if isinstance(part, Distribution))
    return next((name for name in found if name is not None), None)


def _of_parts(tracer: Tracer, joint: JointDistribution) -> Structure | str:
    """A joint distribution whose parts share one layer's outputs out among them, in order."""
    heads: list[Head] = []
    chains: list[Chain] = []
    log_std: int | float | None = None
    end = masked = 0
    for path, part in leaves(joint.parts):
        found = _part(tracer, part)
        if isinstance(found, str):
            return f"{named('action', path)}: {found}"
        head, columns, scale, allowed = found
        own = Allowed(masked, masked + sum(head.nvec)) if tracer.masked and head.nvec else None
        if allowed != own:
            return f"{named('action', path)}: {MASK}"
        masked += sum(head.nvec)
        if columns.start != end or (chains and columns.chain != chains[0]):
            return f"{named('action', path)} is not made of the next outputs of the same layer"
        if scale is not None and log_std is not None:
            return "two parts have log standard deviations that are parameters of their own"
        log_std = log_std if scale is None else scale
        heads.append(head)
        chains.append(columns.chain)
        end = columns.stop
    steps = chains[0].steps
    if steps[-1].activation != "identity":
        return f"the last layer has an activation ({steps[-1].activation})"
    if len(tracer.slot(steps[-1].weight)) != end:
        return "the parts leave outputs of their layer unused"
    if tracer.masked not in (None, masked):
        return MASK
    nesting = refilled(joint.parts, iter(range(len(heads))))
    return Structure(steps, JointHead(tuple(heads), nesting), log_std)


class _Part(NamedTuple):
    """A part's head, the outputs it is made of, its log standard deviation and its mask."""

    head: Head
    columns: Columns
    log_std: int | float | None = None
    allowed: Allowed | None = None


def _part(tracer: Tracer, part: Distribution) -> _Part | str:
    inner: Any = part
    if type(part) is Independent and type(inner.base_dist) is Beta:
        found = _beta_part(tracer, inner.base_dist)
        single = inner.reinterpreted_batch_ndims == 1
        return found if single else "a Beta that is not Independent(..., 1)"
    if type(part) is Independent and type(inner.base_dist) is Normal:
        if inner.reinterpreted_batch_ndims != 1:
            return "a Normal that is not Independent(..., 1)"
        return _gaussian_part(tracer, inner.base_dist)
    base = inner.base_dist if type(part) is Independent else inner
    from_probs = "probs" in base.__dict__ and "logits" not in base.__dict__
    of_outputs = head_of_outputs(part)
    if of_outputs is None or from_probs:
        return f"{type(base).__name__} {'from probs' if of_outputs else 'is unknown'}"
    head, outputs = of_outputs
    value, allowed = _unmasked(tracer.value(outputs), head)
    columns = _columns(value, outputs)
    if columns is None:
        return "its logits are not outputs of a layer"
    return _Part(head, columns, None, allowed)


def _unmasked(value: Value, head: Head) -> tuple[Value, Allowed | None]:
    """What logits were before they were normalised and masked, and the mask's columns.

    A number that is added to all logits of a row changes nothing for categories, but for bits.
    """
    plain = value.of if isinstance(value, Shifted) and head.nvec else value
    return (plain.of, plain.by) if isinstance(plain, Masked) else (plain, None)


def _beta_part(tracer: Tracer, beta: Beta) -> _Part | str:
    stacked = tracer.value(beta._dirichlet.concentration)  # alpha and beta side by side
    values = stacked.of if isinstance(stacked, Stacked) else (stacked,)
    for value in values:
        if isinstance(value, Unknown):
            return value.reason
    alpha, width = values[0], beta.batch_shape[-1]
    if len(beta.batch_shape) == 2 and isinstance(alpha, Raised):
        columns = alpha.of
        if values[1] == Raised(Columns(columns.chain, columns.stop, columns.stop + width)):
            return _Part(BetaHead(width), replace(columns, stop=columns.stop + width))
    return "its concentrations are not 1 + softplus of the two halves, in this order, of a layer"


def _beta(tracer: Tracer, beta: Beta) -> Structure | str:
    found = _beta_part(tracer, beta)
    if isinstance(found, str):
        return f"of the Beta, {found}" if found.startswith("its") else found
    steps, outputs = found.columns.chain.steps, found.head.outputs
    if (found.columns.start, len(tracer.slot(steps[-1].weight))) != (0, outputs):
        return "the Beta leaves outputs of its layer unused"
    return Structure(steps, found.head)


def _gaussian_part(tracer: Tracer, normal: Normal) -> _Part | str:
    mean, scale = tracer.value(normal.loc), tracer.value(normal.scale)
    columns = _columns(mean, normal.loc)
    if columns is None:
        return "its mean is not outputs of a layer"
    width = columns.stop - columns.start
    if isinstance(scale, Constant) and scale.number > 0:
        return _Part(GaussianHead(width), columns, math.log(scale.number))
    of = scale.of if isinstance(scale, Exp) else None
    if isinstance(of, Slot | Row) and tracer.slot(of.index).numel() == width:
        return _Part(GaussianHead(width), columns, of.index)
    if of == Columns(columns.chain, columns.stop, columns.stop + width):
        return _Part(StateStdGaussianHead(width), replace(columns, stop=columns.stop + width))
    return "its standard deviation is not exp of a parameter, or of the outputs after the mean"


def _columns(value: Any, tensor: Tensor) -> Columns | None:
    """The columns of a layer's outputs that a tensor ``[N, n]`` is, or None."""
    if tensor.ndim != 2:
        return None
    if isinstance(value, Chain) and not value.squeezed:
        return Columns(value, 0, tensor.shape[1])
    return value if isinstance(value, Columns) else None


def _of_outputs(tracer: Tracer, head: Head, outputs: Tensor) -> Structure | str:
    value = tracer.value(outputs)
    if isinstance(value, Unknown):
        return value.reason
    chain, allowed = _unmasked(value, head)
    if not isinstance(chain, Chain) or outputs.ndim != 2 or chain.squeezed:
        return "the logits are not the outputs [N, n] of one layer"
    if chain.steps[-1].activation != "identity":
        return f"the last layer has an activation ({chain.steps[-1].activation})"
    given = None if tracer.masked is None else Allowed(0, tracer.masked)
    if allowed != given or (given is not None and not head.nvec):
        return MASK
    return Structure(chain.steps, head)


def _gaussian(tracer: Tracer, normal: Normal) -> Structure | str:
    mean, scale = tracer.value(normal.loc), tracer.value(normal.scale)
    for value in (mean, scale):
        if isinstance(value, Unknown):
            return value.reason
    if normal.loc.ndim != 2:
        return f"the Normal has shape {tuple(normal.loc.shape)}, not [N, A]"
    width = normal.loc.shape[1]
    chain = mean.chain if isinstance(mean, Columns) else mean
    if not isinstance(chain, Chain) or chain.squeezed:
        return "the mean is not the output of a layer"
    if chain.steps[-1].activation != "identity":
        return f"the last layer has an activation ({chain.steps[-1].activation})"
    if isinstance(scale, Slot | Row):
        return (
            f"the standard deviation is {tracer.slot_name(scale.index)} itself; make its logarithm "
            "the parameter: Normal(mean, log_std.exp())"
        )
    if isinstance(mean, Columns):
        last = tracer.slot(chain.steps[-1].weight)
        halves = (Columns(chain, 0, width), Exp(Columns(chain, width, 2 * width)))
        if (mean, scale) == halves and len(last) == 2 * width:
            return Structure(chain.steps, StateStdGaussianHead(width))
        return "mean and log standard deviation are not the two halves, in this order, of a layer"
    if isinstance(scale, Constant) and scale.number > 0:
        return Structure(chain.steps, GaussianHead(width), math.log(scale.number))
    of = scale.of if isinstance(scale, Exp) else None
    if isinstance(of, Slot | Row) and tracer.slot(of.index).numel() == width:
        return Structure(chain.steps, GaussianHead(width), of.index)
    if isinstance(of, Chain | Columns):
        return (
            "mean and log standard deviation come from two layers; the fused path knows one layer "
            "with both, mean first"
        )
    return "the standard deviation is not exp of a parameter with one entry per action dimension"


def value_structure(tracer: Tracer, result: Any) -> Structure | str:
    """The structure of a value function from what it returned, or why there is none."""
    if not isinstance(result, Tensor):
        return f"forward returns a {type(result).__name__}, not a tensor"
    value = tracer.value(result)
    if isinstance(value, Unknown):
        return value.reason
    if not isinstance(value, Chain) or result.numel() != len(result):
        return "forward does not return the output of a layer of width 1"
    return Structure(value.steps)


def distribution_tensors(distribution: Any) -> tuple[Tensor, ...] | None:
    """What a distribution of a known kind is made of."""
    if type(distribution) is JointDistribution:
        found_parts = [distribution_tensors(part) for part in distribution.leaves]
        known = [tensors for tensors in found_parts if tensors is not None]
        if len(known) < len(found_parts):
            return None
        return tuple(tensor for tensors in known for tensor in tensors)
    if type(distribution) is Independent and type(distribution.base_dist) is Normal:
        return distribution.base_dist.loc, distribution.base_dist.scale
    if type(distribution) is Independent and type(distribution.base_dist) is Beta:
        return distribution.base_dist.concentration1, distribution.base_dist.concentration0
    found = head_of_outputs(distribution)
    return None if found is None else (found[1],)


def policy_tensors(
    structure: Structure, tensors: Sequence[Tensor], rows: Tensor, mask: Tensor | None
) -> tuple[Tensor, ...]:
    """``distribution_tensors`` of what the structure computes on some rows."""
    net = structure.network(tensors)
    outputs = network.forward(net.layers, _rows_of(net.layers, rows))
    return net.head.parts(net.at(outputs, mask))


def value_tensors(
    structure: Structure, tensors: Sequence[Tensor], rows: Tensor, mask: Tensor | None
) -> tuple[Tensor, ...]:
    """The values ``[n]`` that the structure computes on some rows, in a tuple."""
    assert mask is None  # noqa: S101
    layers = structure.layers(tensors)
    return (network.forward(layers, _rows_of(layers, rows)).reshape(-1),)


def _rows_of(layers: Sequence[Layer], rows: Tensor) -> Tensor:
    """Observations as ``fused_batch`` prepares them: flat rows ``[n, O]`` in the layers' dtype."""
    return rows.flatten(1).to(layers[0].weight.dtype)
