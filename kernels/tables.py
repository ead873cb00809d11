"""What every kernel reads of the tables of a launch (mergekern/backends/device.py: Pass), and how
it reads elements.

A run of elements is whole where all addresses are 16-byte aligned and it is cut into full steps: it
is read without masks, 16 bytes at a time. Every other one is read element by element.
"""

import triton
import triton.language as tl

from mergekern.kernels.element import stored, widen

# columns of the table of segments
BASE_AT = tl.constexpr(0)
OUT_AT = tl.constexpr(1)
MARKS_AT = tl.constexpr(2)
OFFSET_AT = tl.constexpr(3)
NUMEL_AT = tl.constexpr(4)
HASH_AT = tl.constexpr(5)
FIRST_AT = tl.constexpr(6)
EXPERTS_AT = tl.constexpr(7)


@triton.jit
def tile_of(segments, tiles, block, WIDTH: tl.constexpr):
    """The last tile whose first block is not behind `block`."""
    low = tl.zeros([], tl.int64)
    high = tl.zeros([], tl.int64) + tiles
    while high - low > 1:
        middle = (low + high) // 2
        if tl.load(segments + middle * WIDTH + FIRST_AT) <= block:
            low = middle
        else:
            high = middle
    return low


@triton.jit
def aligned(row, COUNT: tl.constexpr):
    """Whether base, output and all experts lie at multiples of 16."""
    addresses = tl.load(row + BASE_AT) | tl.load(row + OUT_AT)
    for k in range(COUNT):
        addresses |= tl.load(row + EXPERTS_AT + k)
    return addresses % 16 == 0


@triton.jit
def pointer(address, DTYPE: tl.constexpr, WHOLE: tl.constexpr):
    typed = address.to(tl.pointer_type(stored(DTYPE)))
    return tl.multiple_of(typed, 16) if WHOLE else typed


@triton.jit
def read(address, start, live, DTYPE: tl.constexpr, WORK: tl.constexpr, WHOLE: tl.constexpr):
    """The elements from `start` on, widened; 0 where they are not live."""
    at = pointer(address, DTYPE, WHOLE) + start + tl.arange(0, live.shape[0])
    raw = tl.load(at) if WHOLE else tl.load(at, mask=live, other=0)
    return widen(raw, DTYPE, WORK)


@triton.constexpr_function
def alike(dtypes):
    return len(set(dtypes)) == 1


@triton.jit
def read_expert(
    row,
    expert,
    start,
    live,
    EXPERTS: tl.constexpr,
    WORK: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """read() of an expert whose number is not known before the launch."""
    address = tl.load(row + EXPERTS_AT + expert)
    if alike(EXPERTS):
        x = read(address, start, live, EXPERTS[0], WORK, WHOLE)
    else:
        x = tl.zeros(live.shape, WORK)
        for k in tl.static_range(len(EXPERTS)):
            if expert == k:
                x = read(address, start, live, EXPERTS[k], WORK, WHOLE)
    return x


@triton.jit
def write(address, start, live, x, DTYPE: tl.constexpr, WHOLE: tl.constexpr):
    at = pointer(address, DTYPE, WHOLE) + start + tl.arange(0, live.shape[0])
    if WHOLE:
        tl.store(at, x)
    else:
        tl.store(at, x, mask=live)
