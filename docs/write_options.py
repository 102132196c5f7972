"""Writes docs/options.md from the tables of options: ``python docs/write_options.py``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from trpo_fast.agent.config import GROUPS, OPTIONS
from trpo_fast.base.option import Option
from trpo_fast.base.synonyms import ELSEWHERE, SYNONYMS
from trpo_fast.update.options import GROUP, TABLE

PAGE = Path(__file__).with_name("options.md")
HEAD = """# Every option

Written by `docs/write_options.py` from the tables that check the options; edit those. Values
outside the limits are refused, with the limit named.
"""
UPDATE = """These are keywords of `TRPOOptimizer`, stand in its `param_groups[0]` and may be edited
between steps. All but the next table's are keywords of the agent, `TRPO`, and options of
`trpo-fast train` as well: `max_kl` is `--max-kl` there.
"""
OF_AGENT = """Of the agent alone:
"""
NAMES = """What other libraries call options, and what is here instead. These names are refused with
the same words, in Python and on the command line.
"""
AGENT = """These are keywords of `TRPO` and options of `trpo-fast train`. Those marked *fixed*
cannot be changed when a run is resumed.
"""


def page() -> str:
    """The whole page."""
    alone = [row for name, row in TABLE.items() if name not in OPTIONS]
    parts = [HEAD, "## The policy's update\n", UPDATE]
    parts += [_table(TABLE[name] for name in OPTIONS if name in TABLE)]
    parts += ["Of the optimizer alone:\n", _table(alone), "## The agent\n", AGENT]
    own = [row for name, row in OPTIONS.items() if row.group == GROUP and name not in TABLE]
    parts += [f"### {GROUP.capitalize()}\n", OF_AGENT, _table(own)]
    for group in GROUPS:
        if group != GROUP:
            parts += [f"### {group.capitalize()}\n"]
            parts += [_table(row for row in OPTIONS.values() if row.group == group)]
    parts += ["## Names from elsewhere\n", NAMES, "| elsewhere | here |", "|---|---|"]
    parts += [f"| `{name}` | {_meant(text)} |" for name, text in SYNONYMS.items()]
    parts += [f"| `{name}` | {text} |" for name, text in ELSEWHERE.items()]
    return "\n".join(parts) + "\n"


def _meant(text: str) -> str:
    option, _, rest = text.partition(" ")
    return f"`{option}` {rest}".rstrip()


def _table(rows: Iterable[Option]) -> str:
    lines = ["| option | default | takes | what it is |", "|---|---|---|---|"]
    for row in rows:
        default = f"`{row.default!r}`"
        meaning = ". ".join(filter(None, (row.text, row.note)))
        cells = (
            f"`{row.name}`",
            default,
            row.values,
            meaning + (" (*fixed*)" if row.fixed else ""),
        )
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
