"""exp, log, sine, angle and sums in plain fp64 operations, for functions of methods: every device
has the same bits of them, which libraries do not promise.

Each operation below is one of IEEE 754's (+ - * / and the square root) on every element, in this
order. exp and log are within two units in the last place, sine and angle within a few.
exp, log and total of fp64 in host memory run in csrc/cpu/elementary.h, which has the bits of
plain_exp, plain_log and plain_total.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from mergekern import _C
from mergekern.lazily import torch

if TYPE_CHECKING:
    from torch import Tensor

# ln 2 in two parts. Multiples of the first, of 32 bits, by an exponent are exact.
LN2_HIGH = float.fromhex("0x1.62e42feep-1")
LN2_LOW = float.fromhex("0x1.a39ef35793c76p-33")
LOG2_E = 1 / math.log(2)
SMALLEST, LARGEST = -708.0, 709.0  # powers of e within the normal numbers
# Of r coth(r / 2) = 2 + r**2 / 6 - ..., in powers of r**2: 2 B(2n) / (2n)!, Bernoulli's numbers.
COTH = (1 / 6, -1 / 360, 1 / 15120, -1 / 604800, 1 / 23950080, -691 / 653837184000)
# pi / 2 likewise, the first of 33 bits.
HALF_PI_HIGH, HALF_PI_LOW = float.fromhex("0x1.921fb544p+0"), float.fromhex("0x1.0b4611a626331p-34")
ANGLE_TERMS, SINE_TERMS = 10, 10  # what lies beyond is below the last bit
LOG_TERMS = 11  # of atanh's series, for |s| <= 3 - 2 sqrt(2)
_BIAS, _DIGITS = 1023, 52  # of a double's exponent, and after its point
_SQRT_HALF = 0x3FE6A09E667F3BCD  # its bits
_UNIT = 1.5 * 2**52  # added to a small number, it leaves a whole one, in the last bits


def _has_loops(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.float64 and not x.requires_grad


def _by_loop(loop: Callable[[str, int, int, int], None], x: Tensor) -> Tensor:
    x = x.contiguous()
    out = torch.empty_like(x)
    loop("", x.data_ptr(), x.numel(), out.data_ptr())
    return out


def exp(x: Tensor) -> Tensor:
    """e**x, elementwise, fp64, of x in [SMALLEST, LARGEST], the nearer one of them beyond."""
    return _by_loop(_C.exp, x) if _has_loops(x) else plain_exp(x)


def plain_exp(x: Tensor) -> Tensor:
    """x = k ln 2 + r with |r| <= ln(2) / 2; e**x = 2**k e**r,
    e**r = 1 + 2 r / (r coth(r / 2) - r).
    """
    r = x.clamp(SMALLEST, LARGEST)
    shifted = (r * LOG2_E).add_(_UNIT)
    k = shifted - _UNIT
    r.sub_(k * LN2_HIGH).sub_(k.mul_(LN2_LOW))
    square = r * r
    series = square * COTH[-1]
    for term in reversed(COTH[:-1]):
        series.add_(term).mul_(square)
    power = shifted.view(torch.int64).add_(_BIAS).bitwise_left_shift_(_DIGITS).view(torch.float64)
    return series.add_(2.0).sub_(r).reciprocal_().mul_(r.mul_(2.0)).add_(1.0).mul_(power)


def log(x: Tensor) -> Tensor:
    """Natural logarithm, elementwise, fp64, of normal positive numbers."""
    return _by_loop(_C.log, x) if _has_loops(x) else plain_log(x)


def plain_log(x: Tensor) -> Tensor:
    """x = 2**k (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)); with s = f / (2 + f),
    log(1 + f) = 2 atanh(s) = f - s (f - 2 (s**2 / 3 + s**4 / 5 + ...)).
    """
    bits = x.contiguous().view(torch.int64)
    k = (bits - _SQRT_HALF) >> _DIGITS
    f = (bits - (k << _DIGITS)).view(torch.float64).sub_(1.0)
    s = f / (f + 2.0)
    square = s * s
    series = torch.full_like(s, 2 / (2 * LOG_TERMS + 1))
    for term in reversed(range(1, LOG_TERMS)):
        series.mul_(square).add_(2 / (2 * term + 1))
    series.mul_(square)
    power = k.double()
    low = s.mul_(f - series).sub_(power * LN2_LOW)
    return f.sub_(low).add_(power.mul_(LN2_HIGH))


def total(x: Tensor) -> Tensor:
    """The sum along the last dimension, by halves: the second is added to the first, and so on.

    The order goes by the length alone.
    """
    if not _has_loops(x):
        return plain_total(x)
    x = x.contiguous()
    sums = x.new_empty(x.shape[:-1])
    _C.total("", x.data_ptr(), sums.numel(), x.shape[-1], sums.data_ptr())
    return sums


def plain_total(x: Tensor) -> Tensor:
    if not x.shape[-1]:
        return x.new_zeros(x.shape[:-1])
    while (length := x.shape[-1]) > 1:
        half = (length + 1) // 2
        folded = x[..., : length - half] + x[..., half:]
        x = folded if length % 2 == 0 else torch.cat([folded, x[..., half - 1 : half]], -1)
    return x[..., 0]


def angle(c: Tensor) -> Tensor:
    """acos c, elementwise, fp64, in [0, pi], of c in [-1, 1]: 16 times the 16th part of an angle,
    whose tangent comes by halving and whose series is the arc tangent's. NaN for anything else."""
    size = c.abs()
    tangent = ((1 - size) * (1 + size)).sqrt() / (1 + size)  # of the half
    for _ in range(3):
        tangent = tangent / (1 + (1 + tangent * tangent).sqrt())
    square = tangent * tangent
    series = torch.full_like(c, 1 / (2 * ANGLE_TERMS - 1))
    for term in reversed(range(ANGLE_TERMS - 1)):
        series = 1 / (2 * term + 1) - series * square
    found = tangent * series * 16
    return torch.where(c < 0, math.pi - found, found)


def sine(x: Tensor) -> Tensor:
    """sin x, elementwise, fp64, of moderate x: Taylor's series of what is left of whole quarters of
    a turn."""
    quarters = (x / HALF_PI_HIGH).round()
    rest = (x - quarters * HALF_PI_HIGH) - quarters * HALF_PI_LOW
    turned = quarters - (quarters / 4).floor() * 4
    square = rest * rest
    sin, cos = torch.ones_like(x), torch.ones_like(x)
    for n in reversed(range(1, SINE_TERMS)):
        sin = 1 - sin * square / (2 * n * (2 * n + 1))
        cos = 1 - cos * square / (2 * n * (2 * n - 1))
    value = torch.where((turned == 1) | (turned == 3), cos, sin * rest)
    return torch.where(turned >= 2, -value, value)
