"""What a pass with guessed windows counts and marks beside: Backend.speculate() says why."""

import triton
import triton.language as tl

from mergekern.kernels.windows import reached


@triton.jit
def counted(m, cuts, place, live, COUNTS, WHOLE: tl.constexpr):
    """How many magnitudes in each eight reach each cut of the strict and the given window, and
    which reach a cut of the wide one only. COUNTS: so far, given ones in the upper 16 bits"""
    counts = ()
    marked = tl.zeros(m.shape, tl.int1)
    for c in tl.static_range(2):
        given = reached(m, cuts[c], place, WHOLE) & live
        strict = reached(m, cuts[2 + c], place, WHOLE) & live
        wide = reached(m, cuts[4 + c], place, WHOLE) & live
        marked |= wide & ~given
        both = strict.to(tl.int32) + (given.to(tl.int32) << 16)
        counts = counts + (COUNTS[c] + tl.sum(both.reshape(m.shape[0] // 8, 8), 1),)
    return counts, marked


@triton.jit
def mark(address, marked, start, stop):
    """Element i is bit i % 8 of byte i // 8; bits from `stop` on are 0."""
    EIGHTHS: tl.constexpr = marked.shape[0] // 8
    bits = marked.to(tl.int32).reshape(EIGHTHS, 8) << tl.arange(0, 8)[None, :]
    at = tl.arange(0, EIGHTHS)
    bytes = address.to(tl.pointer_type(tl.uint8)) + start // 8
    tl.store(bytes + at, tl.sum(bits, 1).to(tl.uint8), mask=at < tl.cdiv(stop - start, 8))
