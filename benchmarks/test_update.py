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
    candidate = contender_of(contender, size)
    call = candidate.update()

    def check() -> tuple[float, float]:
        case, answer = case_of(size), answer_of(size)
        candidate.reset()
        call()
        after = candidate.theta()
        kl = mean_kl(case, after)
        error = relative_error(after.double() - case.theta.double(), answer.step)
        assert kl == pytest.approx(answer.kl, rel=KL_TOLERANCE)
        assert error < SOLVE_TOLERANCE.get(contender, DEFAULT_SOLVE_TOLERANCE)
        return error, kl

    time_turn(
        benchmark,
        call,
        check=check,
        operation="update",
        size=size,
        turn=turn,
        contender=contender,
        flop=size.update_flop,
        facts=facts,
        reset=candidate.reset,
    )
