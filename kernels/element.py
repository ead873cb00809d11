"""The arithmetic of one element, as csrc/element.h has it: widen, trim, elect, combine, round.

All on the integer bits where a conversion is not the same everywhere: Triton's interpreter
truncates where compiled code rounds, and takes bf16 denormals for something else.
"""

import triton
import triton.language as tl

# bits of a floating-point number


@triton.constexpr_function
def bits_of(WORK):
    return tl.uint64 if tl.float64 == WORK else tl.uint32


@triton.constexpr_function
def infinity(WORK):
    return 0x7FF0000000000000 if tl.float64 == WORK else 0x7F800000


@triton.jit
def magnitude(x):
    if x.dtype == tl.float64:
        return x.to(tl.uint64, bitcast=True) & 0x7FFFFFFFFFFFFFFF
    else:
        return x.to(tl.uint32, bitcast=True) & 0x7FFFFFFF


# element types as they lie in a checkpoint


@triton.constexpr_function
def stored(DTYPE):
    """What is loaded and stored: 16-bit floats are bits to us."""
    return tl.uint16 if DTYPE.primitive_bitwidth == 16 else DTYPE


# widen, exactly


@triton.jit
def widen_bf16(x):
    return (x.to(tl.uint32) << 16).to(tl.float32, bitcast=True)


@triton.jit
def widen_fp16(x):
    u = x.to(tl.uint32)
    sign = (u & 0x8000) << 16
    body = (u & 0x7FFF) << 13
    # Exponent bias 15 -> 127; the product is exact, for half denormals too.
    finite = (body.to(tl.float32, bitcast=True) * 5192296858534827628530496329220096.0).to(
        tl.uint32, bitcast=True
    )
    special = body | 0x7F800000
    return (sign | tl.where(body >= 0x0F800000, special, finite)).to(tl.float32, bitcast=True)


@triton.jit
def widen(x, DTYPE: tl.constexpr, WORK: tl.constexpr):
    if tl.bfloat16 == DTYPE:
        return widen_bf16(x).to(WORK)
    elif tl.float16 == DTYPE:
        return widen_fp16(x).to(WORK)
    else:
        return x.to(WORK)


# round: once, to nearest even, on the integer bits; NaN becomes 0x7fc0 (0x7e00 in fp16)


@triton.jit
def round_bf16(x):
    u = x.to(tl.uint32, bitcast=True)
    rounded = (u + 0x7FFF + ((u >> 16) & 1)) >> 16
    return tl.where((u & 0x7FFFFFFF) > 0x7F800000, 0x7FC0, rounded).to(tl.uint16)


@triton.jit
def round_fp16(x):
    u = x.to(tl.uint32, bitcast=True)
    a = u & 0x7FFFFFFF
    rebased = a - 0x38000000  # bias 127 -> 15
    normal = (rebased + 0xFFF + ((rebased >> 13) & 1)) >> 13
    clamped = tl.where(normal < 0x7C00, normal, 0x7C00)
    # Below 2^-14 the half's ulp is 2^-24, which is the ulp of numbers in [0.5, 1).
    tiny = (a.to(tl.float32, bitcast=True) + 0.5).to(tl.uint32, bitcast=True) - 0x3F000000
    body = tl.where(a < 0x38800000, tiny, clamped)
    finite = ((u >> 16) & 0x8000) | body
    return tl.where(a > 0x7F800000, 0x7E00, finite).to(tl.uint16)


@triton.jit
def round_to_odd(x):
    """To fp32 with the last bit sticky: a second rounding, to nearest even and at least two bits
    shorter, then gives what one rounding from fp64 would."""
    nearest = x.to(tl.float32)
    back = nearest.to(tl.float64)
    u = nearest.to(tl.uint32, bitcast=True)
    beyond = (magnitude(back) > magnitude(x)).to(tl.uint32)
    u = (u - beyond) | (back != x).to(tl.uint32)
    return tl.where(x != x, nearest, u.to(tl.float32, bitcast=True))


@triton.jit
def round_to(x, DTYPE: tl.constexpr):
    """What is stored as DTYPE."""
    if DTYPE.primitive_bitwidth > 16:
        return x.to(DTYPE)
    else:
        if x.dtype == tl.float64:
            x = round_to_odd(x)
        return round_bf16(x) if tl.bfloat16 == DTYPE else round_fp16(x)


@triton.jit
def overflows(rounded, DTYPE: tl.constexpr):
    """Where what is stored is NaN or Inf."""
    if tl.bfloat16 == DTYPE:
        return (rounded & 0x7FFF) >= 0x7F80
    elif tl.float16 == DTYPE:
        return (rounded & 0x7FFF) >= 0x7C00
    else:
        return magnitude(rounded) >= infinity(DTYPE)


# trim: keep lo <= |d| < hi


@triton.jit
def trim(d, lo, hi):
    m = magnitude(d)
    return tl.where((m >= lo) & (m < hi), d, 0.0)


# elect: the sign of a ballot, and whether it agrees with the sum of all (a sum of 0 counts as +)


@triton.jit
def sign(u):
    return (u > 0).to(u.dtype) - (u < 0).to(u.dtype)


@triton.jit
def agrees(ballot, sum):
    return tl.where(sum < 0, -ballot, ballot) > 0


# combine


@triton.jit
def larger(best, v):
    return tl.where(magnitude(v) > magnitude(best), v, best)


@triton.jit
def guarded(denominator):
    return tl.where(denominator == 0, 1.0, denominator)


@triton.jit
def divide(numerator, denominator):
    """`/` is an approximation in fp32."""
    if numerator.dtype == tl.float64:
        return numerator / denominator
    else:
        return tl.div_rn(numerator, denominator)


@triton.jit
def finish(base, mixed, scale):
    scaled = scale * mixed
    return base + scaled
