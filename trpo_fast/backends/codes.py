"""The numbers by which csrc/common knows activations and heads."""

from __future__ import annotations

from trpo_fast.networks.activations import ACTIVATIONS


def _numbered(*names: str) -> dict[str, int]:
    return {name: code for code, name in enumerate(names)}


ACTIVATION_CODES = _numbered(*ACTIVATIONS)
# The order of csrc/common/heads.h. Heads that are not here are served in torch.
HEAD_CODES = _numbered(
    "gaussian", "gaussian_state_std", "categorical", "multi_categorical", "bernoulli"
)
