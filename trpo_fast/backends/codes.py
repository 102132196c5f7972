"""The numbers by which csrc/common knows activations and heads."""

from __future__ import annotations


def _numbered(*names: str) -> dict[str, int]:
    return {name: code for code, name in enumerate(names)}


# The order of csrc/common/activations.h.
ACTIVATION_CODES = _numbered(
    "identity",
    "tanh",
    "relu",
    "leaky_relu",
    "elu",
    "silu",
    "gelu",
    "gelu_tanh",
    "softplus",
    "sigmoid",
)
# The order of csrc/common/heads.h. Heads that are not here are served in torch.
HEAD_CODES = _numbered(
    "gaussian", "gaussian_state_std", "categorical", "multi_categorical", "bernoulli"
)
