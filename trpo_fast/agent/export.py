"""A policy in a file of its own, for programs that have neither this package nor gymnasium.

The file holds everything between an environment's observation and its action: flattening,
normalisation, the network, the mode of its distribution (a Beta's mean), scaling or clipping to the
action space.
"""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.distributions import Distribution

from trpo_fast.agent.export_inputs import inputs_of
from trpo_fast.base.errors import MissingExtraError
from trpo_fast.base.install import install_line
from trpo_fast.base.spaces import Path, Space, leaves
from trpo_fast.environments.observation_check import pick
from trpo_fast.networks.distributions import mode
from trpo_fast.networks.recurrent import is_recurrent
from trpo_fast.rollouts.observations import Shown
from trpo_fast.runs.files import given_path, write_atomically

SUFFIXES = (".pt2", ".onnx")


class ExportedPolicy(nn.Module):
    """Raw observations in, the environment's actions out; nothing but torch operations.

    Args:
        policy: module whose forward gives a distribution; one with a memory has a `step`.
        observation_space: of one observation; each of its parts is one argument of `forward`.
        action_space: of one action; each of its parts is one result.
        normalizer: what makes of observations what the policy sees; None for flattened rows.
    """

    def __init__(
        self,
        policy: nn.Module,
        observation_space: Space,
        action_space: Space,
        normalizer: Shown | None,
    ) -> None:
        super().__init__()
        self.policy = copy.deepcopy(policy).cpu().eval().requires_grad_(False)
        self.parts = list(leaves(observation_space))
        self.results = list(leaves(action_space))
        self.inputs = inputs_of(observation_space, normalizer)
        own: Any = self.policy
        # Of two rows, as the other examples that torch traces are.
        self.memory = own.initial_memory(2) if is_recurrent(policy) else ()
        for index, (_, space) in enumerate(self.results):
            if isinstance(space, spaces.Box):
                self.register_buffer(f"low{index}", torch.from_numpy(space.low.copy()))
                self.register_buffer(f"high{index}", torch.from_numpy(space.high.copy()))

    def forward(self, *given: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Actions [N, *shape] of each part of the action space, in its dtype.

        One tensor where there is nothing else. Of a policy with a memory, the memory after this
        step follows them.

        Args:
            given: observations [N, *shape], in the order and the dtypes of the space's parts; then
                the memory [N, size] of a policy that has one, zeros where an episode begins.
        """
        count = len(self.parts)
        obs = self.inputs(given[:count])
        after: Sequence[Tensor] = ()
        if self.memory:
            chosen, after = self.policy.step(obs, given[count:])  # type: ignore[operator]
        else:
            chosen = self.policy(obs)
        actions = [self._given(i, part) for i, part in enumerate(self._to_env(mode(chosen)))]
        found = (*actions, *after)
        return found[0] if len(found) == 1 else found

    def _given(self, index: int, actions: Tensor) -> Tensor:
        """One part of the actions as its space has it."""
        _, space = self.results[index]
        dtype = torch.from_numpy(np.empty(0, space.dtype)).dtype
        return actions.reshape(-1, *(space.shape or ())).to(dtype)

    def _to_env(self, actions: Any) -> list[Tensor]:
        """What `environments.flattening.action_converter` does, by torch alone; each part."""
        to_env = getattr(self.policy, "to_env", None)
        if callable(to_env):
            return self._each(to_env(actions))
        return [self._within(i, part) for i, part in enumerate(self._each(actions))]

    def _each(self, actions: Any) -> list[Tensor]:
        """The parts in the space's order."""
        return [pick(actions, path) for path, _ in self.results]

    def _within(self, index: int, actions: Tensor) -> Tensor:
        _, space = self.results[index]
        shaped = actions.reshape(-1, *(space.shape or ()))
        if isinstance(space, spaces.Box):
            low, high = getattr(self, f"low{index}"), getattr(self, f"high{index}")
            return torch.maximum(torch.minimum(shaped, high), low)
        start = torch.as_tensor(np.asarray(getattr(space, "start", 0)))
        return shaped.long() + start


def export_policy(policy: ExportedPolicy, path: str | FilePath) -> FilePath:
    """Write the policy as a torch.export program (`.pt2`) or an ONNX model (`.onnx`).

    Args:
        policy: what to write.
        path: the file; its suffix decides.

    Raises:
        ValueError: another suffix, or a policy that torch.export cannot trace.
        MissingExtraError: the packages that write ONNX are not installed.
        OSError: the file cannot be written.
    """
    target = given_path(path, "the file to export to")
    if target.suffix not in SUFFIXES:
        raise ValueError(f"{target}: a policy is exported to {' or '.join(SUFFIXES)}")
    if target.suffix == ".onnx":
        _require_onnx()
    example = (
        *(_example(space) for _, space in policy.parts),
        *policy.memory,
    )
    batch = torch.export.Dim("n")
    with _unchecked_distributions(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's exporters, about their own code
        try:
            program = torch.export.export(
                policy, example, dynamic_shapes=(tuple({0: batch} for _ in example),)
            )
        except Exception as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise ValueError(
                f"{type(policy.policy).__name__} cannot be exported: torch.export finds in its "
                f"forward what depends on values and not on shapes alone ({reason})"
            ) from error
        data = _as_onnx(program, policy) if target.suffix == ".onnx" else _as_pt2(program)
    write_atomically(target, data)
    return target


@contextlib.contextmanager
def _unchecked_distributions() -> Iterator[None]:
    """Checks of a distribution's arguments depend on values, which no exporter can trace."""
    before = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(before)


def _example(space: Space) -> Tensor:
    return torch.from_numpy(np.stack([np.asarray(space.sample()) for _ in range(2)]))


def _require_onnx() -> None:
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            f"writing ONNX needs more packages: {install_line('export')} ({error})"
        ) from error


def _names(kind: str, parts: Sequence[tuple[Path, Space]]) -> list[str]:
    """What ONNX calls a space's parts: by the keys that lead to them."""
    return [".".join([kind, *map(str, keys)]) for keys, _ in parts]


def _as_pt2(program: torch.export.ExportedProgram) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


def _as_onnx(program: torch.export.ExportedProgram, policy: ExportedPolicy) -> bytes:
    memory = [f"memory.{index}" for index in range(len(policy.memory))]
    written = torch.onnx.export(
        program,
        input_names=[*_names("observation", policy.parts), *memory],
        output_names=[*_names("action", policy.results), *(f"next_{name}" for name in memory)],
        dynamo=True,
        verbose=False,
    )
    assert written is not None  # noqa: S101 (without a file name it returns the model)
    data: bytes = written.model_proto.SerializeToString()
    return data
