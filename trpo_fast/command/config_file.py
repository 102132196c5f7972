"""Options of `trpo-fast train` in a file: TOML, JSON, or the config.json of a run."""

from __future__ import annotations

import argparse
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trpo_fast.agent.config import OPTIONS, Config, ConfigError
from trpo_fast.agent.older_files import current_options
from trpo_fast.agent.portable import from_json
from trpo_fast.base.synonyms import hint
from trpo_fast.command.options import positive
from trpo_fast.command.seeds import seeds
from trpo_fast.runs.files import given_path, open_to_read, refusal

# Options of a training that are none of the agent's, and how their text is read.
OF_RUN = {"total_steps": positive, "run_dir": str, "seeds": seeds}


def merge(options: argparse.Namespace, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the agent, those of `--config` among them; the command line wins.

    What the file says of the run is set in ``options`` where the command line does not.

    Raises:
        ConfigError: the file cannot be read, or holds what is no option, or a value out of limits.
    """
    if options.config is None:
        return dict(given)
    path = given_path(options.config, "--config")
    found = read(path, wrapper=given.get("wrapper"))
    if options.seeds is not None:
        found.pop("seed", None)
    elif "seed" in given:
        found.pop("seeds", None)
    for name in OF_RUN:
        value = found.pop(name, None)
        if getattr(options, name) is None:
            setattr(options, name, value)
    return {**found, **given}


def read(path: Path, *, wrapper: str | None = None) -> dict[str, Any]:
    """The options in a file, checked; those of ``OF_RUN`` among them.

    Args:
        path: the file.
        wrapper: what the command line says; without it, JSON may name none: programs write it, a
            run or a search of somebody else's perhaps, and that is no reason to import code.

    Raises ConfigError.
    """
    found = _parsed(path)
    if "trpo_fast" in found and isinstance(found.get("options"), Mapping):
        found = _of_a_run(current_options(found["options"]), path)
    elif path.suffix == ".json" and isinstance(found.get("env_kwargs"), Mapping):
        found = _of_a_run(found, path)
    if path.suffix == ".json" and found.get("wrapper") and wrapper is None:
        raise ConfigError(
            f"{path} names the wrapper {found['wrapper']!r}, which imports code: if you trust "
            f"it, add --wrapper {found['wrapper']}"
        )
    found = {str(name).replace("-", "_"): value for name, value in found.items()}
    for name in found:
        if name not in OPTIONS and name not in OF_RUN:
            raise ConfigError(f"{path}: no option {name!r}{hint(name, (*OPTIONS, *OF_RUN))}")
    try:
        run = {name: _of_run(name, found[name]) for name in OF_RUN if name in found}
        Config.from_options({name: found[name] for name in found if name in OPTIONS})
    except (ConfigError, argparse.ArgumentTypeError) as error:
        raise ConfigError(f"{path}: {error}") from None
    return {**found, **run}


def _parsed(path: Path) -> dict[str, Any]:
    try:
        with open_to_read(path) as file:
            text = file.read().decode()
        found = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {refusal(error)}") from None
    except (ValueError, RecursionError) as error:  # both parsers', of no text, of too deep nests
        kind = "JSON" if path.suffix == ".json" else "TOML"
        raise ConfigError(f"{path} is not {kind}: {error}") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{path} is no table of options, but a {type(found).__name__}")
    return found


def _of_a_run(saved: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The options in a run's config.json."""
    found = dict(saved)
    try:
        found["env_kwargs"] = from_json(found.get("env_kwargs", {}))
    except ValueError as error:
        raise ConfigError(f"{path} holds env_kwargs that cannot be used: {error}") from None
    return found


def _of_run(name: str, value: Any) -> Any:
    """A value as the command line's reader of that option gives it."""
    if name == "seeds" and isinstance(value, list):
        value = ",".join(map(str, value))
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ConfigError(f"{name} cannot be {value!r}")
    return OF_RUN[name](str(value))  # type: ignore[operator]
