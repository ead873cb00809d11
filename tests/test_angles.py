"""Sines and angles: right to a few units in the last place, and known bits."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergekern.angles import angle, cosine, sine

BITS = [
    "0x1.98eaecb8bcb2cp-4",
    "0x1.ed577f9c51e4bp-1",
    "0x1.e9fb8d64830e2p-3",
    "0x1.ec3c4ac42882bp-1",
    "0x1.fd712f9a817c1p-1",
    "0x1.11eb3682a4c5fp-2",
    "-0x1.f1216dba340c9p-1",
    "-0x1.19c46b07f58e7p-2",
    "0x1.d4effc851e7f2p-12",
    "0x1.973e83f5d5c9ap-1",
    "0x1.787b22ce3f590p+0",
    "0x1.e0200bbc96ad8p+0",
    "0x1.8e137322ba5f3p+1",
]
TURNS = st.floats(-30.0, 30.0)


@given(TURNS)
def test_sine_and_cosine(x) -> None:
    assert sine(x) == pytest.approx(math.sin(x), rel=1e-15, abs=1e-16)
    assert cosine(x) == pytest.approx(math.cos(x), rel=1e-15, abs=1e-16)


@given(st.floats(-1.0, 1.0))
def test_angle(c) -> None:
    assert angle(c) == pytest.approx(math.acos(c), rel=2e-15)


def test_where_arcs_end() -> None:
    assert (angle(1.0), angle(0.0), angle(-1.0)) == (0.0, math.pi / 2, math.pi)
    assert (sine(0.0), cosine(0.0)) == (0.0, 1.0)
    assert angle(1 - 2**-53) == pytest.approx(2**-26, rel=1e-15)


def test_the_bits_are_those_of_every_machine() -> None:
    found = [f(x).hex() for f in (sine, cosine) for x in (0.1, 1.3, 2.9, -17.0)]
    found += [angle(c).hex() for c in (0.9999999, 0.7, 0.1, -0.3, -0.9995)]
    assert found == BITS
