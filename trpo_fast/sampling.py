"""Drawing actions for a batch of observations, reproducibly."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from trpo_fast import backends
from trpo_fast.network import Network, distribution, network_of
from trpo_fast.normalization import ObservationNormalizer
from trpo_fast.recording import Recording

__all__ = ["Sampler", "draw", "sampling"]

Bool = npt.NDArray[np.bool_]


def draw(network: Network, outputs: Tensor, mask: Tensor | None) -> Tensor:
    """A sample of ``distribution(network, outputs, mask)``, [B] or [B, A].

    For the common heads without building that object, whose construction and general sampling
    routine cost several times the arithmetic on a batch of a few rows. Categorical heads: the
    argmax of logits plus Gumbel noise, which is -log of exponential noise (Maddison, Tarlow,
    Minka 2014, "A* sampling", section 2).
    """
    head = network.head
    if head.kind == "gaussian" and network.log_std is not None:
        return torch.addcmul(outputs, network.log_std.exp(), torch.randn_like(outputs))
    if head.kind == "gaussian_state_std":
        mean, log_std = outputs.chunk(2, dim=-1)
        return torch.addcmul(mean, log_std.exp(), torch.randn_like(mean))
    if head.kind == "categorical":
        scores = outputs - torch.empty_like(outputs).exponential_().log_()
        if mask is not None:
            scores = scores.masked_fill_(~mask, -torch.inf)
        return scores.argmax(dim=-1)
    return distribution(network, outputs, mask).sample()


class Sampler:
    """One batched policy call a step: through the native forward where the policy is known."""

    def __init__(
        self, policy: nn.Module, normalizer: ObservationNormalizer | None, envs: int
    ) -> None:
        self._policy = policy
        self._normalizer = normalizer
        self._envs = envs
        network = network_of(policy)
        self._network = network if isinstance(network, Network) else None
        if self._network is not None:
            self._forward = backends.forward_function(self._network.layers)
        parameter = next(policy.parameters(), torch.empty(0))
        self._device, self._dtype = parameter.device, parameter.dtype
        self._scratch: npt.NDArray[np.float32] | None = None
        # [B, outputs] of each step for a known network, [B] log-probabilities for any other
        self._kept: list[Tensor] = []

    def __call__(self, raw: npt.NDArray[np.float32], masks: Bool | None) -> Tensor:
        """Sampled actions [B, ...] for raw observations [B, O]."""
        if self._normalizer is None:
            shown = raw
        else:
            self._scratch = np.empty_like(raw) if self._scratch is None else self._scratch
            shown = self._normalizer(raw, self._scratch)
        x = torch.from_numpy(shown)
        mask = None if masks is None else torch.from_numpy(masks)
        if self._network is not None:
            x = x.to(device=self._device, dtype=self._dtype)
            outputs = self._forward(x)
            self._kept.append(outputs)
            mask = None if mask is None else mask.to(self._device)
            return draw(self._network, outputs, mask).cpu()
        x = x.to(self._device)
        given = {} if mask is None else {"action_mask": mask.to(self._device)}
        chosen = self._policy(x, **given)
        actions: Tensor = chosen.sample()
        log_prob: Tensor = chosen.log_prob(actions)
        if log_prob.shape != (self._envs,):
            raise ValueError(
                f"the policy's log_prob must have shape [{self._envs}], one number per row of "
                f"obs; got {tuple(log_prob.shape)}. Wrap per-dimension distributions in "
                "torch.distributions.Independent(..., 1)."
            )
        self._kept.append(log_prob.cpu())
        return actions.cpu()

    def log_probs(self, recording: Recording) -> Tensor:
        """Log-probabilities [T, B] of the actions, for a known network in one batch."""
        kept = torch.stack(self._kept)
        if self._network is None:
            return kept
        assert recording.actions is not None  # noqa: S101
        masks = recording.masks
        mask = None if masks is None else torch.from_numpy(masks).flatten(0, 1).to(self._device)
        chosen = distribution(self._network, kept.flatten(0, 1), mask)
        flat = chosen.log_prob(recording.actions.flatten(0, 1).to(self._device))
        return flat.cpu().reshape(kept.shape[:2])


@contextmanager
def sampling(policy: nn.Module, seed: int) -> Iterator[None]:
    """Eval mode, no autograd, and torch's generators seeded; all put back afterwards."""
    for name, parameter in policy.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise ValueError(
                f"parameter {name!r} of the policy holds NaN or infinity; no action can be drawn."
            )
    training = [module for module in policy.modules() if module.training]
    devices = {p.device for p in policy.parameters() if p.device.type == "cuda"}
    policy.eval()
    try:
        with torch.random.fork_rng(devices=list(devices)), torch.no_grad():
            torch.manual_seed(seed)
            yield
    finally:
        for module in training:
            module.training = True
