"""Ten plain CG iterations on the damped Fisher matrix, from the batch to the direction."""

from __future__ import annotations

from typing import Any

from cases import Size, answer_of
from contenders import contender_of
from timing import DEFAULT_SOLVE_TOLERANCE, SOLVE_TOLERANCE, relative_error, time_turn


def test_solve(
    benchmark: Any, size: Size, turn: int, contender: str, facts: dict[str, Any]
) -> None:
    candidate = contender_of(contender, size)
    call = candidate.solve()

    def check() -> tuple[float, None]:
        error = relative_error(candidate.our_solution(call()), answer_of(size).solution)
        assert error < SOLVE_TOLERANCE.get(contender, DEFAULT_SOLVE_TOLERANCE)
        return error, None

    time_turn(
        benchmark,
        call,
        check=check,
        operation="solve",
        size=size,
        turn=turn,
        contender=contender,
        flop=size.solve_flop,
        facts=facts,
    )
