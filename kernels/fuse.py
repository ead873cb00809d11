"""The fused pass over many tiles: reads, decides what takes part, combines, rounds, writes.

Every block runs the same code twice: over its whole steps, then over the others.
"""

import triton
import triton.language as tl

from mergekern.kernels.combine import linear_combination, task_vector
from mergekern.kernels.element import bits_of, infinity, magnitude, overflows, round_to
from mergekern.kernels.philox import drop
from mergekern.kernels.speculate import counted, mark
from mergekern.kernels.tables import (
    BASE_AT,
    EXPERTS_AT,
    FIRST_AT,
    HASH_AT,
    MARKS_AT,
    NUMEL_AT,
    OFFSET_AT,
    OUT_AT,
    aligned,
    read,
    read_expert,
    tile_of,
    write,
)
from mergekern.kernels.windows import cuts_of, one_side, reached


@triton.jit
def worst_of(x):
    """The largest magnitude in each eight."""
    return tl.max(magnitude(x).reshape(x.shape[0] // 8, 8), 1)


@triton.jit
def find(
    flags,
    row,
    first,
    stop,
    BASE: tl.constexpr,
    EXPERTS: tl.constexpr,
    WORK: tl.constexpr,
    STEP: tl.constexpr,
):
    """Sets the flags of inputs that hold a NaN or Inf. Seldom called: deltas of large numbers may
    overflow without one."""
    for start in range(first, stop, STEP):
        live = tl.arange(0, STEP) < stop - start
        if BASE is not None:
            b = read(tl.load(row + BASE_AT), start, live, BASE, WORK, False)
            if tl.max((magnitude(b) >= infinity(WORK)).to(tl.int32), 0) > 0:
                tl.store(flags, 1)
        for k in range(len(EXPERTS)):
            x = read_expert(row, k, start, live, EXPERTS, WORK, False)
            if tl.max((magnitude(x) >= infinity(WORK)).to(tl.int32), 0) > 0:
                tl.store(flags + 1 + k, 1)


@triton.jit
def fuse_run(
    row,
    scalars,
    coins,
    windows,
    kept,
    seed,
    scale,
    divisor,
    first,
    begin,
    end,
    RULE: tl.constexpr,
    ELECT: tl.constexpr,
    COMBINE: tl.constexpr,
    SEPARATE: tl.constexpr,
    DIVIDED: tl.constexpr,
    DROPS: tl.constexpr,
    WINDOWS: tl.constexpr,
    BASE: tl.constexpr,
    EXPERTS: tl.constexpr,
    OUT: tl.constexpr,
    WORK: tl.constexpr,
    SPAN: tl.constexpr,
    STEP: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """Elements begin … end - 1 of a block that starts with `first`, in steps.

    Returns whether an input may not be finite, and whether the output is not.
    """
    K: tl.constexpr = len(EXPERTS)
    # Else registers run out: three windows that move have twelve numbers.
    KEEPS_CUTS: tl.constexpr = WHOLE or WINDOWS < 3
    base_address = tl.load(row + BASE_AT)
    out_address = tl.load(row + OUT_AT)
    index = tl.load(row + OFFSET_AT) + first
    addresses = ()
    factors = ()
    cuts = ()
    counts = ()
    for k in tl.static_range(K):
        addresses = addresses + (tl.load(row + EXPERTS_AT + k),)
        of_expert = ()
        for column in tl.static_range(3):
            of_expert = of_expert + (tl.load(scalars + 3 * k + column).to(WORK),)
        factors = factors + (of_expert,)
        if WINDOWS > 0 and KEEPS_CUTS:
            cuts = cuts + (cuts_of(windows + k * WINDOWS * 4, WINDOWS, index, SPAN, WORK, WHOLE),)
        if WINDOWS == 3:
            none = tl.zeros([STEP // 8], tl.int32)
            counts = counts + ((none, none),)
    worst = tl.zeros([STEP // 8], bits_of(WORK))
    too_large = tl.zeros([STEP // 8], tl.int32)
    lane = tl.arange(0, STEP)
    for start in range(begin, end, STEP):
        live = lane < tl.minimum(end - start, STEP).to(tl.int32)
        place = (start - first).to(tl.int32) + lane
        if RULE == "task_vector":
            b = read(base_address, start, live, BASE, WORK, WHOLE)
        marked = tl.zeros([STEP], tl.int1)
        deltas = ()
        new_counts = ()
        for k in tl.static_range(K):
            x = read(addresses[k], start, live, EXPERTS[k], WORK, WHOLE)
            if RULE == "task_vector":
                x = x - b
            worst = tl.maximum(worst, worst_of(x))  # a delta is finite only if both of it are
            if RULE == "task_vector":
                m = magnitude(x)
                if KEEPS_CUTS:
                    cuts_here = cuts[k] if WINDOWS > 0 else ()
                else:
                    cuts_here = cuts_of(
                        windows + k * WINDOWS * 4, WINDOWS, index, SPAN, WORK, WHOLE
                    )
                if WINDOWS == 3:
                    mine, open_ = counted(m, cuts_here, place, live, counts[k], WHOLE)
                    new_counts = new_counts + (mine,)
                    marked |= open_
                if WINDOWS > 0:
                    low = reached(m, cuts_here[0], place, WHOLE)
                    high = reached(m, cuts_here[1], place, WHOLE)
                    x = tl.where(low & ~high, x, 0.0)
                if DROPS[k] and OUT is not None:
                    blocks = (index + start - first) // 8 + tl.arange(0, STEP // 8)
                    expert = tl.load(coins + 2 * k).to(tl.uint32)
                    bound = tl.load(coins + 2 * k + 1)
                    x = drop(x, blocks, expert, bound, tl.load(row + HASH_AT).to(tl.uint32), seed)
            deltas = deltas + (x,)
        counts = new_counts
        if WINDOWS == 3:
            mark(tl.load(row + MARKS_AT), marked, start, end)
        if OUT is not None:
            if RULE == "task_vector":
                result = task_vector(
                    b, deltas, factors, scale, divisor, ELECT, COMBINE, SEPARATE, DIVIDED
                )
            else:
                result = linear_combination(deltas, factors, divisor, DIVIDED)
            rounded = round_to(result, OUT)
            large = (overflows(rounded, OUT) & live).to(tl.int32)
            too_large |= tl.max(large.reshape(STEP // 8, 8), 1)
            write(out_address, start, live, rounded, OUT, WHOLE)
    for c in tl.static_range(2 * K if WINDOWS == 3 else 0):
        both = counts[c // 2][c % 2]
        tl.atomic_add(kept + 2 * c, tl.sum(both & 0xFFFF, 0).to(tl.int64), sem="relaxed")
        tl.atomic_add(kept + 2 * c + 1, tl.sum(both >> 16, 0).to(tl.int64), sem="relaxed")
    bad = (worst >= infinity(WORK)).to(tl.int32) | (too_large << 1)
    return tl.max(bad & 1, 0), tl.max(bad >> 1, 0)


@triton.jit
def from_bits(x, WORK: tl.constexpr):
    """An fp64 argument, which the interpreter takes for fp32, by its bits."""
    return x.to(tl.uint64).to(tl.float64, bitcast=True).to(WORK)


@triton.jit(do_not_specialize=["tiles", "seed", "scale", "divisor"])
def fuse(
    segments,
    scalars,
    coins,
    windows,
    found,
    kept,
    tiles,
    seed: tl.uint64,
    scale: tl.uint64,
    divisor: tl.uint64,
    RULE: tl.constexpr,
    ELECT: tl.constexpr,
    COMBINE: tl.constexpr,
    SEPARATE: tl.constexpr,
    DIVIDED: tl.constexpr,
    DROPS: tl.constexpr,
    WINDOWS: tl.constexpr,
    BASE: tl.constexpr,
    EXPERTS: tl.constexpr,
    OUT: tl.constexpr,
    WORK: tl.constexpr,
    SPAN: tl.constexpr,
    STEP: tl.constexpr,
):
    """One Pass. WINDOWS: how many of each expert, 0, 1 or 3. DROPS: whether each expert's elements
    are dropped. STEP: elements of a whole step; divides SPAN."""
    K: tl.constexpr = len(EXPERTS)
    block = tl.program_id(0).to(tl.int64)
    tile = tile_of(segments, tiles, block, EXPERTS_AT + K)
    row = segments + tile * (EXPERTS_AT + K)
    windows += tile * K * WINDOWS * 4
    kept += tile * K * 4
    first = (block - tl.load(row + FIRST_AT)) * SPAN
    stop = tl.minimum(first + SPAN, tl.load(row + NUMEL_AT))
    whole = aligned(row, K)
    for k in range(K if WINDOWS > 0 else 0):
        index = tl.load(row + OFFSET_AT) + first
        whole &= one_side(windows + k * WINDOWS * 4, WINDOWS, index, SPAN)
    middle = tl.where(whole, first + (stop - first) // STEP * STEP, first)
    bad = 0
    large = 0
    for WHOLE in tl.static_range(1, -1, -1):
        begin = first if WHOLE else middle
        end = middle if WHOLE else stop
        if begin < end:
            step: tl.constexpr = STEP if WHOLE else STEP // (4 if WINDOWS == 3 else 2)
            more_bad, more_large = fuse_run(
                row,
                scalars,
                coins,
                windows,
                kept,
                seed.to(tl.uint64),
                from_bits(scale, WORK),
                from_bits(divisor, WORK),
                first,
                begin,
                end,
                RULE,
                ELECT,
                COMBINE,
                SEPARATE,
                DIVIDED,
                DROPS,
                WINDOWS,
                BASE,
                EXPERTS,
                OUT,
                WORK,
                SPAN,
                step,
                WHOLE,
            )
            bad |= more_bad
            large |= more_large
    if OUT is not None:
        if large > 0:
            tl.store(found + tile * (K + 2) + K + 1, 1)
        if bad > 0:
            find(
                found + tile * (K + 2),
                row,
                first,
                stop,
                BASE if RULE == "task_vector" else None,
                EXPERTS,
                WORK,
                STEP // 2,
            )
