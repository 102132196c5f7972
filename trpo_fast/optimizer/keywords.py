"""The keywords of ``TRPOOptimizer``: those of the option table, spelt out, and torch's."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec

from torch import nn

from trpo_fast.base.synonyms import hint
from trpo_fast.update.options import TABLE, Options

# Keywords of torch's optimizers that ask for what a trust-region step cannot be.
UNSERVED = {
    "capturable": "whether a candidate is taken is decided on the host, so no step can be captured",
    "differentiable": "the line search is no differentiable function of its inputs",
    "foreach": "all parameters are one vector already",
    "fused": "backend= names what computes the update",
}
Params = nn.Module | Iterable[Any]
P = ParamSpec("P")


@dataclass(frozen=True, kw_only=True)
class Keywords(Options):
    """What ``TRPOOptimizer`` takes beside the parameters: the options, and who shares the step."""

    process_group: Any = None


def takes_options(
    keywords: Callable[P, Options],
) -> Callable[[Callable[..., None]], Callable[Concatenate[Any, Params, P], None]]:
    """Spell out ``**options`` of an ``__init__`` for type checkers, ``help`` and signatures."""

    def spelt_out(init: Callable[..., None]) -> Callable[Concatenate[Any, Params, P], None]:
        own = inspect.signature(init)
        named = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
        options = inspect.signature(keywords).parameters.values()
        init.__signature__ = own.replace(parameters=[*named, *options])  # type: ignore[attr-defined]
        init.__doc__ = "Options:\n" + "\n".join(
            f"  {row.name}: {row.text}. {row.note}".rstrip() for row in TABLE.values()
        )
        return init

    return spelt_out


def served(keywords: dict[str, Any]) -> dict[str, Any]:
    """The keywords that are options.

    Raises:
        TypeError: one is no keyword of any optimizer.
        ValueError: one is torch's, and asks for what a step cannot be; the text says why.
    """
    for name, value in keywords.items():
        if name in TABLE:
            continue
        if name not in UNSERVED:
            raise TypeError(
                f"TRPOOptimizer() got an unexpected keyword argument {name!r}{hint(name, TABLE)}"
            )
        if value:
            raise ValueError(f"TRPOOptimizer has no {name}: {UNSERVED[name]}")
    return {name: value for name, value in keywords.items() if name in TABLE}
