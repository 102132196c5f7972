"""The whole policy update: gradient, ten plain CG iterations, line search; no critic."""

from __future__ import annotations

from typing import Any

import pytest
from cases import Size, answer_of, case_of, mean_kl
from contenders import contender_of
from timing import (
    DEFAULT_SOLVE_TOLERANCE,
    KL_TOLERANCE,
    SOLVE_TOLERANCE,
    relative_error,
    time_turn,
)


def test_update(
    benchmark: Any, size: Size, turn: int, contender: str, facts: dict[str, Any]
) -> None:
    candidate, case, answer = contender_of(contender, size), case_of(size), answer_of(size)
    candidate.reset()
    call = candidate.update()
    call()
    after = candidate.theta()
    kl = mean_kl(case, after)
    error = relative_error(after.double() - case.theta.double(), answer.step)
    candidate.reset()
    assert kl == pytest.approx(answer.kl, rel=KL_TOLERANCE)
    assert error < SOLVE_TOLERANCE.get(contender, DEFAULT_SOLVE_TOLERANCE)
    time_turn(
        benchmark,
        call,
        operation="update",
        size=size,
        turn=turn,
        contender=contender,
        flop=size.update_flop,
        facts={**facts, "relative_error": error, "kl": kl},
        reset=candidate.reset,
    )
