"""What a traced tensor holds, and what torch functions make of it.

``RULES`` names every function that keeps a value known. An activation is one line in
``ACTIVATION_RULES``, once ``networks.activations.ACTIVATIONS`` has it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from trpo_fast.networks.activations import SOFTPLUS_THRESHOLD
from trpo_fast.recognition.values import (
    Allowed,
    Call,
    Chain,
    Columns,
    Constant,
    Detached,
    Exp,
    Forbidden,
    Logits,
    Masked,
    Observations,
    Raised,
    Row,
    RowNumber,
    Shifted,
    Slot,
    Softplus,
    Stacked,
    Step,
    Transposed,
    Value,
)

# What a function's outputs hold, given the call; None where nothing is known.
Known = Callable[[Tensor], Value | None] | None
Rule = Callable[[Call], Known]


def _linear(call: Call) -> Known:
    x = call.argument(0, "input")
    return _layer(call, x, call.argument(1, "weight"), call.argument(2, "bias"))


def _layer(call: Call, x: Any, weight: Any, bias: Any) -> Known:
    source, slot = call.known(x), call.known(weight)
    offset = None if bias is None else call.known(bias)
    if not isinstance(source, Observations | Chain) or not isinstance(slot, Slot | Transposed):
        return None
    if x.ndim != 2 or weight.ndim != 2 or (bias is not None and not isinstance(offset, Slot)):
        return None
    width = weight.shape[0] if isinstance(slot, Slot) else weight.shape[1]
    if bias is not None and tuple(bias.shape) != (width,):
        return None
    steps = source.steps if isinstance(source, Chain) else ()
    step = Step(slot.index, offset.index if isinstance(offset, Slot) else None)
    # Another dtype means that forward runs this layer under autocast.
    return lambda out: Chain((*steps, step)) if out.dtype == weight.dtype else None


def _matmul(call: Call) -> Known:
    x, weight = call.argument(0, "input"), call.argument(1, "other", call.kwargs.get("mat2"))
    if not isinstance(call.known(weight), Transposed):
        return None
    return _layer(call, x, weight, None)


def _addmm(call: Call) -> Known:
    weight = call.argument(2, "mat2")
    if {"alpha", "beta"} & set(call.kwargs) or not isinstance(call.known(weight), Transposed):
        return None
    return _layer(call, call.argument(1, "mat1"), weight, call.argument(0, "input"))


def _activated(call: Call, kind: str, parameter: Any = 0.0) -> Known:
    """The chain with an activation on its last layer, where it has none yet."""
    chain = call.known(call.argument(0, "input"))
    if not isinstance(chain, Chain) or chain.squeezed:
        return None
    last = chain.steps[-1]
    if last.activation != "identity" or "out" in call.kwargs or len(call.args) > 3:
        return None
    if not isinstance(parameter, int | float):
        return None
    step = replace(last, activation=kind, parameter=float(parameter))
    return lambda _: Chain((*chain.steps[:-1], step))


def _plain(kind: str) -> Rule:
    """An activation without a number."""
    return lambda call: _activated(call, kind)


def _leaky_relu(call: Call) -> Known:
    return _activated(call, "leaky_relu", call.argument(1, "negative_slope", 0.01))


def _elu(call: Call) -> Known:
    # torch's own has scale where the functional has inplace.
    inplace = isinstance(call.argument(2, "inplace", False), bool)
    if not inplace or call.kwargs.keys() & {"scale", "input_scale"}:
        return None
    return _activated(call, "elu", call.argument(1, "alpha", 1.0))


def _gelu(call: Call) -> Known:
    kinds = {"none": "gelu", "tanh": "gelu_tanh"}
    return _activated(call, kinds[call.argument(1, "approximate", "none")])


def _softplus(call: Call) -> Known:
    if call.argument(2, "threshold", SOFTPLUS_THRESHOLD) != SOFTPLUS_THRESHOLD:
        return None
    beta, value = call.argument(1, "beta", 1.0), call.known(call.argument(0, "input"))
    if isinstance(value, Columns):
        plain = value.chain.steps[-1].activation == "identity" and beta == 1.0
        return (lambda _: Softplus(value)) if plain else None
    return _activated(call, "softplus", beta)


def _exp(call: Call) -> Known:
    value = call.values[0]
    return (lambda _: Exp(value)) if isinstance(value, Slot | Row | Columns | Chain) else None


def _transpose(call: Call) -> Known:
    value, tensor = call.values[0], call.tensors[0]
    if not isinstance(value, Slot) or tensor.ndim != 2:
        return None
    strides = tensor.stride()[::-1]
    return lambda out: Transposed(value.index) if out.stride() == strides else None


def _cast(call: Call) -> Known:
    """A copy, or the cast of whole-number observations that the batch undergoes as well."""
    if not call.tensors:
        return _constant(None, 0, "data")(call)
    value, tensor = call.values[0], call.tensors[0]

    def result(out: Tensor) -> Value | None:
        exact = isinstance(value, Observations) and not tensor.is_floating_point()
        same = out.dtype == tensor.dtype or (exact and out.is_floating_point())
        return value if same and out.device == tensor.device else None

    return result


def _shape(call: Call) -> Known:
    """Functions that keep the entries' order, or repeat what they are given."""

    def result(out: Tensor) -> Value | None:
        # Of broadcast_tensors, each output belongs to the input at its place.
        at = next((i for i, o in enumerate(call.outputs) if o is out), 0)
        tensor, value = call.tensors[at], call.values[at]
        if out.dtype != tensor.dtype:  # Tensor.view reads the bits as another type
            return None
        if out.shape == tensor.shape or isinstance(value, Constant):
            return value
        return _reshaped(value, tensor, out)

    return result


def _reshaped(value: Value | None, tensor: Tensor, out: Tensor) -> Value | None:
    rows = tensor.shape[0] if tensor.ndim else 0
    if isinstance(value, Observations):
        kept = out.ndim > 1 and out.shape[0] == rows and out.numel() == tensor.numel()
        return value if kept else None
    if isinstance(value, Chain):
        narrow = tensor.numel() == rows == out.numel()
        if narrow and out.shape in ((rows,), (rows, 1)):
            return replace(value, squeezed=out.ndim == 1)
        return None
    if isinstance(value, Slot) and out.ndim and out.numel() == tensor.numel() == out.shape[-1]:
        return Row(value.index)  # a parameter [A, 1] as [1, A]: the order of entries is the same
    if _is_row(value) and tensor.ndim and out.ndim and out.shape[-1] == tensor.shape[-1]:
        # One row broadcast over the batch, or a parameter [1, A] as [A].
        whole = tensor.numel() == tensor.shape[-1] or tensor.stride()[0] == 0
        if whole:
            return Row(value.index) if isinstance(value, Slot) else value
    return None


def _is_row(value: Value | None) -> bool:
    of = value.of if isinstance(value, Exp) else value
    return isinstance(of, Slot | Row)


def _part(call: Call) -> Known:
    """Slices: read off the view's geometry, however it was written."""
    value, tensor = call.values[0], call.tensors[0]

    def result(out: Tensor) -> Value | None:
        if out.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr():
            return None
        offset = int(out.storage_offset()) - int(tensor.storage_offset())
        if out.ndim != tensor.ndim:
            same_start = offset == 0 and out.stride()[-1:] == tensor.stride()[-1:]
            row = _is_row(value) and same_start
            narrow = isinstance(value, Chain) and tensor.shape[1:] == (1,) and offset == 0
            return _reshaped(value, tensor, out) if row or narrow else None
        if out.stride() != tensor.stride():
            return None
        if out.shape == tensor.shape:
            return value if offset == 0 else None
        of = value.of if isinstance(value, Raised) else value
        base = of.chain if isinstance(of, Columns) else of
        start = of.start if isinstance(of, Columns | Allowed) else 0
        if out.ndim != 2 or out.shape[0] != tensor.shape[0]:
            return None
        if tensor.stride(1) != 1 or offset + out.shape[1] > tensor.shape[1]:
            return None
        ends = start + offset, start + offset + out.shape[1]
        if isinstance(base, Allowed):
            return Allowed(*ends)
        if not isinstance(base, Chain):
            return None
        columns = Columns(base, *ends)
        return Raised(columns) if isinstance(value, Raised) else columns

    return result


def _same_as_operand(neutral: float) -> Rule:
    """``1 * x`` and ``0 + x`` with a tensor of ones or zeros, which is how a row is broadcast."""

    def rule(call: Call) -> Known:
        pairs = list(zip(call.values, call.tensors, strict=True))
        if neutral == 0 and len(pairs) == 1:
            return _raised(call)
        if len(pairs) != 2 or "alpha" in call.kwargs:
            return None
        if neutral == 0 and isinstance(pairs[0][0], Chain) and isinstance(pairs[1][0], Slot):
            return _add_bias(call)
        for (constant, _), (value, tensor) in (pairs, pairs[::-1]):
            if constant == Constant(neutral) and (_is_row(value) or isinstance(value, Chain)):
                return _kept(value, tensor)
        return None

    return rule


def _kept(value: Value | None, tensor: Tensor) -> Callable[[Tensor], Value | None]:
    def result(out: Tensor) -> Value | None:
        if out.dtype != tensor.dtype:
            return None
        return value if out.shape == tensor.shape else _reshaped(value, tensor, out)

    return result


def _add_bias(call: Call) -> Known:
    chain, slot = call.values
    assert isinstance(chain, Chain)  # noqa: S101
    assert isinstance(slot, Slot)  # noqa: S101
    last = chain.steps[-1]
    if last.bias is not None or last.activation != "identity" or chain.squeezed:
        return None
    if tuple(call.tensors[1].shape) != tuple(call.tensors[0].shape[1:]):
        return None
    step = replace(last, bias=slot.index)
    return lambda _: Chain((*chain.steps[:-1], step))


def _raised(call: Call) -> Known:
    """1 + softplus of outputs, of all or of a part of them."""
    value, tensor = call.values[0], call.tensors[0]
    others = [given for given in call.args if given is not tensor]
    if call.kwargs or len(others) != 1 or tensor.ndim != 2:
        return None
    if not isinstance(others[0], int | float) or others[0] != 1:
        return None
    if isinstance(value, Softplus):
        return lambda _: Raised(value.of)
    columns = Columns(value, 0, tensor.shape[1]) if isinstance(value, Chain) else value
    if not isinstance(columns, Columns):
        return None
    *before, last = columns.chain.steps
    if (last.activation, last.parameter) != ("softplus", 1.0):
        return None
    plain = Chain((*before, replace(last, activation="identity", parameter=0.0)))
    return lambda _: Raised(replace(columns, chain=plain))


def _stack(call: Call) -> Known:
    values = tuple(call.values)
    return (lambda _: Stacked(values)) if call.argument(1, "dim", 0) == -1 else None


def _constant(number: float | None, position: int = -1, keyword: str = "") -> Rule:
    def rule(call: Call) -> Known:
        given = number if number is not None else call.argument(position, keyword)
        usable = isinstance(given, int | float) and not isinstance(given, bool)
        return (lambda _: Constant(float(given))) if usable else None

    return rule


def _row_number(call: Call) -> Known:
    """``logsumexp`` and ``amax``."""
    value = call.values[0]
    logits = value.of if isinstance(value, Detached) else value
    if not isinstance(logits, Logits) or call.tensors[0].ndim != 2:
        return None
    if not call.argument(2, "keepdim", False):
        return None
    dim = call.argument(1, "dim")
    return (lambda _: RowNumber(logits)) if dim in (-1, 1, (-1,), (1,)) else None


def _detach(call: Call) -> Known:
    value = call.values[0]
    return (lambda _: Detached(value)) if isinstance(value, Logits) else None


def _log_softmax(call: Call) -> Known:
    value = call.values[0]
    if not isinstance(value, Chain | Columns | Masked) or call.argument(1, "dim") not in (-1, 1):
        return None
    if isinstance(value, Chain) and value.squeezed:
        return None
    return lambda out: Shifted(value) if out.dtype == call.tensors[0].dtype else None


def _subtract(call: Call) -> Known:
    """Logits less their logsumexp, as Categorical normalises them, or less the greatest."""
    if len(call.values) != 2 or "alpha" in call.kwargs:
        return None
    left, right = call.values
    if isinstance(left, Logits) and right == RowNumber(left):
        return lambda _: left if isinstance(left, Shifted) else Shifted(left)
    return None


def _negated(call: Call) -> Known:
    value = call.values[0]
    return (lambda _: Forbidden(value)) if isinstance(value, Allowed) else None


def _masked_fill(call: Call) -> Known:
    where = call.known(call.argument(1, "mask"))
    by = where.where if isinstance(where, Forbidden) else None
    return _masked(call, call.argument(0, "input"), by, call.argument(2, "value"))


def _where(call: Call) -> Known:
    by = call.known(call.argument(0, "condition"))
    return _masked(call, call.argument(1, "input"), by, call.argument(2, "other"))


def _masked(call: Call, logits: Any, by: Value | None, filled: Any) -> Known:
    """Logits where the mask allows, -inf elsewhere."""
    value, constant = call.known(logits), call.known(filled)
    number = constant.number if isinstance(constant, Constant) else filled
    if not isinstance(number, float) or number != -math.inf or logits.ndim != 2:
        return None
    if not isinstance(value, Chain | Columns) or not isinstance(by, Allowed):
        return None
    found, whole = Masked(value, by), (len(logits), by.stop - by.start)  # no mask is broadcast
    return lambda out: found if whole == tuple(logits.shape) == out.shape else None


def _dropout(call: Call) -> Known:
    """Dropout, which is the identity in eval mode."""
    value = call.values[0]
    off = not call.argument(2, "training", True)
    return (lambda _: value) if off else None


ACTIVATION_RULES: dict[str, Rule] = {
    **{name: _plain(name) for name in ("tanh", "relu", "sigmoid", "silu")},
    **dict.fromkeys(("expit", "special_expit"), _plain("sigmoid")),
    "gelu": _gelu,
    "leaky_relu": _leaky_relu,
    "elu": _elu,
    "softplus": _softplus,
}
RULES: dict[str, Rule] = {
    **ACTIVATION_RULES,
    "linear": _linear,
    "addmm": _addmm,
    **dict.fromkeys(("matmul", "mm", "__matmul__"), _matmul),
    **dict.fromkeys(("T", "mT", "t", "transpose", "permute", "swapaxes"), _transpose),
    **dict.fromkeys(("to", "float", "double", "type", "type_as", "clone", "contiguous"), _cast),
    **dict.fromkeys(("reshape", "view", "flatten", "squeeze", "unsqueeze", "view_as"), _shape),
    **dict.fromkeys(("expand", "expand_as", "broadcast_to", "broadcast_tensors"), _shape),
    **dict.fromkeys(("repeat", "reshape_as", "ravel", "atleast_2d"), _shape),
    **dict.fromkeys(("chunk", "split", "tensor_split", "narrow", "__getitem__"), _part),
    **dict.fromkeys(("hsplit", "split_with_sizes", "select"), _part),
    **dict.fromkeys(("mul", "__mul__", "multiply", "__rmul__"), _same_as_operand(1.0)),
    **dict.fromkeys(("add", "__add__", "__radd__"), _same_as_operand(0.0)),
    **dict.fromkeys(("ones_like", "ones", "new_ones"), _constant(1.0)),
    **dict.fromkeys(("zeros_like", "zeros", "new_zeros"), _constant(0.0)),
    **dict.fromkeys(("full_like", "full"), _constant(None, 1, "fill_value")),
    **dict.fromkeys(("tensor", "scalar_tensor"), _constant(None, 0, "data")),
    "as_tensor": _cast,
    "exp": _exp,
    **dict.fromkeys(("logsumexp", "amax"), _row_number),
    "detach": _detach,
    "stack": _stack,
    "log_softmax": _log_softmax,
    **dict.fromkeys(("__invert__", "bitwise_not", "logical_not"), _negated),
    "masked_fill": _masked_fill,
    "where": _where,
    **dict.fromkeys(("sub", "__sub__", "subtract"), _subtract),
    **dict.fromkeys(("dropout", "alpha_dropout", "feature_alpha_dropout"), _dropout),
    **dict.fromkeys(("dropout1d", "dropout2d", "dropout3d"), _dropout),
}
