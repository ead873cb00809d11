"""Counting magnitudes against brackets: Backend.count() says what of.

A block adds up its counts in registers and gives each one away in one addition. Tallies are added
to element by element, but for the lowest bin that a step meets: where magnitudes crowd, as zeros
do, they crowd there, and thousands of additions to one address would wait for each other.
"""

import triton
import triton.language as tl

from mergekern.kernels.element import magnitude
from mergekern.kernels.tables import (
    BASE_AT,
    FIRST_AT,
    NUMEL_AT,
    aligned,
    read,
    read_expert,
)

CHUNK = tl.constexpr(65536)


@triton.jit
def past_low(m, bracket):
    """Where magnitudes reach the bracket, in which of its bins, and where they lie beyond it."""
    low = tl.load(bracket + 1).to(tl.uint64)
    shift = tl.load(bracket + 2)
    bins = tl.load(bracket + 3).to(tl.uint64)
    if m.dtype == tl.uint32:  # no magnitude reaches 2**31
        low = tl.minimum(low, 0x80000000).to(tl.uint32)
        shift = tl.minimum(shift, 31)
        bins = tl.minimum(bins, 0x80000000).to(tl.uint32)
    reached = m >= low
    bin = (m - low) >> shift.to(m.dtype)
    return reached, bin, reached & (bin >= bins)


@triton.jit
def tally(bins, bin, inside):
    lowest = tl.min(tl.where(inside, bin.to(tl.int64), 0x7FFFFFFFFFFFFFFF))
    crowd = inside & (bin.to(tl.int64) == lowest)
    number = tl.sum(crowd.to(tl.int32)).to(tl.int64)
    if number > 0:
        tl.atomic_add(bins + lowest, number, sem="relaxed")
    one = tl.full(bin.shape, 1, tl.int64)
    tl.atomic_add(bins + bin.to(tl.int64), one, mask=inside & ~crowd, sem="relaxed")


@triton.jit
def count_run(
    row,
    brackets,
    tallies,
    queries,
    begin,
    end,
    BASE: tl.constexpr,
    EXPERTS: tl.constexpr,
    WORK: tl.constexpr,
    QUERIES: tl.constexpr,
    STEP: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """Counts of elements begin … end - 1: [QUERIES] inside, [QUERIES] above."""
    inside_all = tl.zeros([QUERIES], tl.int32)
    above_all = tl.zeros([QUERIES], tl.int32)
    base_address = tl.load(row + BASE_AT)
    for start in range(begin, end, STEP):
        live = tl.arange(0, STEP) < tl.minimum(end - start, STEP).to(tl.int32)
        b = read(base_address, start, live, BASE, WORK, WHOLE)
        for q in range(queries):
            bracket = brackets + 5 * q
            expert = tl.load(bracket)
            x = read_expert(row, expert, start, live, EXPERTS, WORK, WHOLE)
            reached, bin, above = past_low(magnitude(x - b), bracket)
            inside = reached & ~above & live
            mine = tl.arange(0, QUERIES) == q
            inside_all += tl.where(mine, tl.sum(inside.to(tl.int32)), 0)
            above_all += tl.where(mine, tl.sum((above & live).to(tl.int32)), 0)
            first_bin = tl.load(bracket + 4)
            if first_bin >= 0:
                tally(tallies + first_bin, bin, inside)
    return inside_all, above_all


@triton.jit(do_not_specialize=["queries"])
def count(
    segments,
    brackets,
    above,
    inside,
    tallies,
    queries,
    BASE: tl.constexpr,
    EXPERTS: tl.constexpr,
    WORK: tl.constexpr,
    QUERIES: tl.constexpr,
    SPAN: tl.constexpr,
    STEP: tl.constexpr,
):
    """One tile. above, inside: zeros before. QUERIES: a power of two, no less than `queries`."""
    first = (tl.program_id(0).to(tl.int64) - tl.load(segments + FIRST_AT)) * SPAN
    stop = tl.minimum(first + SPAN, tl.load(segments + NUMEL_AT))
    whole = aligned(segments, len(EXPERTS))
    middle = tl.where(whole, first + (stop - first) // STEP * STEP, first)
    q = tl.arange(0, QUERIES)
    for WHOLE in tl.static_range(1, -1, -1):
        begin = first if WHOLE else middle
        end = middle if WHOLE else stop
        if begin < end:
            in_all, above_all = count_run(
                segments,
                brackets,
                tallies,
                queries,
                begin,
                end,
                BASE,
                EXPERTS,
                WORK,
                QUERIES,
                STEP,
                WHOLE,
            )
            at = first // CHUNK * queries + q
            tl.atomic_add(inside + at, in_all.to(tl.int64), mask=q < queries, sem="relaxed")
            tl.atomic_add(above + at, above_all.to(tl.int64), mask=q < queries, sem="relaxed")
