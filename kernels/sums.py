"""Whole-tile sums in fp64, in the order of reference.block_sums: per 4096 elements, lane i % 16
takes its rows in order, then the lanes follow in order.

Every thread owns one lane of a block: what is loaded is [blocks, lanes, rows], with one row at a
time. (The interpreter, which pays by the operation, takes more.)
"""

import triton
import triton.language as tl

from mergekern.kernels.element import magnitude, widen
from mergekern.kernels.philox import drop_each
from mergekern.kernels.tables import (
    BASE_AT,
    EXPERTS_AT,
    HASH_AT,
    NUMEL_AT,
    OFFSET_AT,
    alike,
    pointer,
)
from mergekern.kernels.windows import cuts_of, reached

BLOCK = tl.constexpr(4096)
LANES = tl.constexpr(16)
UNROLL = tl.constexpr(8)


@triton.jit
def places(BLOCKS: tl.constexpr, ROWS: tl.constexpr):
    """Where the first rows of some blocks lie: [blocks, lanes, rows]."""
    block = tl.arange(0, BLOCKS)[:, None, None] * BLOCK
    lane = tl.arange(0, LANES)[None, :, None]
    return block + lane + tl.arange(0, ROWS)[None, None, :] * LANES


@triton.jit
def read_at(address, start, place, live, DTYPE: tl.constexpr, WORK: tl.constexpr):
    raw = tl.load(pointer(address, DTYPE, False) + start + place, mask=live, other=0)
    return widen(raw, DTYPE, WORK)


@triton.jit
def expert_at(row, expert, start, place, live, EXPERTS: tl.constexpr, WORK: tl.constexpr):
    """read_at() of an expert whose number is not known before the launch."""
    address = tl.load(row + EXPERTS_AT + expert)
    if alike(EXPERTS):
        x = read_at(address, start, place, live, EXPERTS[0], WORK)
    else:
        x = tl.zeros(live.shape, WORK)
        for k in tl.static_range(len(EXPERTS)):
            if expert == k:
                x = read_at(address, start, place, live, EXPERTS[k], WORK)
    return x


@triton.jit
def add_rows(lanes, x):
    """lanes [blocks, lanes] plus x [blocks, lanes, rows], row by row."""
    parts = (x,)
    ROWS: tl.constexpr = x.shape[2]
    for level in tl.static_range(20):
        if ROWS >> level > 1:
            halves = ()
            for p in tl.static_range(len(parts)):
                pair = parts[p].reshape(x.shape[0], LANES, 2, ROWS >> level + 1)
                early, late = tl.split(pair.permute(0, 1, 3, 2))
                halves = halves + (early, late)
            parts = halves
    for p in tl.static_range(ROWS):
        lanes = lanes + parts[p].reshape(x.shape[0], LANES)
    return lanes


@triton.jit
def add_lanes(lanes):
    lane = tl.arange(0, LANES)[None, :]
    total = tl.zeros([lanes.shape[0]], tl.float64)
    for i in tl.static_range(LANES):
        total = total + tl.sum(tl.where(lane == i, lanes, 0.0), 1)  # all others are 0: exact
    return total


@triton.jit(do_not_specialize=["seed"])
def masked_sums(
    segments,
    coins,
    windows,
    out,
    seed: tl.uint64,
    DROPS: tl.constexpr,
    WINDOWS: tl.constexpr,
    BASE: tl.constexpr,
    EXPERTS: tl.constexpr,
    WORK: tl.constexpr,
    BLOCKS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """One tile, one expert: out[block, expert] = sums of |d| before and after trim and drop."""
    SPAN: tl.constexpr = BLOCKS * BLOCK
    expert = tl.program_id(1)
    first = tl.program_id(0).to(tl.int64) * SPAN
    numel = tl.load(segments + NUMEL_AT)
    index = tl.load(segments + OFFSET_AT) + first
    if WINDOWS > 0:
        cuts = cuts_of(windows + expert * 4, 1, index, SPAN, WORK, False)
    plain = tl.zeros([BLOCKS, LANES], tl.float64)
    kept = tl.zeros([BLOCKS, LANES], tl.float64)
    for row in tl.range(0, BLOCK // LANES, ROWS, loop_unroll_factor=UNROLL):
        place = places(BLOCKS, ROWS) + row * LANES
        live = place < numel - first
        b = read_at(tl.load(segments + BASE_AT), first, place, live, BASE, WORK)
        d = expert_at(segments, expert, first, place, live, EXPERTS, WORK) - b
        plain = add_rows(plain, tl.abs(d).to(tl.float64))
        if WINDOWS > 0:
            low = reached(magnitude(d), cuts[0], place, False)
            high = reached(magnitude(d), cuts[1], place, False)
            d = tl.where(low & ~high, d, 0.0)
        if DROPS:
            number = tl.load(coins + 2 * expert).to(tl.uint32)
            bound = tl.load(coins + 2 * expert + 1)
            name_hash = tl.load(segments + HASH_AT).to(tl.uint32)
            d = drop_each(d, index + place, number, bound, name_hash, seed.to(tl.uint64))
        kept = add_rows(kept, tl.abs(d).to(tl.float64))
    block = first // BLOCK + tl.arange(0, BLOCKS)
    at = out + (block * len(EXPERTS) + expert) * 2
    tl.store(at, add_lanes(plain), mask=block * BLOCK < numel)
    tl.store(at + 1, add_lanes(kept), mask=block * BLOCK < numel)


@triton.jit
def gram(
    segments,
    out,
    BASE: tl.constexpr,
    EXPERTS: tl.constexpr,
    WORK: tl.constexpr,
    BLOCKS: tl.constexpr,
    ROWS: tl.constexpr,
    SIDE: tl.constexpr,
):
    """One tile, SIDE x SIDE pairs of experts: out[block, i, j] = sum of x_i x_j."""
    K: tl.constexpr = len(EXPERTS)
    left = tl.program_id(1) * SIDE
    right = tl.program_id(2) * SIDE
    first = tl.program_id(0).to(tl.int64) * BLOCKS * BLOCK
    numel = tl.load(segments + NUMEL_AT)
    if left <= right:
        sums = ()
        for _ in tl.static_range(SIDE * SIDE):
            sums = sums + (tl.zeros([BLOCKS, LANES], tl.float64),)
        for row in tl.range(0, BLOCK // LANES, ROWS, loop_unroll_factor=UNROLL):
            place = places(BLOCKS, ROWS) + row * LANES
            live = place < numel - first
            if BASE is not None:
                b = read_at(tl.load(segments + BASE_AT), first, place, live, BASE, WORK)
            experts = ()
            for i in tl.static_range(2 * SIDE):
                e = tl.minimum(left + i if i < SIDE else right + i - SIDE, K - 1)
                x = expert_at(segments, e, first, place, live, EXPERTS, WORK)
                if BASE is not None:
                    x = x - b
                experts = experts + (x.to(tl.float64),)
            more = ()
            for i in tl.static_range(SIDE):
                for j in tl.static_range(SIDE):
                    product = experts[i] * experts[SIDE + j]
                    more = more + (add_rows(sums[i * SIDE + j], product),)
            sums = more
        block = first // BLOCK + tl.arange(0, BLOCKS)
        for i in tl.static_range(SIDE):
            for j in tl.static_range(SIDE):
                total = add_lanes(sums[i * SIDE + j])
                one = left + i
                other = right + j
                if (one < K) & (other < K):
                    inside = block * BLOCK < numel
                    tl.store(out + (block * K + one) * K + other, total, mask=inside)
                    tl.store(out + (block * K + other) * K + one, total, mask=inside)
