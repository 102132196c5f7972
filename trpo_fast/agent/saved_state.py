"""What a saved state must hold, checked whole before an agent takes over any of it.

A checkpoint can be well formed and still be none of an agent: an option as text, moments of another
shape, a NaN. Such ones are refused when they are loaded, with a line for each, and never met in the
middle of a training.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector.utils import batch_space
from torch import Tensor, nn

from trpo_fast.agent.config import Config
from trpo_fast.agent.learner import Learner
from trpo_fast.agent.making import AnyEnvironments
from trpo_fast.agent.saved_values import (
    Check,
    anything,
    array,
    items,
    one_of,
    optional,
    parts,
    plain,
    real,
    shown,
    tensor,
    whole,
)
from trpo_fast.base.spaces import Space, logit_blocks
from trpo_fast.base.tensors import all_finite
from trpo_fast.environments.nested_actions import as_given
from trpo_fast.environments.seeded_episodes import SEED_BITS
from trpo_fast.optimizer.state import AGE, STATISTICS
from trpo_fast.runs.checkpoint import CheckpointError
from trpo_fast.update.options import TABLE

State = Mapping[str, Any]
NETWORKS = {"policy": "hidden_sizes", "value_function": "value_hidden_sizes"}
# Of environments of which a file has no trace: an agent that was saved before its first step.
MAX_UNSEEN_ENVS = 2**16
# Numbers and layers of a network that may be made without seeing them: 64 MB.
LITTLE = 2**24
FEW_LAYERS = 64
LINES = 12
WORD = 2**64 - 1

_RNG = parts(
    {
        "bit_generator": one_of("Philox"),
        "state": parts(
            {"counter": items(whole(most=WORD), count=4), "key": items(whole(most=WORD), count=2)}
        ),
        "buffer": items(whole(most=WORD), count=4),
        "buffer_pos": whole(most=4),  # numpy reads the buffer there, unchecked
        "has_uint32": whole(most=1),
        "uinteger": whole(most=2**32 - 1),
    }
)


def check_outline(state: State, progress: type, window: int) -> None:
    """CheckpointError unless the state has an agent's parts, as far as no agent is needed to tell.

    Args:
        state: all that the checkpoint holds.
        progress: the class of its progress, whose fields may be missing.
        window: most episodes that it may have as recent ones.
    """
    counts = {field.name: whole() for field in fields(progress)}
    numbers = {"time_elapsed": real(0), "best_evaluation": optional(real(finite=False))}
    check = parts(
        {
            "agent": _plain_mapping,
            "config": _plain_mapping,
            "custom_networks": items(one_of(*NETWORKS)),
            "spaces": plain,
            "progress": parts(counts | numbers, missing=counts),
            "learner": parts({}, others=anything),
            "rng": _RNG,
            "collector": parts({}, others=anything),
            "recent_returns": items(real(), most=window),
            "recent_lengths": items(whole(), most=window),
        },
        missing=("custom_networks", "spaces"),
        others=anything,
    )
    _refuse(check(state, ""))


def check_sizes(state: State, config: Config) -> None:
    """CheckpointError where the options are of more than the file's arrays are.

    Networks and environments of a size are made before anything is loaded into them: a few bytes
    in a file must not be what decides how much memory that takes.
    """
    _refuse(_oversized(state, config))


def _oversized(state: State, config: Config) -> Iterator[str]:
    learner, collector = state["learner"], state["collector"]
    for name, option in NETWORKS.items():
        saved, sizes = learner.get(name), getattr(config, option)
        if name in state.get("custom_networks", ()):
            continue
        values = saved.values() if isinstance(saved, Mapping) else ()
        held = sum(value.numel() for value in values if isinstance(value, Tensor))
        cell = config.cell_size**2 if config.policy == "recurrent" else 0
        if cell > held:
            yield f"config/cell_size is of {cell} numbers or more, learner/{name} has {held}"
        needed = sum(sizes) + sum(one * two for one, two in itertools.pairwise(sizes))
        # Networks for images have sizes of their own, whatever these are: what takes little memory
        # is no claim.
        little = needed <= LITTLE and len(sizes) <= FEW_LAYERS
        if needed > held and not little:
            yield f"config/{option} is of {needed} numbers or more, learner/{name} has {held}"
    statistics = learner.get("statistics")
    returns = statistics.get("returns") if isinstance(statistics, Mapping) else None
    seen = [
        (f"{where}/returns", len(node["returns"]))
        for where, node in (("collector", collector), ("learner/statistics/returns", returns))
        if isinstance(node, Mapping)
        and isinstance(node.get("returns"), np.ndarray)
        and node["returns"].ndim
    ]
    for where, count in seen:
        if count != config.num_envs:
            yield f"config/num_envs is {config.num_envs}, {where} is of {count}"
    if not seen and config.num_envs > MAX_UNSEEN_ENVS:
        yield f"config/num_envs is {config.num_envs}, and nothing else is of so many"


def check_values(
    learner: Learner, env: AnyEnvironments, state: State, changed: frozenset[str]
) -> None:
    """CheckpointError unless an agent of these parts can go on from the state's values.

    A parameter of another dtype than here, or one that is not finite, is named first.
    """
    for name in NETWORKS:
        _check_parameters(getattr(learner, name), name, state)
    saved_envs = state["config"].get("num_envs")
    check = parts(
        {
            **{name: _module(getattr(learner, name)) for name in NETWORKS},
            "optimizer": _options(learner, changed),
            "curvature": _by_number(learner.optimizer.param_groups[0]["params"], _curvature_of),
            "critic": _by_number(learner.critic.parameters, _moments_of),
            "statistics": _statistics(learner, saved_envs),
            "counters": parts(dict.fromkeys(learner.counters, whole())),
            "memory": _memory(learner, saved_envs),
        },
        missing=("curvature",) if learner.recurrence is not None else ("curvature", "memory"),
    )
    lines = [*check(state["learner"], "/learner")]
    if state["collector"]:
        in_tensors = state["config"].get("vectorization") == "tensor"
        episodes = _tensor_collector(saved_envs) if in_tensors else None
        lines += (episodes or _collector(env, saved_envs, learner))(
            state["collector"], "/collector"
        )
    _refuse(iter(lines))


def _check_parameters(module: nn.Module, name: str, state: State) -> None:
    saved = state["learner"].get(name)
    for key, parameter in module.named_parameters():
        value = saved.get(key) if isinstance(saved, Mapping) else None
        if not isinstance(value, Tensor):
            continue
        if value.dtype != parameter.dtype:
            raise CheckpointError(
                f"in the checkpoint {key} of the {name} is {value.dtype}, here it is "
                f"{parameter.dtype}: give the {name} as it was saved ({name}.to({value.dtype}))"
            )
        if not all_finite(value):
            raise CheckpointError(
                f"in the checkpoint {key} of the {name} holds a NaN or an infinity: load another"
            )


def _refuse(lines: Iterator[str]) -> None:
    found = [line.removeprefix("/") for line in lines]
    if found:
        rest = [f"and {len(found) - LINES} more"] if len(found) > LINES else []
        listed = "\n  ".join([*found[:LINES], *rest])
        raise CheckpointError(f"the checkpoint holds what no agent here is made of:\n  {listed}")


def _plain_mapping(value: Any, where: str) -> Iterator[str]:
    yield from parts({}, others=plain)(value, where)


def _module(module: nn.Module) -> Check:
    """Its parameters, and its buffers, of which those may be infinite that are so here."""
    parameters = {name for name, _ in module.named_parameters()}
    known: dict[str, Check] = {}
    for name, value in module.state_dict().items():
        if not isinstance(value, Tensor):  # a module's own extra state
            known[name] = anything
        elif name in parameters:
            known[name] = tensor(value.dtype, tuple(value.shape))
        else:
            known[name] = _buffer(value)
    return parts(known)


def _buffer(here: Tensor) -> Check:
    check = tensor(here.dtype, tuple(here.shape))

    def check_buffer(value: Any, where: str) -> Iterator[str]:
        alike = isinstance(value, Tensor) and (value.dtype, value.shape) == (here.dtype, here.shape)
        if not alike or bool((_finite(here).to(value.device) & ~_finite(value)).any()):
            yield from check(value, where)

    return check_buffer


def _finite(value: Tensor) -> Tensor:
    narrow = value.is_floating_point() and value.dtype.itemsize == 1  # torch does not look at those
    return (value.float() if narrow else value).isfinite()


def _options(learner: Learner, changed: frozenset[str]) -> Check:
    """The policy optimizer's options, one of which names what can serve its device.

    Those that are changed are the agent's own, whatever the file says; what schedulers keep among
    them is not taken over.
    """
    group = learner.optimizer.param_groups[0]

    def check(value: Any, where: str, name: str) -> Iterator[str]:
        try:
            found = TABLE[name].checked(value)
        except ValueError as error:
            yield f"{where} is {shown(value)}: {' '.join(str(error).split())}"
            return
        elsewhere = found in ("cpu", "cuda") and found != learner.device.type
        if name == "backend" and elsewhere and name not in changed:
            yield f"{where} is {found!r}, the networks are on {str(learner.device)!r}"

    names = [name for name in group if name in TABLE]
    known = {name: lambda v, w, name=name: check(v, w, name) for name in names}
    return parts(known, missing=names, others=plain)


def _by_number(parameters: Sequence[Tensor], entry: Callable[[Tensor], Check]) -> Check:
    """Entries of an optimizer's state, each under its parameter's number."""
    known = {str(index): entry(parameter) for index, parameter in enumerate(parameters)}
    return parts(known, missing=known)


def _curvature_of(parameter: Tensor) -> Check:
    known = {name: tensor(parameter.dtype, (None,) * ndim) for name, ndim in STATISTICS.items()}
    return parts({AGE: whole(), **known}, missing=known)


def _moments_of(parameter: Tensor) -> Check:
    shape = tuple(parameter.shape)
    return parts(
        {
            "step": tensor(None, (), least=0),
            "exp_avg": tensor(parameter.dtype, shape),
            "exp_avg_sq": tensor(parameter.dtype, shape, least=0),
        }
    )


def _statistics(learner: Learner, num_envs: int | None) -> Check:
    """The running statistics that this agent has; the returns are of the saved environments."""

    def running(shape: tuple[int, ...], more: dict[str, Check]) -> Check:
        spread = array(np.float64, shape, least=0)
        count = array(np.float64, (), least=0)
        return parts({"mean": array(np.float64, shape), "var": spread, "count": count, **more})

    known: dict[str, Check] = {}
    if learner.normalizer is not None:
        statistics = learner.normalizer.statistics
        known["observations"] = (
            parts({}) if statistics is None else running(statistics.mean.shape, {})
        )
    if learner.return_scaler is not None:
        known["returns"] = running((), {"returns": array(np.float64, (num_envs,))})
    return parts(known)


def _memory(learner: Learner, num_envs: int | None) -> Check:
    """What the value function remembers of the running episodes."""
    held = None if learner.recurrence is None else learner.recurrence.memory
    return parts({} if held is None else {"values": tensor(held.dtype, (num_envs, held.shape[1]))})


def _tensor_collector(num_envs: int | None) -> Check:
    """Of environments whose running episodes are not kept."""
    begun = {"returns": array(np.float64, (num_envs,)), "restarts": array(np.int64, (), least=0)}
    return parts(begun)


def _collector(env: AnyEnvironments, num_envs: int | None, learner: Learner) -> Check:
    """Where the last rollout ended, with the running episodes where they can be replayed."""
    each = (num_envs,)
    episodes = {
        "seed_bits": array(np.int64, (), least=min(SEED_BITS, 32), most=32),
        "episodes": array(np.int64, each, least=0),
        "action_counts": array(np.int64, each, least=0),
        "actions": _actions(env.action_space),
    }
    remembered: dict[str, Check] = {}
    if learner.recurrence is not None:
        policy: Any = learner.policy
        like = policy.initial_memory(1)[0].new_zeros((), device="cpu").numpy()
        remembered["memory"] = array(like.dtype.type, (num_envs, policy.memory_size))
    check = parts(
        {
            **remembered,
            "observations": array(_kept_as(env), (num_envs, env.observation_width)),
            "returns": array(np.float64, each),
            "lengths": array(np.int64, each, least=0),
            "restarts": array(np.int64, (), least=0),
            "masks": array(bool, (num_envs, sum(logit_blocks(env.action_space)))),
            **episodes,
        },
        missing=("masks", "restarts", "memory", *episodes),
    )

    def check_all(value: Any, where: str) -> Iterator[str]:
        lines = list(check(value, where))
        absent = [name for name in episodes if name not in value and name != "seed_bits"]
        if 0 < len(absent) < len(episodes) - 1:
            lines.append(f"{where}/{absent[0]} is missing")
        elif not lines and not absent:
            counted, taken = int(value["action_counts"].sum()), len(value["actions"])
            if counted != taken:
                lines.append(f"{where}/action_counts are {counted} together, actions {taken}")
        yield from lines

    return check_all


def _kept_as(env: AnyEnvironments) -> Any:
    """Dtypes of rows of observations; flattened ones were float32 in older checkpoints."""
    return np.uint8 if env.observation_dtype is np.uint8 else (np.float32, np.float64)


def _actions(space: Space) -> Check:
    space = as_given(space)
    check = array(space.dtype, (None, *(space.shape or ())))

    def check_actions(value: Any, where: str) -> Iterator[str]:
        lines = list(check(value, where))
        yield from lines
        if lines or not len(value) or isinstance(space, spaces.Box):
            return
        if not batch_space(space, len(value)).contains(value):
            yield f"{where} holds actions that are none of {space}"

    return check_actions
