"""The windows of trimmed experts, for the elements that one block handles."""

import triton
import triton.language as tl


@triton.jit
def cut_of(cuts, index, SPAN: tl.constexpr, WORK: tl.constexpr):
    """A cut, and the last of SPAN elements from `index` on that goes by it: others' is one more."""
    cut = tl.load(cuts).to(tl.uint64)
    if tl.float32 == WORK:  # no magnitude reaches 2**31
        cut = tl.minimum(cut, 0x80000000).to(tl.uint32)
    last = tl.load(cuts + 1) - index
    return cut, tl.minimum(tl.maximum(last, -1), SPAN).to(tl.int32)


@triton.jit
def one_side(windows, COUNT: tl.constexpr, index, SPAN: tl.constexpr):
    """Whether no cut of COUNT windows moves between `index` and SPAN elements on."""
    same = tl.full([], True, tl.int1)
    for c in tl.static_range(2 * COUNT):
        last = tl.load(windows + 2 * c + 1) - index
        same &= (last < 0) | (last >= SPAN - 1)
    return same


@triton.jit
def cuts_of(
    windows,
    COUNT: tl.constexpr,
    index,
    SPAN: tl.constexpr,
    WORK: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """The cuts of COUNT windows, lower and upper, each with its last element.

    WHOLE: they do not move, and have none.
    """
    found = ()
    for c in tl.static_range(2 * COUNT):
        cut, last = cut_of(windows + 2 * c, index, SPAN, WORK)
        if WHOLE:
            found = found + ((cut + (last < 0).to(cut.dtype),),)
        else:
            found = found + ((cut, last),)
    return found


@triton.jit
def reached(m, cut, place, WHOLE: tl.constexpr):
    """Where a magnitude reaches a cut; place: of the elements, from `index` on."""
    if WHOLE:
        return m >= cut[0]
    else:
        return m >= cut[0] + (place > cut[1]).to(cut[0].dtype)
