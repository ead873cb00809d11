"""Elements here and there of many tiles, to lie behind one another; and outputs back to where they
belong."""

import triton
import triton.language as tl

from mergekern.kernels.tables import BASE_AT, EXPERTS_AT, OUT_AT, pointer


@triton.jit
def rows_of(segments, starts, tiles, at, live, WIDTH: tl.constexpr):
    """The rows of the tiles that numbers of the index belong to; empty tiles have none."""
    low = tl.zeros(at.shape, tl.int64)
    high = low + tiles
    left = tiles
    while left > 1:  # no more than these lie between
        middle = (low + high) // 2
        before = tl.load(starts + middle, mask=live & (high - low > 1), other=0) <= at
        narrow = high - low > 1
        low, high = tl.where(narrow & before, middle, low), tl.where(narrow & ~before, middle, high)
        left = (left + 1) // 2
    return segments + low * WIDTH


@triton.jit
def copy(source, i, target, j, live, DTYPE: tl.constexpr):
    x = tl.load(pointer(source, DTYPE, False) + i, mask=live, other=0)
    tl.store(pointer(target, DTYPE, False) + j, x, mask=live)


@triton.jit(do_not_specialize=["tiles", "count"])
def gather(
    segments,
    index,
    starts,
    lines,
    tiles,
    count,
    BASE: tl.constexpr,
    EXPERTS: tl.constexpr,
    STEP: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * STEP + tl.arange(0, STEP)
    place = tl.load(index + at, mask=at < count, other=-1)
    live = place >= 0
    row = rows_of(segments, starts, tiles, at, live, EXPERTS_AT + len(EXPERTS))
    base = tl.load(row + BASE_AT, mask=live, other=0)
    copy(base, place, tl.load(lines), at, live, BASE)
    for k in tl.static_range(len(EXPERTS)):
        expert = tl.load(row + EXPERTS_AT + k, mask=live, other=0)
        copy(expert, place, tl.load(lines + 1 + k), at, live, EXPERTS[k])


@triton.jit(do_not_specialize=["tiles", "count"])
def scatter(
    segments,
    index,
    starts,
    lines,
    tiles,
    count,
    WIDTH: tl.constexpr,
    OUT: tl.constexpr,
    STEP: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * STEP + tl.arange(0, STEP)
    place = tl.load(index + at, mask=at < count, other=-1)
    live = place >= 0
    row = rows_of(segments, starts, tiles, at, live, WIDTH)
    out = tl.load(row + OUT_AT, mask=live, other=0)
    copy(tl.load(lines), at, out, place, live, OUT)
