"""Modules of any make that are at heart a perceptron with a known head.

What a module computes is found once, from one traced call (``tracing``), and kept as a structure
of slots in its module tree. Each time it is asked for, four things are checked again: the tree
(types, ``forward`` functions, hooks, parameters by identity, shape and dtype), the Python state
that ``forward`` can read (``python_state``), the tensors, and now and then the numbers: a few rows
of the batch through ``forward`` and through the network must agree. After a change the module is
traced anew, and the gradients must agree as well. Since ``forward`` can read how many rows there
are, a batch of another length or layout than any before is traced and compared over all of its
rows. No value of a tensor is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count, pairwise
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from trpo_fast.base.modes import own_precision
from trpo_fast.base.tensors import PLAIN_TENSORS
from trpo_fast.networks.mlp import MlpPolicy, ValueFunction
from trpo_fast.networks.network import Layer, Network
from trpo_fast.recognition.module_tree import Tree, read_tree, unusual_part
from trpo_fast.recognition.python_state import (
    changed_by_call,
    global_modes,
    kept_generators,
    python_state,
)
from trpo_fast.recognition.sequential import sequential_layers
from trpo_fast.recognition.structures import (
    Structure,
    distribution_tensors,
    policy_structure,
    policy_tensors,
    value_structure,
    value_tensors,
)
from trpo_fast.recognition.tracing import Tracer

UNDECIDED = "decided at each step, by what forward does with its observations"
DRAWS = "forward draws random numbers from Python's or NumPy's generator"
TRACED_ROWS = 5  # enough that a row is not mistaken for the batch
CHECKED_ROWS = 4
CHECKED_EACH = 32  # of the times that nothing has changed: forward alone is a tenth of a step
ROWS_AT_ONCE = 1 << 17  # CHUNK_ROWS of the generic path: it calls forward with no more
LAYOUTS_KEPT = 64
VALUE_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-11}
GRADIENT_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-9}


class _Memory(NamedTuple):
    key: tuple[Any, ...]
    found: Structure | str
    layouts: dict[tuple[Any, ...], None]  # of the batches that were compared whole
    looks: Iterator[int]  # counts them
    places: list[Any]  # of the tensors, when they were last seen to be servable


class _Batch(NamedTuple):
    """What ``forward`` is given."""

    obs: Tensor  # [N, ...]
    mask: Tensor | None  # [N, n] bool

    def at(self, rows: slice | Tensor) -> _Batch:
        return _Batch(self.obs[rows], None if self.mask is None else self.mask[rows])

    def layout(self) -> tuple[Any, ...]:
        strides = None if self.mask is None else self.mask.stride()
        return len(self.obs), self.obs.stride(), strides

    def through(self, module: nn.Module) -> Any:
        if self.mask is None:
            return module(self.obs)
        return module(self.obs, action_mask=self.mask)


class Recognizer:
    """Finds and remembers what modules compute.

    Args:
        read: From the tracer and what ``forward`` returned to a structure, or a reason.
        observe: The tensors to compare in what ``forward`` returned; None where there are none.
        compute: The same tensors from the structure, the slots' tensors, some rows and their mask.
    """

    def __init__(
        self,
        read: Callable[[Tracer, Any], Structure | str],
        observe: Callable[[Any], tuple[Tensor, ...] | None],
        compute: Callable[[Structure, Sequence[Tensor], Tensor, Tensor | None], tuple[Tensor, ...]],
    ) -> None:
        self._read, self._observe, self._compute = read, observe, compute
        self._memory: WeakKeyDictionary[nn.Module, _Memory] = WeakKeyDictionary()

    def __call__(
        self, module: nn.Module, obs: Any, mask: Any = None
    ) -> tuple[Structure, list[Tensor]] | str:
        """The structure and the tensors in its slots, or the reason why there is none.

        Args:
            module: The module; its modes and parameters are as before afterwards.
            obs: ``[N, ...]``, the batch at hand.
            mask: ``[N, n]`` bool, that batch's ``action_mask``; None calls forward without one.

        Raises:
            ValueError: forward fails on observations of another shape than it was recognised on.
        """
        tree = read_tree(module)
        if isinstance(tree, str):
            return tree
        if obs is None:
            return UNDECIDED
        if not isinstance(obs, Tensor):
            return f"the observations are a {type(obs).__name__}, not one tensor"
        if obs.ndim < 2 or len(obs) == 0:
            return f"the observations have shape {tuple(obs.shape)}, not [N, O]"
        if mask is not None:
            plain = isinstance(mask, Tensor) and mask.dtype is torch.bool and mask.ndim == 2
            if not plain or len(mask) != len(obs) or mask.device != obs.device:
                return "the action_mask is not one tensor [N, n] of bool beside the observations"
        for part in tree.training:  # nn.Module.__setattr__ costs ten times as much
            part.__dict__["training"] = False
        try:
            with own_precision(obs.device):
                found = self._find(module, tree, _Batch(obs, mask))
        except Exception as error:  # noqa: BLE001
            self._check_shape(module, tree, obs, error)
            # The generic path meets the same error, with the module's own traceback.
            return f"forward raised {type(error).__name__}: {error}"
        finally:
            for part in tree.training:
                part.__dict__["training"] = True
        return found if isinstance(found, str) else (found, tree.tensors)

    def _check_shape(self, module: nn.Module, tree: Tree, obs: Tensor, error: Exception) -> None:
        memory = self._memory.get(module)
        if memory is None or memory.key[0] != tree.key or isinstance(memory.found, str):
            return
        expected = tuple(memory.key[1])
        if expected != obs.shape[1:]:
            sizes = ", ".join(str(size) for size in expected)
            raise ValueError(
                f"obs has shape {tuple(obs.shape)}, expected (N, {sizes}), as before: {error}"
            ) from error

    def _find(self, module: nn.Module, tree: Tree, batch: _Batch) -> Structure | str:
        key = _key(tree, batch)
        if isinstance(key, str):
            return key
        memory = self._memory.get(module)
        if memory is None or memory.key != key or not self._holds(module, memory, tree, batch):
            found = self._trace(module, tree, batch)
            again = _key(tree, batch)
            if again != key and not isinstance(again, str):  # set up by the first call, perhaps
                key, found = again, self._trace(module, tree, batch)
            memory = _Memory(key, found, {}, count(1), [])
            self._memory[module] = memory
        layout = batch.layout()
        if layout not in memory.layouts and not isinstance(memory.found, str):
            reason = self._differs(module, memory.found, tree, batch)
            if reason is None and _key(tree, batch) != key:
                reason = changed_by_call(module, lambda: batch.through(module))
            memory = memory._replace(found=reason or memory.found)
            memory.layouts[layout] = None
            if len(memory.layouts) > LAYOUTS_KEPT:
                del memory.layouts[next(iter(memory.layouts))]
            self._memory[module] = memory
        return memory.found

    def _holds(self, module: nn.Module, memory: _Memory, tree: Tree, batch: _Batch) -> bool:
        found = memory.found
        if isinstance(found, str):
            return True
        # Shapes and dtypes are the key's. An address is compared here, and never followed.
        places = [
            t.layout is torch.strided and (t.data_ptr(), t.stride(), not t._backward_hooks)
            for t in map(tree.tensors.__getitem__, found.slots())
        ]
        if places != memory.places:
            if self._servable(found, tree) is not None:
                return False
            memory.places[:] = places
        if next(memory.looks) % CHECKED_EACH:
            return True
        few = batch.at(slice(None, None, max(1, len(batch.obs) // CHECKED_ROWS)))
        return self._agrees(module, found, tree, few.at(slice(CHECKED_ROWS)))

    def _trace(self, module: nn.Module, tree: Tree, batch: _Batch) -> Structure | str:
        """What forward does with a few rows, in values and gradients."""
        device = batch.obs.device
        rows = batch.at(torch.arange(TRACED_ROWS, device=device) % len(batch.obs))
        with kept_generators(device) as drawn, torch.enable_grad():
            found, result = self._watched(module, tree, rows)
            if drawn():
                return DRAWS
            if isinstance(found, str):
                return found
            reason = self._servable(found, tree) or self._gradients_differ(
                result, found, tree.tensors, rows
            )
            if reason is not None:
                return reason
            if not self._agrees(module, found, tree, rows):
                return "forward gives other numbers than the layers found in it"
        return found

    def _watched(self, module: nn.Module, tree: Tree, rows: _Batch) -> tuple[Structure | str, Any]:
        tracer = Tracer(module, rows.obs, tree.tensors, rows.mask)
        with tracer:
            result = rows.through(module)
        return tracer.refusal or self._read(tracer, result), result

    @torch.no_grad()
    def _differs(
        self, module: nn.Module, found: Structure, tree: Tree, batch: _Batch
    ) -> str | None:
        """Whether forward does anything else with all the rows than with a few, and what."""
        with kept_generators(batch.obs.device) as drawn:
            for start in range(0, len(batch.obs), ROWS_AT_ONCE):
                rows = batch.at(slice(start, start + ROWS_AT_ONCE))
                whole, result = self._watched(module, tree, rows)
                if isinstance(whole, str):
                    return whole
                given = self._observe(result)
                if whole != found or not _same(given, self._compute(found, tree.tensors, *rows)):
                    return f"forward does something else with {len(rows.obs)} rows than with a few"
            return DRAWS if drawn() else None

    def _servable(self, found: Structure, tree: Tree) -> str | None:
        return unservable([tree.tensors[slot] for slot in found.slots()])

    @torch.no_grad()
    def _agrees(self, module: nn.Module, found: Structure, tree: Tree, rows: _Batch) -> bool:
        state = torch.get_rng_state()
        given = self._observe(rows.through(module))
        if not torch.equal(state, torch.get_rng_state()):
            torch.set_rng_state(state)  # a look must not change what is drawn later
        return _same(given, self._compute(found, tree.tensors, *rows))

    def _gradients_differ(
        self, result: Any, found: Structure, tensors: Sequence[Tensor], rows: _Batch
    ) -> str | None:
        """Whether backward goes other ways than forward: detach, custom functions, hooks."""
        leaves = [tensors[slot] for slot in found.slots() if tensors[slot].requires_grad]
        if not leaves:
            return None
        sides = (self._observe(result), self._compute(found, tensors, *rows))
        given, wanted = (_gradients(side, leaves) for side in sides)
        for a, b in zip(given, wanted, strict=True):
            if a is None or b is None or not _close(a, b, GRADIENT_TOLERANCE):
                return "gradients through forward differ from those of the layers found in it"
        return None


def _gradients(side: tuple[Tensor, ...] | None, leaves: list[Tensor]) -> Sequence[Tensor | None]:
    """Derivatives of a fixed combination of all entries, or Nones."""
    total: Tensor | None = None
    for tensor in side or ():
        steps = torch.arange(tensor.numel(), dtype=tensor.dtype, device=tensor.device)
        term = (torch.cos(1 + steps).reshape(tensor.shape) * tensor).sum()
        total = term if total is None else total + term
    if total is None or not total.requires_grad:
        return [None] * len(leaves)
    return torch.autograd.grad(total, leaves, allow_unused=True)


def _same(given: tuple[Tensor, ...] | None, wanted: tuple[Tensor, ...]) -> bool:
    if given is None or len(given) != len(wanted):
        return False
    return all(_close(a, b, VALUE_TOLERANCE) for a, b in zip(given, wanted, strict=True))


def _close(a: Tensor, b: Tensor, tolerance: dict[torch.dtype, float]) -> bool:
    """Equal, or within rounding of the greatest entry."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if torch.equal(a, b):
        return True
    endless = b.isinf()  # the logits of what is forbidden
    if not torch.equal(a[endless], b[endless]):
        return False
    a, b = a.masked_fill(endless, 0), b.masked_fill(endless, 0)
    return bool((a - b).abs().max() <= tolerance[a.dtype] * b.abs().max())


def _key(tree: Tree, batch: _Batch) -> tuple[Any, ...] | str:
    """All that ``forward`` can read besides values and the number of rows, or why it is not known.

    The first two are what ``Recognizer._check_shape`` compares.
    """
    state = python_state(tree.parts)
    if isinstance(state, str):
        return state
    obs, mask = batch
    width = None if mask is None else mask.shape[1]
    return tree.key, obs.shape[1:], obs.dtype, obs.device, state, global_modes(), width


recognise_policy = Recognizer(policy_structure, distribution_tensors, policy_tensors)
recognise_values = Recognizer(
    value_structure,
    lambda result: (result.reshape(-1),) if isinstance(result, Tensor) else None,
    value_tensors,
)


_POLICY_FORWARD, _VALUE_FORWARD = MlpPolicy.forward, ValueFunction.forward


def unservable(tensors: Sequence[Tensor]) -> str | None:
    """Why these parameter tensors of a network cannot be served, or None."""
    first = tensors[0]
    if first.dtype not in (torch.float32, torch.float64):
        return f"parameters are {first.dtype}; the fused path serves float32 and float64"
    dtype, device, spans = first.dtype, first.device, []
    for t in tensors:
        if t.dtype is not dtype or t.device != device:
            return "parameters differ in dtype or device"
        if t.layout is not torch.strided:
            return "a parameter is not a dense (strided) tensor"
        if type(t) not in PLAIN_TENSORS or not t.numel():
            return "a parameter is of a tensor subclass, or empty"
        if t._backward_hooks:
            return "a gradient hook is registered on a parameter"
        start = t.data_ptr()
        spans.append((start, start + (t.nbytes if t.is_contiguous() else 1)))
    spans.sort()
    shared = any(end > start for (_, end), (start, _) in pairwise(spans))
    return "two layers share a parameter, or memory of theirs" if shared else None


def layers_of(module: nn.Module, obs: Tensor | None = None) -> tuple[Layer, ...] | str:
    """The layers of a value function, or the reason, in words, why it is not recognised.

    Args:
        module: Its forward maps ``[N, O]`` to ``[N]`` or ``[N, 1]``.
        obs: ``[N, O]``; what another module than ``ValueFunction`` computes is found on these, and
            compared on all of a number of rows that is new, on a few at each ``CHECKED_EACH``-th
            look. Without them such a module is ``UNDECIDED``.
    """
    if type(module) is ValueFunction and ValueFunction.forward is _VALUE_FORWARD:
        layers = _checked_layers(module, module.body)
        if isinstance(layers, str):
            return layers
        tensors = [t for layer in layers for t in (layer.weight, layer.bias) if t is not None]
        return unservable(tensors) or layers
    found = recognise_values(module, obs)
    return found if isinstance(found, str) else found[0].layers(found[1])


def _checked_layers(module: nn.Module, body: nn.Module) -> tuple[Layer, ...] | str:
    reason = unusual_part(module)
    if reason is not None:
        return reason
    if type(body) is not nn.Sequential:
        return f"its body is a {type(body).__name__}, not a plain Sequential"
    return sequential_layers(body)


def network_of(
    module: nn.Module, obs: Any = None, action_mask: Tensor | None = None
) -> Network | str:
    """The network of a policy, or the reason, in words, why it is not recognised.

    Recognised: ``MlpPolicy``, and any module whose forward is at heart a chain of Linear layers and
    activations that ends in a known distribution (``recognizer``), whose logits an action mask may
    lie over; without hooks,
    parametrizations or a replaced forward; with float32 or float64 parameters. The network's
    tensors are the module's own parameters.

    Args:
        module: Its forward maps ``[N, O]`` to a distribution.
        obs: The batch at hand. What another module than ``MlpPolicy`` computes is found on its
            rows, and compared as for ``layers_of``; without them such a module is ``UNDECIDED``.
        action_mask: The batch's mask, or None.
    """
    if type(module) is not MlpPolicy or MlpPolicy.forward is not _POLICY_FORWARD:
        return _foreign_network(module, obs, action_mask)
    layers = _checked_layers(module, module.body)
    if isinstance(layers, str):
        return layers
    if layers[-1].activation != "identity":
        return "the last layer has an activation"
    network = Network(layers, module.head, module.log_std)
    return unservable(list(network.tensors())) or network


def _foreign_network(module: nn.Module, obs: Any, action_mask: Tensor | None) -> Network | str:
    found = recognise_policy(module, obs, action_mask)
    if isinstance(found, str):
        return found if found == UNDECIDED else f"{type(module).__name__}: {found}"
    return found[0].network(found[1])
