"""A policy in a file of its own, for programs that have neither this package nor gymnasium.

The file holds everything between an environment's observation and its action: flattening,
normalisation, the network, the mode of its distribution, scaling or clipping to the action space.
"""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn import functional

from trpo_fast.base.errors import MissingExtraError
from trpo_fast.base.install import install_line
from trpo_fast.base.spaces import Space, leaves
from trpo_fast.environments.flattening import ObservationFlattener
from trpo_fast.networks.distributions import mode
from trpo_fast.networks.recurrent import is_recurrent
from trpo_fast.rollouts.normalization import ObservationNormalizer
from trpo_fast.rollouts.observations import Shown, StructuredObservations
from trpo_fast.runs.files import given_path, write_atomically

SINGLE = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
SUFFIXES = (".pt2", ".onnx")


class ExportedPolicy(nn.Module):
    """Raw observations in, the environment's actions out; nothing but torch operations.

    Args:
        policy: module whose forward(obs [N, O]) gives a distribution.
        observation_space: of one observation; each of its parts is one argument of `forward`.
        action_space: of one action.
        normalizer: None where observations are used as they are.

    Raises ValueError for a policy that is shown the environment's own nesting, that remembers, or
    whose actions have parts.
    """

    mean: Tensor
    scale: Tensor
    low: Tensor
    high: Tensor

    def __init__(
        self,
        policy: nn.Module,
        observation_space: Space,
        action_space: Space,
        normalizer: Shown | None,
    ) -> None:
        super().__init__()
        refusal = _refusal(policy, action_space, normalizer)
        if refusal:
            raise ValueError(f"{refusal} cannot be exported so far")
        self.policy = copy.deepcopy(policy).cpu().eval().requires_grad_(False)
        self.parts = list(leaves(observation_space))
        self.action_space = action_space
        row = ObservationFlattener(observation_space).dtype
        self.dtype = torch.from_numpy(np.empty(0, row)).dtype
        self.clip = None
        if isinstance(normalizer, ObservationNormalizer):
            mean, scale, self.clip = normalizer.constants(row)
            self.register_buffer("mean", torch.from_numpy(mean.copy()))
            self.register_buffer("scale", torch.from_numpy(scale.copy()))
        if isinstance(action_space, spaces.Box):
            self.register_buffer("low", torch.from_numpy(action_space.low.copy()))
            self.register_buffer("high", torch.from_numpy(action_space.high.copy()))

    def forward(self, *observations: Tensor) -> Tensor:
        """Actions [N, *action_space.shape] in the action space's dtype.

        Args:
            observations: [N, *shape] each, in the order and the dtypes of the space's parts.
        """
        rows = torch.cat(
            [
                self._rows(part, space)
                for part, (_, space) in zip(observations, self.parts, strict=True)
            ],
            dim=1,
        )
        if self.clip is not None:
            rows = ((rows - self.mean) * self.scale).clamp(-self.clip, self.clip)
        actions = self._to_env(mode(self.policy(rows.float())))
        dtype = torch.from_numpy(np.empty(0, self.action_space.dtype)).dtype
        return actions.reshape(-1, *(self.action_space.shape or ())).to(dtype)

    def _rows(self, part: Tensor, space: Space) -> Tensor:
        """One part of the observations as columns, as ObservationFlattener writes them."""
        if isinstance(space, spaces.Discrete):
            return functional.one_hot(part.long() - int(space.start), int(space.n)).to(self.dtype)
        if isinstance(space, spaces.MultiDiscrete):
            index = part.flatten(1).long() - torch.as_tensor(np.ravel(space.start))
            blocks = [
                functional.one_hot(index[:, i], int(n)) for i, n in enumerate(space.nvec.ravel())
            ]
            return torch.cat(blocks, 1).to(self.dtype)
        return part.to(self.dtype).flatten(1)

    def _to_env(self, actions: Tensor) -> Tensor:
        """What `environments.flattening.action_converter` does, by torch alone."""
        to_env = getattr(self.policy, "to_env", None)
        if callable(to_env):
            converted: Tensor = to_env(actions)
            return converted
        if isinstance(self.action_space, spaces.Box):
            shaped = actions.reshape(-1, *self.action_space.shape)
            return torch.maximum(torch.minimum(shaped, self.high), self.low)
        start = torch.as_tensor(np.asarray(getattr(self.action_space, "start", 0)))
        return actions.long() + start


def export_policy(policy: ExportedPolicy, path: str | Path) -> Path:
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
    example = tuple(_example(space) for _, space in policy.parts)
    names = [".".join(["observation", *map(str, keys)]) for keys, _ in policy.parts]
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
        data = _as_onnx(program, names) if target.suffix == ".onnx" else _as_pt2(program)
    write_atomically(target, data)
    return target


def _refusal(policy: nn.Module, action_space: Space, normalizer: Shown | None) -> str | None:
    """What of a policy no exported one can do, in words; None where all is well."""
    if is_recurrent(policy):
        return f"{type(policy).__name__} remembers earlier observations; such policies"
    if isinstance(normalizer, StructuredObservations):
        return (
            f"{type(policy).__name__} is shown the environment's own nesting of observations; "
            "policies on others than flattened ones"
        )
    if not isinstance(action_space, SINGLE):
        return f"actions of {action_space} have parts; policies with several"
    return None


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


def _as_pt2(program: torch.export.ExportedProgram) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


def _as_onnx(program: torch.export.ExportedProgram, names: list[str]) -> bytes:
    written = torch.onnx.export(
        program, input_names=names, output_names=["action"], dynamo=True, verbose=False
    )
    assert written is not None  # noqa: S101 (without a file name it returns the model)
    data: bytes = written.model_proto.SerializeToString()
    return data
