"""What weights may be, whatever the method."""

from __future__ import annotations

from collections.abc import Sequence

from mergekern.errors import RecipeError


def check_divisible(weight: Sequence[float], option: str = "normalize") -> None:
    """RecipeError when weights cancel, so that dividing by their sum would blow up rounding.

    option: what asks for the division
    """
    total = sum(weight)
    if abs(total) <= 1e-6 * sum(map(abs, weight)):
        shown = ", ".join(f"{value:g}" for value in weight)
        raise RecipeError(
            f"weights {shown} sum to {total:g} and {option} divides by the sum; "
            f"change the weights or set {option} to false"
        )
