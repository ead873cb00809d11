"""Functions of users that do what they should not: the error says which, and of what tensor."""

from __future__ import annotations

import math

import pytest
import torch

import mergekern
from mergekern.errors import NonFiniteError, RecipeError


def test_a_view_that_says_negate_me() -> None:
    @mergekern.method("negated")
    def negated(base, experts):
        """out = -base"""
        return torch._neg_view(base)

    got = mergekern.merge("negated", base={"w": torch.ones(9)}, models=[{"w": torch.zeros(9)}])
    assert got["w"].tolist() == [-1] * 9


def test_a_result_that_is_no_number_is_said() -> None:
    @mergekern.method("no_number")
    def no_number(base, experts):
        """out = 0 / 0"""
        return (base - base) / (base - base)

    with pytest.raises(NonFiniteError, match="w: the result is NaN or too large for float32"):
        mergekern.merge("no_number", base={"w": torch.ones(9)}, models=[{"w": torch.zeros(9)}])


@pytest.mark.parametrize(
    ("survey", "message"),
    [
        (lambda tensor: 1 / 0, "tensor w: the survey of surveyed failed: ZeroDivisionError: div"),
        (lambda tensor: tensor.sums(lambda b, x: None), "failed: AttributeError: 'NoneType'"),
        (lambda tensor: None, r"survey of surveyed returned None; want a dict of tensors, PerRow"),
        (lambda tensor: {"x": 2.0}, r"survey of surveyed returned {'x': 2.0}; want a dict of tens"),
    ],
)
def test_surveys_that_fail(survey, message: str) -> None:
    @mergekern.method("surveyed", survey=survey)
    def surveyed(base, experts, found):
        """out = base"""
        return base

    with pytest.raises(RecipeError, match=message):
        mergekern.merge("surveyed", base={"w": torch.ones(9)}, models=[{"w": torch.zeros(9)}])


def test_not_a_number_is_found_before_a_survey_is_blamed() -> None:
    base, expert = {"w": torch.ones(9)}, {"w": torch.full((9,), math.nan)}
    for method in ("arcee_fusion", "ramplus_tl"):
        with pytest.raises(NonFiniteError, match="w: NaN or Inf in models"):
            mergekern.merge(method, base=base, models=[expert])
