"""Sines and angles with the same bits on every machine.

The C library's differ in the last bit from one version to the next. These are series of operations
that IEEE 754 rounds in one way only (+ - * / and the square root), right to a few units in the last
place.
"""

from __future__ import annotations

import math

# pi/2 in two parts; the first has 33 bits, so that whole multiples of it are exact.
_HALF_PI, _HALF_PI_REST = 1.57079632673412561417, 6.07710050650619224932e-11
_TERMS = 10  # what lies beyond is below the last bit of the first


def sine(x: float) -> float:
    """sin x."""
    return _turned(x, 0)


def cosine(x: float) -> float:
    """cos x."""
    return _turned(x, 1)


def angle(c: float) -> float:
    """acos c, in [0, pi], of a c in [-1, 1]."""
    if c < 0:
        return math.pi - angle(-c)
    tangent = math.sqrt((1 - c) * (1 + c)) / (1 + c)  # of the half
    for _ in range(3):  # of the 16th
        tangent = tangent / (1 + math.sqrt(1 + tangent * tangent))
    square, power, terms = tangent * tangent, tangent, []
    for n in range(_TERMS):
        terms.append(power / (2 * n + 1))
        power = -power * square
    return 16 * math.fsum(terms)


def _turned(x: float, quarters: int) -> float:
    """The sine of x and so many quarter turns."""
    whole = round(x / _HALF_PI)
    rest = (x - whole * _HALF_PI) - whole * _HALF_PI_REST
    quarter = (whole + quarters) % 4
    value = _series(rest, 1.0, 0) if quarter % 2 else _series(rest, rest, 1)
    return -value if quarter > 1 else value


def _series(x: float, first: float, n: int) -> float:
    """The sum of first, -x^2 first / ((n+1)(n+2)) and so on: sin x from x, cos x from 1."""
    term, terms = first, [first]
    for _ in range(_TERMS):
        term = -term * x * x / ((n + 1) * (n + 2))
        terms.append(term)
        n += 2
    return math.fsum(terms)
