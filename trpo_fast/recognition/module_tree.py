"""A module's parts as they stand, and what in them rules the fused path out."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.modules import module as module_globals


class Tree(NamedTuple):
    """A module with all below it, as it is now."""

    parts: list[nn.Module]  # the module itself first
    key: list[Any]  # equal keys: the same modules, computing with the same parameters
    tensors: list[Tensor]  # parameters and buffers: the slots
    training: list[nn.Module]  # the modules in train mode


_GLOBAL_HOOKS = (
    "_global_forward_hooks",
    "_global_forward_pre_hooks",
    "_global_backward_hooks",
    "_global_backward_pre_hooks",
)


@lru_cache(maxsize=4096)
def _is_compiled(python_module: str) -> bool:
    """Whether a class of this Python module stands for one that was compiled."""
    return python_module.startswith(("torch._dynamo", "torch.jit"))


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
    parts: list[nn.Module] = []
    pending, seen = [module], {id(module)}
    while pending:
        part = pending.pop()
        kind, own = type(part), part.__dict__
        children = own["_modules"]
        if (
            "forward" in own
            or own["_forward_hooks"]
            or own["_forward_pre_hooks"]
            or own["_backward_hooks"]
            or own["_backward_pre_hooks"]
            or own.get("_compiled_call_impl")
            or "parametrizations" in children
            or _is_compiled(kind.__module__)
        ):
            return _unusual(module, part)
        if own["training"]:
            training.append(part)
        if keyed:
            parts.append(part)
            key += (id(part), kind, kind.forward)
            for group in (own["_parameters"], own["_buffers"]):
                for tensor in group.values():
                    if tensor is not None:
                        key += (id(tensor), tensor.shape, tensor.dtype, tensor.requires_grad)
                        tensors.append(tensor)
        for child in children.values():
            if child is not None and id(child) not in seen:
                seen.add(id(child))
                pending.append(child)
    return Tree(parts, key, tensors, training)


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
