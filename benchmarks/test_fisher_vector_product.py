"""One damped Fisher product of a solve in progress: what the solve prepares once is prepared."""

from __future__ import annotations

from typing import Any

from cases import Size, answer_of
from contenders import contender_of
from timing import (
    DEFAULT_PRODUCT_TOLERANCE,
    PRODUCT_TOLERANCE,
    relative_error,
    time_turn,
)


def test_fisher_vector_product(
    benchmark: Any, size: Size, turn: int, contender: str, facts: dict[str, Any]
) -> None:
    candidate = contender_of(contender, size)
    call = candidate.product()

    def check() -> tuple[float, None]:
        error = relative_error(candidate.ours(call()), answer_of(size).product)
        assert error < PRODUCT_TOLERANCE.get(contender, DEFAULT_PRODUCT_TOLERANCE)
        return error, None

    time_turn(
        benchmark,
        call,
        check=check,
        operation="Fisher product",
        size=size,
        turn=turn,
        contender=contender,
        flop=size.product_flop,
        facts=facts,
    )
