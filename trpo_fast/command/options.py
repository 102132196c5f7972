"""Options of the command line, made from the agent's configuration."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from trpo_fast import _native
from trpo_fast.agent.config import GROUPS, OPTIONS, ConfigError
from trpo_fast.base.option import Option
from trpo_fast.base.output import remark
from trpo_fast.base.synonyms import hint

PREFIX = "agent_"


def add_agent_options(parser: argparse.ArgumentParser, *, default_seed: int) -> None:
    """One option for each field of Config; only those given appear in the result."""
    groups = {name: parser.add_argument_group(name) for name in GROUPS}
    for name, option in OPTIONS.items():
        default = option.default if name != "seed" else default_seed
        shown = "" if default in ({}, None) else f" (default {_words(default)})"
        groups[option.group].add_argument(
            f"--{name.replace('_', '-')}",
            dest=PREFIX + name,
            default=argparse.SUPPRESS,
            help=(option.text + shown).replace("%", "%%"),
            **_keywords(option),
        )


def agent_options(namespace: argparse.Namespace) -> dict[str, Any]:
    """The fields of Config that were given on the command line."""
    given = {
        name.removeprefix(PREFIX): value
        for name, value in vars(namespace).items()
        if name.startswith(PREFIX)
    }
    if "env_kwargs" in given:
        given["env_kwargs"] = dict(given["env_kwargs"])
    return given


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse; an unknown option is an error (exit 2) that offers the command's nearest ones.

    Every command sets the default `parser`, its own.
    """
    namespace, rest = parser.parse_known_args(arguments)
    if rest:
        command: argparse.ArgumentParser = namespace.parser
        meant = hint(rest[0].split("=")[0], command._option_string_actions, dashes=True)
        command.error(f"unrecognized arguments: {' '.join(rest)}{meant}")
    return namespace


def _keywords(option: Option) -> dict[str, Any]:
    kind = option.kind
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    if kind is tuple:
        return {"type": whole, "nargs": "*", "metavar": "N"}
    if kind is dict:
        return {"type": _pair, "nargs": "+", "metavar": "KEY=VALUE"}
    if option.choices:
        return {"choices": option.choices}
    if kind is str:
        return {"type": str, "metavar": "NAME"}
    read = whole if kind is int else _real
    return {
        "type": _or_none(read) if option.optional else read,
        "metavar": "N" if kind is int else "X",
    }


def _words(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def whole(text: str) -> int:
    """A whole number; 1e6 and 1_000_000 are ones."""
    try:
        return int(text)
    except ValueError:
        pass
    try:
        number = float(text)
        if number == int(number):
            return int(number)
    except (ValueError, OverflowError):
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")


def positive(text: str) -> int:
    """A whole number of at least 1."""
    number = whole(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return number


def non_negative(text: str) -> int:
    """A whole number of at least 0."""
    number = whole(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"must be at least 0, got {text}")
    return number


def _real(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def _or_none(read: Callable[[str], float]) -> Callable[[str], float | None]:
    def reader(text: str) -> float | None:
        if text.lower() == "none":
            return None
        try:
            return read(text)
        except argparse.ArgumentTypeError as error:
            raise argparse.ArgumentTypeError(f"{error} or None") from None

    return reader


def _pair(text: str) -> tuple[str, Any]:
    """KEY=VALUE; the value is read as JSON, and as plain text where it is none."""
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    try:
        return key, json.loads(value)
    except (ValueError, RecursionError):
        return key, value


def check_native_code() -> None:
    """Say where there is none; ConfigError where TRPO_FAST_ISA names what this CPU cannot run."""
    if _native.core is None:
        remark(f"warning: pure-torch code is used, which is slower: {_native.load_error}")
        return
    try:
        _native.core.isa()
    except RuntimeError as error:
        raise ConfigError(str(error)) from None


def look_beside_the_user(*names: str | None) -> None:
    """Find the module of a name such as mymodule:Env-v0 in the working directory.

    `python -m trpo_fast` does so by itself, a console script does not.
    """
    if any(":" in name for name in names if name is not None):
        here = str(Path.cwd())
        if not {"", here} & set(sys.path):
            sys.path.insert(0, here)
