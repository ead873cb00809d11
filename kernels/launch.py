"""The host's side of a launch: what a Pass fixes when a kernel is compiled, its arguments, its
grid. Kinds that several passes share make one compiled kernel."""

import struct

import triton
import triton.language as tl

from mergekern.kernels import count as counting
from mergekern.kernels import fuse as fusing
from mergekern.kernels import gather as gathering
from mergekern.kernels import sums as summing

OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}  # a fused multiply-add rounds once less


def interpreted():
    """Whether the kernels run on the CPU."""
    return triton.knobs.runtime.interpret


def start(kernel, grid, *arguments, **kinds):
    kernel[grid](*arguments, **kinds, **OPTIONS)


def fuse(todo, span, step):
    start(
        fusing.fuse,
        (todo.blocks,),
        todo.segments,
        todo.scalars,
        todo.coins,
        windows_of(todo),
        todo.found,
        todo.kept,
        len(todo.segments),
        todo.op.seed,
        bits(todo.op.scale),
        bits(todo.op.divisor),
        **kinds_of(todo),
        SPAN=span,
        STEP=step,
    )


def count(todo, brackets, above, inside, tallies, span, step):
    above.zero_()
    inside.zero_()
    start(
        counting.count,
        (todo.blocks,),
        todo.segments,
        brackets,
        above,
        inside,
        tallies,
        len(brackets),
        **dtypes_of(todo),
        QUERIES=triton.next_power_of_2(len(brackets)),
        SPAN=span,
        STEP=step,
    )


def gather(todo, index, starts, lines, step):
    start(
        gathering.gather,
        (triton.cdiv(len(index), step),),
        *(todo.segments, index, starts, lines, len(todo.segments), len(index)),
        BASE=dtype(todo.base),
        EXPERTS=tuple(map(dtype, todo.experts)),
        STEP=step,
    )


def scatter(todo, index, starts, lines, step):
    start(
        gathering.scatter,
        (triton.cdiv(len(index), step),),
        *(todo.segments, index, starts, lines, len(todo.segments), len(index)),
        WIDTH=todo.segments.shape[1],
        OUT=dtype(todo.out),
        STEP=step,
    )


def masked_sums(todo, out, blocks, rows):
    start(
        summing.masked_sums,
        (triton.cdiv(len(out), blocks), len(todo.experts)),
        todo.segments,
        todo.coins,
        windows_of(todo),
        out,
        todo.op.seed,
        DROPS=any(drops_of(todo)),
        WINDOWS=count_of_windows(todo),
        **dtypes_of(todo),
        BLOCKS=blocks,
        ROWS=rows,
    )


def gram(todo, out, blocks, rows):
    side = min(4, triton.next_power_of_2(len(todo.experts)))
    tiles = triton.cdiv(len(todo.experts), side)
    start(
        summing.gram,
        (triton.cdiv(len(out), blocks), tiles, tiles),
        todo.segments,
        out,
        **dtypes_of(todo),
        BLOCKS=blocks,
        ROWS=rows,
        SIDE=side,
    )


def kinds_of(todo):
    """How the fused pass is compiled. Only deltas are trimmed and dropped."""
    op = todo.op
    deltas = op.rule == "task_vector"
    return {
        "RULE": op.rule,
        "ELECT": op.elect,
        "COMBINE": op.combine,
        "SEPARATE": any(e.vote != e.coef for e in op.experts),
        "DIVIDED": op.divisor != 1,
        "DROPS": tuple(deltas and drops for drops in drops_of(todo)),
        "WINDOWS": count_of_windows(todo) if deltas else 0,
        **dtypes_of(todo),
        "OUT": dtype(todo.out),
    }


def dtypes_of(todo):
    return {
        "BASE": dtype(todo.base),
        "EXPERTS": tuple(map(dtype, todo.experts)),
        "WORK": dtype(todo.op.work),
    }


def drops_of(todo):
    return tuple(e.keep_below < 1 << 32 for e in todo.op.experts)


def count_of_windows(todo):
    return 0 if todo.windows is None else todo.windows.shape[2]


def windows_of(todo):
    """A table, needed or not."""
    return todo.segments if todo.windows is None else todo.windows


def dtype(given):
    return None if given is None else getattr(tl, given.name)


def bits(x):
    return struct.unpack("<Q", struct.pack("<d", x))[0]
