"""One table of options: whoever takes one refuses what it refuses, and says the same."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scripts import script

from trpo_fast import TRPO, TRPOOptimizer, cli, natural_gradient
from trpo_fast.agent.config import OPTIONS, Config, ConfigError
from trpo_fast.base.option import Option
from trpo_fast.update.options import TABLE, Options

ROWS = {**TABLE, **OPTIONS}


def refused(row: Option) -> Iterator[Any]:
    """The values nearest to each limit that are outside it, and words that are none."""
    whole = row.kind in (int, tuple)
    if row.minimum is not None:
        yield row.minimum - 1 if whole else math.nextafter(row.minimum, -math.inf)
    if row.maximum is not None:
        yield row.maximum + 1 if whole else math.nextafter(row.maximum, math.inf)
    yield from (limit for limit in (row.above, row.below) if limit is not None)
    if row.kind is float:
        yield from (math.nan, math.inf)
    if row.choices:
        yield "nosuch"


def taken(row: Option) -> Iterator[Any]:
    """The values at each limit that are inside it, and every choice."""
    yield from (limit for limit in (row.minimum, row.maximum) if limit is not None)
    for limit, other in ((row.above, math.inf), (row.below, -math.inf)):
        if limit is not None:
            yield math.nextafter(limit, other)
    yield from row.choices


OUTSIDE = [(name, value) for name, row in ROWS.items() for value in refused(row)]
INSIDE = [(name, value) for name, row in ROWS.items() for value in taken(row)]


def as_given(row: Option, value: Any) -> Any:
    return (value,) if row.kind is tuple else value


def limits_in(row: Option) -> list[str]:
    """What a text must name: each limit with its sign, or each choice."""
    signs = ((">=", row.minimum), (">", row.above), ("<=", row.maximum), ("<", row.below))
    spelt = "{} {:g}" if row.kind is float else "{} {}"
    limits = [spelt.format(sign, limit) for sign, limit in signs if limit is not None]
    unbounded = row.kind is float and row.maximum is None and row.below is None
    return [*limits, *(["finite"] if unbounded else []), *row.choices]


@pytest.fixture(autouse=True)
def in_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("name", "value"), OUTSIDE)
def test_everyone_refuses_what_the_table_refuses(
    name: str, value: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    row = ROWS[name]
    texts = []
    for options, error, table in ((Options, ValueError, TABLE), (Config, ConfigError, OPTIONS)):
        if name in table:
            with pytest.raises(error) as caught:
                options(**{name: as_given(row, value)})
            texts.append(str(caught.value))
    if name in OPTIONS:
        flag = f"--{name.replace('_', '-')}={value}"
        try:
            code = cli.main(["train", "CartPole-v1", "--total-steps", "1", flag])
        except SystemExit as stop:  # argparse's own, for a choice
            code = stop.code
        assert code == 2
        texts.append(capsys.readouterr().err.replace("-", "_"))
    assert texts
    for text in texts:
        assert name in text
        assert [limit for limit in limits_in(row) if limit not in text] == []


@pytest.mark.parametrize(("name", "value"), INSIDE)
def test_everyone_takes_what_the_table_takes(name: str, value: Any) -> None:
    row = ROWS[name]
    for options, table in ((Options, TABLE), (Config, OPTIONS)):
        if name in table:
            given = as_given(row, value)
            assert getattr(options(**{name: given}), name) == given


def test_the_optimizer_and_the_agent_share_rows_and_their_own_stay_their_own() -> None:
    assert set(TABLE) - set(OPTIONS) == {"noise", "maximize"}
    assert all(TABLE[name] == OPTIONS[name] for name in set(TABLE) & set(OPTIONS))


def test_signatures_spell_the_table_out() -> None:
    for made, table in ((TRPOOptimizer, TABLE), (TRPO, OPTIONS)):
        signature = inspect.signature(made).parameters
        for name, row in table.items():
            assert signature[name].kind is inspect.Parameter.KEYWORD_ONLY
            assert row.kind is dict or signature[name].default == row.default
    documented = TRPOOptimizer.__init__.__doc__ or ""
    assert all(f"\n  {name}: {row.text}" in documented for name, row in TABLE.items())


def test_natural_gradient_has_the_optimizers_defaults_but_one() -> None:
    own = inspect.signature(natural_gradient).parameters
    shared = [name for name in TABLE if name in own]
    assert [name for name in shared if own[name].default != TABLE[name].default] == [
        "cg_progress_tol"
    ]


def test_the_page_of_options_is_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    writer = script("docs/write_options.py", monkeypatch)
    assert writer.PAGE.read_text() == writer.page(), "run: python docs/write_options.py"
