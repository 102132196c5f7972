"""An agent from the file that `save`, or a run, left."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from trpo_fast.agent import state as agent_state
from trpo_fast.agent.config import OPTIONS
from trpo_fast.base.modes import made_on_cpu
from trpo_fast.base.ranks import Ranks
from trpo_fast.runs.checkpoint import load_checkpoint
from trpo_fast.runs.files import given_path


def load_agent(
    make: Any,
    path: str | Path,
    env: Any,
    networks: Mapping[str, nn.Module | None],
    changes: Mapping[str, Any],
    *,
    run_dir: str | Path | None,
    predict_only: bool,
    process_group: Any,
) -> Any:
    """The agent of a checkpoint file; the arguments are those of `TRPO.load`.

    Args:
        make: the agent's class.
        path: of the file.
        env: what the environments are made from; None for the id in the file.
        networks: "policy" and "value_function", modules of the user's or None.
        changes: options that are to differ from the saved ones.
        run_dir: where to go on writing.
        predict_only: whether the agent only predicts, without an environment.
        process_group: of torch.distributed, whose ranks load together; None for this process.

    Raises CheckpointError for a file that is damaged or does not fit.
    """
    path = checkpoint_path(path)
    ranks = None if process_group is None else Ranks.of(process_group)
    with made_on_cpu():
        read = partial(load_checkpoint, path)
        state = read() if ranks is None else ranks.from_first(read)
    source, config, changed = agent_state.recipe(
        state, path, env, changes, predict_only=predict_only
    )
    if not predict_only and "wrapper" not in changes:
        agent_state.refuse_wrapper(config, path)
    if predict_only:  # the arguments are for an environment to come
        config, kept = config.replace(env_kwargs={}, vectorization="sync", wrapper=""), config
    agent_state.check_networks(state, networks)
    options = {name: getattr(config, name) for name in OPTIONS}
    given = {name: module for name, module in networks.items() if module is not None}
    agent = make(
        source,
        run_dir=run_dir,
        process_group=ranks,
        _dtype=agent_state.saved_dtype(state),
        **{**options, **given},
    )
    try:
        agent_state.check_fits(agent.training, state, changed=changed)
        if agent.shared is not None:
            state = agent.shared.own(state)
        agent_state.load_into(agent.training, state, changed=changed)
    except BaseException:
        agent.close()
        raise
    if predict_only:
        agent.training.config = kept
        agent.training.env_id = state["agent"].get("environment")
        # The running episodes are for an environment to come, too.
        agent_state.keep_episodes(agent.training, state, changed)
    agent.run.goes_on(path.parent, Path(os.path.realpath(path)).parent)  # it may be a link
    return agent


def checkpoint_path(path: str | Path) -> Path:
    """The path as given, with `.safetensors` where its name has no suffix."""
    path = given_path(path, "the checkpoint's path")
    return path if path.suffix else path.with_name(path.name + ".safetensors")
