"""Modules of any make that are at heart a perceptron with a known head.

What a module computes is found once, from one traced call (``tracing``), and kept as a structure
of slots in its module tree. Each time it is asked for, three things are checked again: the tree
(types, ``forward`` functions, hooks, parameters by identity, shape and dtype), the tensors, and
the numbers: a few rows of the batch through ``forward`` and through the network must agree. After
a change the module is traced anew, and then the values over the batch and the gradients must agree
as well. No pointer and no value is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules import module as module_globals

from trpo_fast import network
from trpo_fast.modes import own_precision
from trpo_fast.structures import (
    Structure,
    distribution_tensors,
    policy_structure,
    policy_tensors,
    value_structure,
    value_tensors,
)
from trpo_fast.tracing import Tracer

TRACED_ROWS = 5  # enough that a row is not mistaken for the batch
CHECKED_ROWS = 4  # each time
CHECKED_ROWS_ONCE = 8192  # after a trace
VALUE_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-11}
GRADIENT_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-9}


class Tree(NamedTuple):
    """A module with all below it, as it is now."""

    key: list[Any]  # equal keys: the same modules, computing with the same parameters
    tensors: list[Tensor]  # parameters and buffers: the slots
    training: list[nn.Module]  # the modules in train mode


class _Memory(NamedTuple):
    key: tuple[Any, ...]
    found: Structure | str


_GLOBAL_HOOKS = (
    "_global_forward_hooks",
    "_global_forward_pre_hooks",
    "_global_backward_hooks",
    "_global_backward_pre_hooks",
)

# In a module's own dict: what changes a call. Truthy where it is there.
UNUSUAL = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_compiled_call_impl",
)
COMPILED = ("torch._dynamo", "torch.jit")


def unusual_part(module: nn.Module) -> str | None:
    """Why a part of the module may compute something else than its class says, or None."""
    tree = read_tree(module, keyed=False)
    return tree if isinstance(tree, str) else None


def read_tree(module: nn.Module, *, keyed: bool = True) -> Tree | str:
    """The module tree, or why a part of it may compute something else than its class says.

    Args:
        module: The root.
        keyed: Whether the key and the tensors are wanted.
    """
    if any(getattr(module_globals, name) for name in _GLOBAL_HOOKS):
        return "a global module hook is registered"
    key: list[Any] = []
    tensors: list[Tensor] = []
    training: list[nn.Module] = []
    pending, seen = [module], {id(module)}
    while pending:
        part = pending.pop()
        kind, own = type(part), part.__dict__
        if (
            kind.__module__.startswith(COMPILED)
            or "forward" in own
            or any(map(own.get, UNUSUAL))
            or "parametrizations" in own["_modules"]
        ):
            return _unusual(module, part)
        if own["training"]:
            training.append(part)
        if keyed:
            key += (id(part), kind, kind.forward)
            for group in (own["_parameters"], own["_buffers"]):
                for tensor in group.values():
                    if tensor is not None:
                        key += (id(tensor), tensor.shape, tensor.dtype, tensor.requires_grad)
                        tensors.append(tensor)
        for child in own["_modules"].values():
            if child is not None and id(child) not in seen:
                seen.add(id(child))
                pending.append(child)
    return Tree(key, tensors, training)


def _unusual(module: nn.Module, part: nn.Module) -> str:
    name = next((name for name, m in module.named_modules() if m is part), "")
    where = f"module {name!r}" if name else "the module"
    if type(part).__module__.startswith("torch.jit"):
        return f"{where} is compiled by TorchScript"
    own = part.__dict__
    if own.get("_compiled_call_impl") is not None or type(part).__name__ == "OptimizedModule":
        return f"{where} is torch.compile'd; the fused path takes the module as it was before"
    if "parametrizations" in own["_modules"]:
        return f"{where} has parametrizations"
    if "forward" in own:
        return f"{where} has its forward method replaced"
    return f"a forward or backward hook is registered on {where}; remove it for the fused path"


class Recognizer:
    """Finds and remembers what modules compute.

    Args:
        read: From the tracer and what ``forward`` returned to a structure, or a reason.
        observe: The tensors to compare in what ``forward`` returned; None where there are none.
        compute: The same tensors from the structure, the slots' tensors and some rows.
    """

    def __init__(
        self,
        read: Callable[[Tracer, Any], Structure | str],
        observe: Callable[[Any], tuple[Tensor, ...] | None],
        compute: Callable[[Structure, Sequence[Tensor], Tensor], tuple[Tensor, ...]],
    ) -> None:
        self._read, self._observe, self._compute = read, observe, compute
        self._memory: WeakKeyDictionary[nn.Module, _Memory] = WeakKeyDictionary()

    def __call__(self, module: nn.Module, obs: Any) -> tuple[Structure, list[Tensor]] | str:
        """The structure and the tensors in its slots, or the reason why there is none.

        Args:
            module: The module; its modes and parameters are as before afterwards.
            obs: ``[N, ...]``, the batch at hand.

        Raises:
            ValueError: forward fails on observations of another shape than it was recognised on.
        """
        tree = read_tree(module)
        if isinstance(tree, str):
            return tree
        if obs is None:
            return network.UNDECIDED
        if not isinstance(obs, Tensor):
            return f"the observations are a {type(obs).__name__}, not one tensor"
        if obs.ndim < 2 or len(obs) == 0:
            return f"the observations have shape {tuple(obs.shape)}, not [N, O]"
        for part in tree.training:  # nn.Module.__setattr__ costs ten times as much
            part.__dict__["training"] = False
        try:
            with own_precision(obs.device):
                found = self._find(module, tree, obs)
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

    def _find(self, module: nn.Module, tree: Tree, obs: Tensor) -> Structure | str:
        key = (tree.key, obs.shape[1:], obs.dtype, obs.device)
        memory = self._memory.get(module)
        if memory is not None and memory.key == key:
            found = memory.found
            if isinstance(found, str):
                return found
            few = obs[:: max(1, len(obs) // CHECKED_ROWS)][:CHECKED_ROWS]
            if self._servable(found, tree) is None and self._agrees(module, found, tree, few):
                return found
        traced = self._trace(module, tree, obs)
        self._memory[module] = _Memory(key, traced)
        return traced

    def _trace(self, module: nn.Module, tree: Tree, obs: Tensor) -> Structure | str:
        rows = obs[torch.arange(TRACED_ROWS, device=obs.device) % len(obs)]
        tracer = Tracer(module, rows, tree.tensors)
        devices = [obs.device] if obs.device.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.enable_grad():
            with tracer:
                result = module(rows)
            found = tracer.refusal or self._read(tracer, result)
            if isinstance(found, str):
                return found
            reason = self._servable(found, tree) or self._gradients_differ(
                result, found, tree.tensors, rows
            )
            if reason is not None:
                return reason
            many = obs[:: max(1, len(obs) // CHECKED_ROWS_ONCE)][:CHECKED_ROWS_ONCE]
            if not self._agrees(module, found, tree, many):
                return "forward gives other numbers than the layers found in it"
        return found

    def _servable(self, found: Structure, tree: Tree) -> str | None:
        return network.unservable([tree.tensors[slot] for slot in found.slots()])

    @torch.no_grad()
    def _agrees(self, module: nn.Module, found: Structure, tree: Tree, rows: Tensor) -> bool:
        state = torch.get_rng_state()
        given = self._observe(module(rows))
        if not torch.equal(state, torch.get_rng_state()):
            torch.set_rng_state(state)  # a look must not change what is drawn later
        wanted = self._compute(found, tree.tensors, rows)
        if given is None or len(given) != len(wanted):
            return False
        return all(_close(a, b, VALUE_TOLERANCE) for a, b in zip(given, wanted, strict=True))

    def _gradients_differ(
        self, result: Any, found: Structure, tensors: Sequence[Tensor], rows: Tensor
    ) -> str | None:
        """Whether backward goes other ways than forward: detach, custom functions, hooks."""
        leaves = [tensors[slot] for slot in found.slots() if tensors[slot].requires_grad]
        if not leaves:
            return None
        sides = (self._observe(result), self._compute(found, tensors, rows))
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


def _close(a: Tensor, b: Tensor, tolerance: dict[torch.dtype, float]) -> bool:
    """Equal, or within rounding of the greatest entry."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if torch.equal(a, b):
        return True
    return bool((a - b).abs().max() <= tolerance[a.dtype] * b.abs().max())


recognise_policy = Recognizer(policy_structure, distribution_tensors, policy_tensors)
recognise_values = Recognizer(
    value_structure,
    lambda result: (result.reshape(-1),) if isinstance(result, Tensor) else None,
    value_tensors,
)
