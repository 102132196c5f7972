"""The numbers by which csrc/common knows activations and heads."""

from __future__ import annotations

from typing import Any

from trpo_fast.networks.activations import ACTIVATIONS
from trpo_fast.networks.head import Head


def _numbered(*names: str) -> dict[str, int]:
    return {name: code for code, name in enumerate(names)}


ACTIVATION_CODES = _numbered(*ACTIVATIONS)
# The order of csrc/common/joint.h and heads.h. Heads that are not here are served in torch.
HEAD_CODES = _numbered(
    "gaussian",
    "gaussian_state_std",
    "categorical",
    "multi_categorical",
    "bernoulli",
    "beta",
    "joint",
)


def head_refusal(head: Head) -> str | None:
    """Which head native code lacks, or None."""
    kinds = (part.kind for part in (head, *head.inner))
    missing = next((kind for kind in kinds if kind not in HEAD_CODES), None)
    return None if missing is None else f"csrc/common has no {missing} head"


def head_arguments(head: Head) -> dict[str, Any]:
    """A head as csrc/python/head_arg.h reads it."""
    return {
        "head": HEAD_CODES[head.kind],
        "action_dim": head.components,
        "nvec": list(head.nvec),
        "parts": [(HEAD_CODES[part.kind], part.components) for part in head.inner],
    }
