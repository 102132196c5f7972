"""Drawing a rollout's actions, reproducibly.

For a policy whose network is known the noise of a whole rollout is drawn at its start, from NumPy's
generator: a step is then a function of observations, parameters and noise, and one native call.
Any other policy draws for itself from torch's generator, seeded for the rollout.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.distributions import Distribution

from trpo_fast import _native
from trpo_fast.backends.codes import head_refusal
from trpo_fast.base.modes import seeded_generators
from trpo_fast.base.tensors import all_finite
from trpo_fast.base.trees import tree_map
from trpo_fast.environments.flattening import action_converter, dtype_converter
from trpo_fast.networks import network
from trpo_fast.networks.joint import JointDistribution
from trpo_fast.networks.mlp import squashed_to_unit
from trpo_fast.networks.network import Network
from trpo_fast.networks.recurrent import is_recurrent
from trpo_fast.recognition.recognizer import network_of
from trpo_fast.rollouts.observations import Shown, StructuredObservations, as_networks_see
from trpo_fast.rollouts.rollout import Recording

Array = npt.NDArray[Any]


class Sampler:
    """The steps of one rollout, written to a recording.

    A call gives the actions of a step as the environments take them; ``log_probs`` afterwards the
    log-probabilities [T, B].
    """

    def __init__(
        self,
        policy: nn.Module,
        normalizer: Shown | None,
        recording: Recording,
        space: spaces.Space[Any],
    ) -> None:
        self._policy = policy
        self._normalizer = normalizer
        self._recording = recording
        self._space = space
        self._to_env = action_converter(policy, space)
        parameter = next(policy.parameters(), torch.empty(0, device="cpu"))
        self._device, self._dtype = parameter.device, parameter.dtype
        self._kept: list[Tensor] = []

    def _shown(self, t: int) -> tuple[Any, Tensor | None]:
        """What the policy is shown at step t, [B, O] or the space's nesting, and its masks."""
        recording = self._recording
        raw: Any = recording.observations[t]
        if isinstance(self._normalizer, StructuredObservations):
            raw = torch.from_numpy(raw).to(self._device)
        shown = as_networks_see(raw, self._normalizer)
        if isinstance(shown, np.ndarray):
            shown = torch.from_numpy(shown).to(self._device)
        mask = None if recording.masks is None else torch.from_numpy(recording.masks[t])
        return shown, None if mask is None else mask.to(self._device)

    def __call__(self, t: int) -> Array:
        """Sample step t by the policy's own distribution."""
        x, mask = self._shown(t)
        chosen = self._chosen(t, x, {} if mask is None else {"action_mask": mask})
        envs = self._recording.rewards.shape[1]
        actions, log_prob = sampled(chosen, envs)
        self._kept.append(log_prob.cpu())
        host = tree_map(Tensor.cpu, actions)
        flat = chosen.flatten(host) if isinstance(chosen, JointDistribution) else host
        self._recording.keep_actions(t, flat)
        return self._to_env(actions)  # where the policy is: its bounds are there, too

    def _chosen(self, t: int, x: Any, given: dict[str, Tensor]) -> Any:
        """The distribution of step t."""
        del t
        return self._policy(x, **given)

    def log_probs(self) -> Tensor:
        """Log-probabilities [T, B] of the actions."""
        return torch.stack(self._kept)


class RecurrentSampler(Sampler):
    """By a policy with a memory, carried from step to step and 0 where episodes begin."""

    def enter(self, memory: Array | None, fresh: npt.NDArray[np.bool_]) -> Array:
        """Begin the rollout with the memory [B, M] that the last one left; None for nothing yet.

        Returns what the memory is kept in from here on.
        """
        policy: Any = self._policy
        self._memory = memory
        if self._memory is None:
            self._memory = torch.cat(policy.initial_memory(len(fresh)), 1).numpy(force=True)
        self._memory[fresh] = 0
        self._recording.memory = self._memory.copy()
        return self._memory

    def _chosen(self, t: int, x: Any, given: dict[str, Tensor]) -> Any:
        policy, kept = cast("Any", self._policy), cast("Array", self._memory)
        kept[self._recording.starts[t]] = 0
        memory = split_memory(policy, torch.from_numpy(kept).to(self._device))
        chosen, after = policy.step(x, memory, **given)
        kept[...] = torch.cat(after, 1).numpy(force=True)
        return chosen


def split_memory(module: Any, memory: Tensor) -> tuple[Tensor, ...]:
    """The parts ``[n, size]`` of a recurrent module's memory ``[n, M]``."""
    parts: tuple[Tensor, ...] = memory.split(module.trunk.size, 1)
    return parts


class NetworkSampler(Sampler):
    """In pure torch, for a known network anywhere; and the ground of the native one."""

    def __init__(
        self,
        policy: nn.Module,
        normalizer: Shown | None,
        recording: Recording,
        space: spaces.Space[Any],
        net: Network,
        rng: np.random.Generator,
    ) -> None:
        super().__init__(policy, normalizer, recording, space)
        self._net = net
        steps, envs = recording.rewards.shape
        double = self._dtype is torch.float64
        first, drawn = recording.first, recording.all_envs
        noise = net.head.noise(rng, steps, drawn, double=double)
        if drawn != envs:
            noise = np.ascontiguousarray(noise[:, first : first + envs])
        self._noise = noise
        width = net.head.action_shape
        dtype = torch.int64 if net.head.integral else self._dtype
        recording.actions = torch.empty((steps, envs, *width), dtype=dtype, device="cpu")
        self._prepare()

    def _prepare(self) -> None:
        """Make what a faster kind of this needs besides noise and a place for the actions."""

    def __call__(self, t: int) -> Array:
        """Sample step t from the noise of the rollout."""
        x, mask = self._shown(t)
        outputs = network.forward(self._net.layers, x.to(self._dtype))
        self._kept.append(outputs)
        noise = torch.from_numpy(self._noise[t]).to(self._device)
        kept = self._recording.actions
        assert kept is not None  # noqa: S101
        drawn = self._net.head.draw(self._net.at(outputs, mask), noise)
        drawn = drawn.view(kept[t].shape)
        kept[t] = drawn.cpu()
        return self._to_env(drawn)  # where the policy is: its bounds are there, too

    def log_probs(self) -> Tensor:
        """Log-probabilities [T, B] of the actions, in one batch."""
        recording, kept = self._recording, torch.stack(self._kept)
        assert recording.actions is not None  # noqa: S101
        masks = recording.masks
        mask = None if masks is None else torch.from_numpy(masks).flatten(0, 1).to(self._device)
        return log_probs_of(self._net, kept, recording.actions.to(self._device), mask).cpu()


class NativeSampler(NetworkSampler):
    """By one native call a step, without a tensor made on the way."""

    def _prepare(self) -> None:
        self._native: Any = None
        self._env_actions: Array | None = None
        self._units: tuple[Array, Array] | None = None  # the policy's `action_units`, [A]
        self.shaped: Array | None = None  # those, [T, B, ...] of the space's shape
        self._squashed = False  # before that, by a tanh
        # What a plain conversion is; whole numbers for bits are left to the policy.
        policy: Any = self._policy
        if policy.plain:
            # New for each rollout: an environment may keep the actions it was given.
            self._env_actions = np.empty(self._noise.shape, self._actions().dtype)
            shape = (*self._noise.shape[:2], *(self._space.shape or ()))
            self.shaped = self._env_actions.reshape(shape)
            self._in_dtype = dtype_converter(self._space)

    def _actions(self) -> Array:
        assert self._recording.actions is not None  # noqa: S101
        array: Array = self._recording.actions.numpy()
        return array.reshape(self._noise.shape)

    def _begin(self) -> None:
        """Once the first step's masks are there."""
        from trpo_fast.backends.cpu.sampling import NativeSampling

        policy: Any = self._policy
        actions, recording = self._actions(), self._recording
        raw, normalizer = recording.observations, self._normalizer
        assert not isinstance(normalizer, StructuredObservations)  # noqa: S101 (a perceptron's)
        self._drawn, bounds = actions, None
        if self._env_actions is not None:
            low, high = (
                np.broadcast_to(bound.numpy().ravel(), actions.shape[-1:]).astype(actions.dtype)
                for bound in (policy.action_low, policy.action_high)
            )
            self._bounds = bounds = low, high
            if (units := policy.action_units) is not None:
                first, span = (part.numpy().ravel().astype(actions.dtype) for part in units)
                self._units, bounds = (first, span), None
                self._squashed = policy.squashed
        self._native = NativeSampling(
            self._net,
            observations=raw,
            constants=None if normalizer is None else normalizer.constants(raw.dtype),
            noise=self._noise,
            masks=recording.masks,
            actions=actions,
            env_actions=None if bounds is None else self._env_actions,
            bounds=bounds,
        )

    def draw(self, t: int) -> None:
        """Write step t's actions, and where there is a place for them the environments'."""
        if self._native is None:
            self._begin()
        self._native.step(t)
        if self._units is not None:
            self._rescale(t)

    def _rescale(self, t: int) -> None:
        """What `to_env` does to step t, with its bits; a few calls of torch's would take longer."""
        assert self._units is not None  # noqa: S101
        assert self._env_actions is not None  # noqa: S101
        (first, span), (low, high), given = self._units, self._bounds, self._env_actions[t]
        drawn = self._drawn[t]
        if self._squashed:  # by torch, whose tanh has bits of its own
            drawn = squashed_to_unit(torch.from_numpy(drawn)).numpy()
        np.multiply(drawn, span, out=given)
        np.add(given, first, out=given)
        np.maximum(given, low, out=given)
        np.minimum(given, high, out=given)

    def __call__(self, t: int) -> Array:
        """Sample step t natively."""
        self.draw(t)
        if self.shaped is None:
            assert self._recording.actions is not None  # noqa: S101
            return self._to_env(self._recording.actions[t])
        return self._in_dtype(self.shaped[t])

    def log_probs(self) -> Tensor:
        """Log-probabilities [T, B] of the actions."""
        found: Tensor = self._native.log_probs
        return found.squeeze(-1).to(self._dtype)


def log_probs_of(net: Network, outputs: Tensor, actions: Tensor, mask: Tensor | None) -> Tensor:
    """Log-probabilities [T, B] of a rollout's actions, in one batch.

    Args:
        net: the policy's.
        outputs: of its last layer, [T, B, ...].
        actions: [T, B, ...].
        mask: [T * B, ...], or None.
    """
    chosen = net.head.distribution(net.at(outputs.flatten(0, 1), mask))
    flat: Tensor = chosen.log_prob(actions.flatten(0, 1))
    return flat.reshape(outputs.shape[:2])


def sampled(chosen: Any, envs: int) -> tuple[Tensor, Tensor]:
    """Actions [B, ...] of a policy's own distribution, and their log-probabilities [B].

    Raises:
        TypeError: what forward gave is no distribution.
        ValueError: its log_prob is not one number a row.
    """
    if not isinstance(chosen, Distribution):
        raise TypeError(
            f"the policy's forward gives a {type(chosen).__name__}, expected a "
            "torch.distributions.Distribution of batch_shape [N]"
        )
    actions: Any = chosen.sample()
    log_prob: Tensor = chosen.log_prob(actions)
    if log_prob.shape != (envs,):
        raise ValueError(
            f"the policy's log_prob must have shape [{envs}], one number per row of "
            f"obs; got {tuple(log_prob.shape)}. Wrap per-dimension distributions in "
            "torch.distributions.Independent(..., 1)."
        )
    return actions, log_prob


def sampler_for(
    policy: nn.Module,
    normalizer: Shown | None,
    recording: Recording,
    space: spaces.Space[Any],
    rng: np.random.Generator,
) -> Sampler:
    """The fastest sampler that serves the policy; the noise is drawn from ``rng`` here."""
    if is_recurrent(policy):
        return RecurrentSampler(policy, normalizer, recording, space)
    net = network_of(policy)
    if isinstance(net, str):
        return Sampler(policy, normalizer, recording, space)
    kind = NativeSampler if is_native(net) else NetworkSampler
    return kind(policy, normalizer, recording, space, net, rng)


def draws_natively(policy: nn.Module) -> bool:
    """Whether a rollout that began now would have its actions from native code.

    Those are the same bits for an environment whatever the number of others; torch rounds a batch's
    products with its size, and a policy that draws for itself draws for the whole batch.
    """
    if is_recurrent(policy):
        return False
    net = network_of(policy)
    return not isinstance(net, str) and is_native(net)


def is_native(net: Network) -> bool:
    """Whether the native sampler draws for this network."""
    on_cpu = net.layers[0].weight.device.type == "cpu"
    return _native.core is not None and on_cpu and head_refusal(net.head) is None


@contextmanager
def sampling(policy: nn.Module, seed: int) -> Iterator[None]:
    """Eval mode, no autograd, and torch's generators seeded; all put back afterwards."""
    for name, parameter in policy.named_parameters():
        if not all_finite(parameter.detach()):
            raise ValueError(
                f"parameter {name!r} of the policy holds NaN or infinity; no action can be drawn."
            )
    training = [module for module in policy.modules() if module.training]
    devices = {p.device for p in policy.parameters() if p.device.type == "cuda"}
    policy.eval()
    try:
        with seeded_generators(seed, list(devices)), torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True
