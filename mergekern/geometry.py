"""Methods that know their inputs by lengths and angles: from a Gram matrix to coefficients.

    G_ij = <v_i, v_j>,   out = sum_i c_i(G) v_i   (+ base, where the v are deltas from one)

Every result of theirs lies in the span of the inputs, so that a tensor of any size is K x K
numbers, iterations included. The matrix is summed up in fp64, of what the method compares: weights,
or deltas where there is a base. All arithmetic is in operations that IEEE 754 rounds in one way
only, and gives the same bits on every machine; see angles.py.

The guards are those of mergekit 0.1.5, which works in the inputs' dtype: its cosines are as coarse,
so that angles below 3e-4 in fp32, and 0.06 in bf16, are zero to it. Next to +1 that hardly matters,
as coefficients change by 1 - cosine at the most; next to -1 they grow beyond bounds: see ANTIPODAL.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from mergekern.angles import angle, cosine, sine

Gram = tuple[tuple[float, ...], ...]

ANTIPODAL = -1 + 2**-25  # rounded to fp32, cosines below are -1: there is no arc to follow
RESOLUTION = 1e-7  # shorter sums of unit vectors are the rounding of an fp64 Gram matrix


class Geometry(Protocol):
    def coefficients(self, gram: Gram) -> tuple[float, ...]:
        """What to multiply every input with; ValueError saying why there is no answer.

        gram: finite
        """


@dataclass(frozen=True)
class Slerp:
    """Along the arc from the first input to the second (Shoemake 1985), by t of the way.

    One alone stays as it is.
    """

    t: float

    def coefficients(self, gram: Gram) -> tuple[float, ...]:
        if len(gram) == 1:
            return (1.0,)
        first, second = (norm if norm > 1e-8 else 1.0 for norm in _norms(gram))
        c = _clamped(gram[0][1] / first / second)
        return (1 - self.t, self.t) if abs(c) > 0.9995 else _arc(c, self.t)


@dataclass(frozen=True)
class NuSlerp:
    """Along the arc from the first input to the second, by t of the way."""

    t: float

    def coefficients(self, gram: Gram) -> tuple[float, ...]:
        first, second = (max(norm, 1e-7) for norm in _norms(gram))
        c = _clamped(gram[0][1] / first / second)
        collinear = 1 - c * c <= 1e-16 or c < ANTIPODAL
        return (1 - self.t, self.t) if collinear else _arc(c, self.t)


@dataclass(frozen=True)
class MultiSlerp:
    """The weighted mean of directions, as long as the weighted mean of lengths.

    mergekit goes on from this mean m in its tangent plane, by tau = sum_i w_i (u_i - <u_i, m> m).
    As sum_i w_i u_i = |.| m, tau is zero, and of the step cos(|tau| + eps) is left.
    """

    weight: tuple[float, ...]
    eps: float

    def coefficients(self, gram: Gram) -> tuple[float, ...]:
        norms = _norms(gram)
        lengths = [norm + self.eps or 1.0 for norm in norms]
        each = [w / length for w, length in zip(self.weight, lengths, strict=True)]
        mean = _length(gram, each)
        if not mean >= max(self.eps, RESOLUTION):
            if len(gram) == 2 or max(norms) <= self.eps:
                return self.weight
            raise ValueError(
                "the directions of the models cancel, so multislerp has none to go: change the "
                "weights, or leave a model out"
            )
        scale = cosine(self.eps) * _dot(self.weight, norms) / mean
        return tuple(c * scale for c in each)


@dataclass(frozen=True)
class Karcher:
    """The direction from which the squared angles to all inputs' sum up to the least, as long as
    the inputs are on average. Inputs no longer than tol have no direction; all of these come to
    zero."""

    max_iter: int
    tol: float

    def coefficients(self, gram: Gram) -> tuple[float, ...]:
        norms = _norms(gram)
        kept = [k for k, norm in enumerate(norms) if norm > self.tol]
        units = tuple(
            tuple(1.0 if i == j else gram[i][j] / norms[i] / norms[j] for j in kept) for i in kept
        )
        length = math.fsum(norms) / len(norms)
        found = [0.0] * len(norms)
        for k, coefficient in zip(kept, self._mean(units), strict=True):
            found[k] = coefficient * length / norms[k]
        return tuple(found)

    def _mean(self, units: Gram) -> list[float]:
        """The mean direction in terms of the units, whose Gram matrix this is."""
        share = [1 / len(units) for _ in units]
        norm = _length(units, share)
        if norm < max(self.tol, RESOLUTION):
            mean = [float(k == 0) for k, _ in enumerate(units)]
        else:
            mean = [s / norm for s in share]
        for _ in range(self.max_iter):
            step = self._step(units, share, mean)
            size = _length(units, step)
            if size < self.tol or not size:
                break
            along, aside = cosine(size), sine(size) / size
            mean = [along * m + aside * s for m, s in zip(mean, step, strict=True)]
            norm = _length(units, mean)
            mean = [m / norm for m in mean]
        return mean

    def _step(self, units: Gram, share: list[float], mean: list[float]) -> list[float]:
        """sum_i share_i theta_i / sin theta_i (u_i - cos theta_i mean), the mean of the logarithms
        of all units at `mean`."""
        cosines = [_clamped(_dot(row, mean)) for row in units]
        step = []
        for part, c in zip(share, cosines, strict=True):
            theta, s = angle(c), math.sqrt((1 - c) * (1 + c))
            step.append(part * theta / s if theta >= self.tol and s > RESOLUTION else 0.0)
        back = _dot(step, cosines)
        return [s - back * m for s, m in zip(step, mean, strict=True)]


@dataclass(frozen=True)
class ModelStock:
    """From the base towards the mean of the models, the less far the more their deltas differ.

    One delta alone says nothing about that: the base stays.
    """

    def coefficients(self, gram: Gram) -> tuple[float, ...]:
        count, norms = len(gram), _norms(gram)
        pairs = [(i, j) for i in range(count) for j in range(i)]
        if not pairs:
            return (0.0,)
        cosines = [_clamped(gram[i][j] / max(norms[i] * norms[j], 1e-6)) for i, j in pairs]
        c = math.fsum(cosines) / len(cosines)
        denominator = 1 + (count - 1) * c
        ratio = 0.0 if abs(denominator) < 1e-6 else count * c / denominator
        return (ratio / count,) * count


def _norms(gram: Gram) -> list[float]:
    return [math.sqrt(row[k]) for k, row in enumerate(gram)]


def _clamped(c: float) -> float:
    return min(max(c, -1.0), 1.0)


def _dot(a: list[float] | tuple[float, ...], b: list[float] | tuple[float, ...]) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def _length(gram: Gram, coefficients: list[float]) -> float:
    """Of a combination of the inputs."""
    square = _dot(coefficients, [_dot(row, coefficients) for row in gram])
    return math.sqrt(max(square, 0.0))


def _arc(c: float, t: float) -> tuple[float, float]:
    """Where t of the way from one unit vector to another is, in their terms; c: their cosine."""
    theta = angle(c)
    return sine((1 - t) * theta) / sine(theta), sine(t * theta) / sine(theta)
