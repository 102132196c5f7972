"""Drawing the actions of a rollout that stays on its device.

The noise of a known network's rollout is drawn at its start, from NumPy's generator as everywhere
(``samplers.py``), and moved to the device once. On the CPU the native sampler writes straight into
the rollout's tensors; elsewhere one forward call serves a step.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from trpo_fast.backends.forward import forward_function
from trpo_fast.base.threads import one_thread_if_small
from trpo_fast.environments.tensor_flattening import (
    tensor_action_converter,
    tensor_dtype_converter,
)
from trpo_fast.networks.network import Network
from trpo_fast.recognition.recognizer import network_of
from trpo_fast.rollouts.observations import Shown, as_networks_see
from trpo_fast.rollouts.samplers import NativeSampler, is_native, log_probs_of, sampled
from trpo_fast.rollouts.tensor_recording import TensorRecording


class TensorSampler:
    """Steps by the policy's own distribution, written to a recording.

    A call gives the actions of a step as the environment takes them; ``log_probs`` afterwards the
    log-probabilities [T, B].
    """

    def __init__(
        self,
        policy: nn.Module,
        normalizer: Shown | None,
        recording: TensorRecording,
        space: spaces.Space[Any],
    ) -> None:
        self._policy = policy
        self._normalizer = normalizer
        self._recording = recording
        self._to_env = tensor_action_converter(policy, space, recording.env.device)
        self._kept: list[Tensor] = []

    def _shown(self, t: int) -> Tensor:
        shown: Tensor = as_networks_see(self._recording.observations[t], self._normalizer)
        return shown

    def __call__(self, t: int) -> Tensor:
        """Sample step t."""
        x = self._shown(t)
        with one_thread_if_small(self._policy, len(x)):
            actions, log_prob = sampled(self._policy(x), len(x))
        self._kept.append(log_prob)
        recording = self._recording
        if recording.actions is None:
            shape = (*recording.rewards.shape, *actions.shape[1:])
            recording.actions = actions.new_empty(shape)
        recording.actions[t] = actions
        return self._to_env(actions)

    def log_probs(self) -> Tensor:
        """Log-probabilities [T, B] of the actions."""
        return torch.stack(self._kept)


class TensorNetworkSampler(TensorSampler):
    """One forward call a step, for a known network on any device."""

    def __init__(
        self,
        policy: nn.Module,
        normalizer: Shown | None,
        recording: TensorRecording,
        space: spaces.Space[Any],
        net: Network,
        rng: np.random.Generator,
    ) -> None:
        super().__init__(policy, normalizer, recording, space)
        self._net = net
        self._forward = forward_function(net.layers)
        steps, envs = recording.rewards.shape
        self._dtype = net.layers[0].weight.dtype
        noise = net.head.noise(rng, steps, envs, double=self._dtype is torch.float64)
        self._noise = torch.from_numpy(noise).to(recording.env.device)
        dtype = torch.int64 if net.head.integral else self._dtype
        self._actions = torch.empty(
            (steps, envs, *net.head.action_shape), dtype=dtype, device=recording.env.device
        )
        recording.actions = self._actions

    def __call__(self, t: int) -> Tensor:
        """Sample step t from the noise of the rollout."""
        outputs = self._forward(self._shown(t).to(self._dtype))
        self._kept.append(outputs)
        drawn = self._net.head.draw(self._net.at(outputs, None), self._noise[t])
        self._actions[t] = drawn.view(self._actions[t].shape)
        return self._to_env(self._actions[t])

    def log_probs(self) -> Tensor:
        """Log-probabilities [T, B] of the actions, in one batch."""
        return log_probs_of(self._net, torch.stack(self._kept), self._actions, None)


class TensorNativeSampler:
    """The native sampler of the CPU, on the memory of the rollout's tensors."""

    def __init__(
        self,
        policy: nn.Module,
        normalizer: Shown | None,
        recording: TensorRecording,
        space: spaces.Space[Any],
        net: Network,
        rng: np.random.Generator,
    ) -> None:
        # Arrays over the same memory, in the shape of NumPy's recording.
        seen: Any = SimpleNamespace(
            observations=recording.observations.numpy(),
            rewards=recording.rewards.numpy(),
            masks=None,
            actions=None,
            first=0,
            all_envs=recording.rewards.shape[1],
        )
        self._native = NativeSampler(policy, normalizer, seen, space, net, rng)
        self._actions: Tensor = seen.actions
        recording.actions = seen.actions
        shaped = self._native.shaped
        self._shaped = None if shaped is None else torch.from_numpy(shaped)
        self._to_env = tensor_action_converter(policy, space, recording.env.device)
        self._in_dtype = tensor_dtype_converter(space, recording.env.device)

    def __call__(self, t: int) -> Tensor:
        """Sample step t."""
        self._native.draw(t)
        if self._shaped is None:
            return self._to_env(self._actions[t])
        return self._in_dtype(self._shaped[t])

    def log_probs(self) -> Tensor:
        """Log-probabilities [T, B] of the actions."""
        return self._native.log_probs()


def tensor_sampler_for(
    policy: nn.Module,
    normalizer: Shown | None,
    recording: TensorRecording,
    space: spaces.Space[Any],
    rng: np.random.Generator,
) -> TensorSampler | TensorNativeSampler:
    """The fastest sampler that serves the policy; the noise is drawn from ``rng`` here."""
    net = network_of(policy)
    if isinstance(net, str):
        return TensorSampler(policy, normalizer, recording, space)
    kind = TensorNativeSampler if is_native(net) else TensorNetworkSampler
    return kind(policy, normalizer, recording, space, net, rng)
