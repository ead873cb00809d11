"""From Gram matrices to coefficients: guards, degenerate inputs, invariance."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergekern.geometry import Karcher, ModelStock, MultiSlerp, NuSlerp, Slerp

ROOT = math.sqrt(0.5)


def gram_of(*vectors: list[float]) -> tuple[tuple[float, ...], ...]:
    rows = np.array(vectors, np.float64)
    return tuple(map(tuple, (rows @ rows.T).tolist()))


A, B = [3.0, 0.0], [0.0, 4.0]
ANTIPODES = gram_of([1.0, 2.0], [-1.0, -2.0])
ZEROS = gram_of([0.0], [0.0])


def test_slerp_ends_at_its_inputs() -> None:
    assert Slerp(0.0).coefficients(gram_of(A, B)) == (1.0, 0.0)
    assert Slerp(1.0).coefficients(gram_of(A, B)) == (0.0, 1.0)
    assert Slerp(0.5).coefficients(gram_of(A, B)) == pytest.approx((ROOT, ROOT), rel=1e-15)
    assert Slerp(0.3).coefficients(gram_of(A)) == (1.0,)


def test_slerp_is_a_straight_line_next_to_collinear() -> None:
    for c, straight in ((0.9994, False), (0.9996, True), (-0.9996, True), (-0.9994, False)):
        found = Slerp(0.25).coefficients(gram_of([1.0, 0.0], [c, math.sqrt(1 - c * c)]))
        assert (found == (0.75, 0.25)) == straight


def test_zero_tensors_are_at_right_angles() -> None:
    want = (math.sin(0.75 * math.pi / 2), math.sin(0.25 * math.pi / 2))
    for gram in (ZEROS, gram_of(A, [0.0, 0.0]), gram_of([1e-9, 0.0], [1e-9, 0.0])):
        assert Slerp(0.25).coefficients(gram) == pytest.approx(want, rel=1e-15)
    for gram in (ZEROS, gram_of(A, [0.0, 0.0])):
        assert NuSlerp(0.25).coefficients(gram) == pytest.approx(want, rel=1e-15)


def test_nuslerp_is_a_straight_line_where_fp32_sees_no_angle() -> None:
    assert NuSlerp(0.25).coefficients(gram_of(A, A)) == (0.75, 0.25)
    for off in (0.0, 1e-5, 2e-4):
        opposite = gram_of([1.0, 0.0], [-3.0 * math.cos(off), 3.0 * math.sin(off)])
        assert NuSlerp(0.25).coefficients(opposite) == (0.75, 0.25)
    wide = gram_of([1.0, 0.0], [-math.cos(0.1), math.sin(0.1)])
    theta = math.pi - 0.1
    want = math.sin(0.75 * theta) / math.sin(theta), math.sin(0.25 * theta) / math.sin(theta)
    assert NuSlerp(0.25).coefficients(wide) == pytest.approx(want, rel=1e-12)


def test_multislerp_without_a_direction() -> None:
    assert MultiSlerp((0.5, 0.5), 1e-8).coefficients(ANTIPODES) == (0.5, 0.5)
    assert MultiSlerp((0.2, 0.3, 0.5), 1e-8).coefficients(((0.0,) * 3,) * 3) == (0.2, 0.3, 0.5)
    assert MultiSlerp((0.2, 0.8), 0.0).coefficients(ZEROS) == (0.2, 0.8)
    star = gram_of([1.0, 0.0], [-0.5, math.sqrt(0.75)], [-0.5, -math.sqrt(0.75)])
    with pytest.raises(ValueError, match="the directions of the models cancel"):
        MultiSlerp((1 / 3,) * 3, 1e-8).coefficients(star)


def test_karcher_drops_what_has_no_direction() -> None:
    assert Karcher(10, 1e-5).coefficients(ZEROS) == (0.0, 0.0)
    assert Karcher(10, 1e-5).coefficients(gram_of([1e-6])) == (0.0,)
    assert Karcher(10, 1e-5).coefficients(gram_of([2.0])) == (1.0,)
    found = Karcher(10, 1e-5).coefficients(gram_of([3.0, 0.0], [0.0, 0.0]))
    assert found == (0.5, 0.0)  # it counts for the length


def test_karcher_between_antipodes_stays_at_the_first() -> None:
    assert Karcher(10, 1e-5).coefficients(ANTIPODES) == (1.0, 0.0)
    nearly = gram_of([1.0, 0.0], [-1.0, 1e-9])
    assert Karcher(10, 0.0).coefficients(nearly) == (1.0, 0.0)


def test_karcher_reaches_the_middle_and_stops() -> None:
    gram = gram_of([1.0, 0.0], [math.cos(1.0), math.sin(1.0)])
    assert Karcher(10, 1e-5).coefficients(gram) == Karcher(1000, 1e-5).coefficients(gram)
    found = Karcher(100, 0.0).coefficients(gram)
    assert found == pytest.approx((0.5 / math.cos(0.5),) * 2, rel=1e-12)
    assert Karcher(0, 1e-5).coefficients(gram) == pytest.approx(found, rel=1e-12)


def test_model_stock() -> None:
    assert ModelStock().coefficients(gram_of(A, A, A)) == pytest.approx((1 / 3,) * 3, rel=1e-15)
    assert ModelStock().coefficients(gram_of(A, B)) == (0.0, 0.0)
    assert ModelStock().coefficients(ANTIPODES) == (0.0, 0.0)  # 1 + (n - 1) c = 0
    assert ModelStock().coefficients(ZEROS) == (0.0, 0.0)
    assert ModelStock().coefficients(gram_of(A)) == (0.0,)
    half = gram_of([1.0, 0.0], [0.5, math.sqrt(0.75)])
    assert ModelStock().coefficients(half) == pytest.approx((1 / 3,) * 2, rel=1e-12)


@given(
    vectors=st.lists(st.lists(st.floats(-9, 9), min_size=3, max_size=3), min_size=2, max_size=5),
    exponent=st.integers(-10, 60),
)
def test_coefficients_do_not_depend_on_the_scale(vectors, exponent) -> None:
    """But for guards, which these lengths are far from."""
    rows = [v for v in vectors if np.linalg.norm(v) > 1e-2]
    for geometry in (Slerp(0.3), NuSlerp(0.3), Karcher(10, 1e-12), ModelStock()):
        most = rows[:2] if isinstance(geometry, Slerp | NuSlerp) else rows
        if len(most) < 2:
            return
        want = geometry.coefficients(gram_of(*most))
        scaled = [[x * 2.0**exponent for x in v] for v in most]
        assert geometry.coefficients(gram_of(*scaled)) == want
        assert all(map(math.isfinite, want))
