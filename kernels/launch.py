"""The host's side of a launch: what a Pass fixes when a kernel is compiled, and its grid."""

import struct

import triton
import triton.language as tl
from mergekern.kernels.count import count as count_kernel
from mergekern.kernels.fuse import fuse as fuse_kernel
from mergekern.kernels.sums import gram as gram_kernel
from mergekern.kernels.sums import masked_sums as masked_sums_kernel

WARPS = 4
OPTIONS = {"num_warps": WARPS, "enable_fp_fusion": False}  # a fused multiply-add rounds once less


def dtype(torch_dtype):
    return None if torch_dtype is None else getattr(tl, str(torch_dtype).removeprefix("torch."))


def kinds_of(todo):
    """How the fused pass of a Pass is compiled."""
    op = todo.op
    deltas = op.rule == "task_vector"
    return {
        "RULE": op.rule,
        "ELECT": op.elect,
        "COMBINE": op.combine,
        "SEPARATE": any(e.vote != e.coef for e in op.experts),
        "DIVIDED": op.divisor != 1,
        "DROPS": tuple(deltas and e.keep_below < 1 << 32 for e in op.experts),
        "WINDOWS": todo.windows.shape[2] if deltas and todo.windows is not None else 0,
        **dtypes_of(todo),
        "OUT": dtype(todo.out),
    }


def dtypes_of(todo):
    return {
        "BASE": dtype(todo.base),
        "EXPERTS": tuple(map(dtype, todo.experts)),
        "WORK": dtype(todo.op.work),
    }


def bits(x):
    return struct.unpack("<Q", struct.pack("<d", x))[0]


def fuse(todo, span, step):
    fuse_kernel[(todo.blocks,)](
        todo.segments,
        todo.scalars,
        todo.coins,
        todo.segments if todo.windows is None else todo.windows,
        todo.found,
        todo.kept,
        len(todo.segments),
        todo.op.seed,
        bits(todo.op.scale),
        bits(todo.op.divisor),
        **kinds_of(todo),
        SPAN=span,
        STEP=step,
        **OPTIONS,
    )


def count(todo, brackets, above, inside, tallies, span, step):
    above.zero_()
    inside.zero_()
    queries = len(brackets)
    count_kernel[(todo.blocks,)](
        todo.segments,
        brackets,
        above,
        inside,
        tallies,
        queries,
        **dtypes_of(todo),
        QUERIES=triton.next_power_of_2(queries),
        SPAN=span,
        STEP=step,
        **OPTIONS,
    )


def masked_sums(todo, out, blocks, rows):
    kinds = kinds_of(todo)
    masked_sums_kernel[(triton.cdiv(len(out), blocks), len(todo.experts))](
        todo.segments,
        todo.coins,
        todo.segments if todo.windows is None else todo.windows,
        out,
        todo.op.seed,
        DROPS=any(kinds["DROPS"]),
        WINDOWS=kinds["WINDOWS"],
        **dtypes_of(todo),
        BLOCKS=blocks,
        ROWS=rows,
        **OPTIONS,
    )


def gram(todo, out, blocks, rows):
    side = min(4, triton.next_power_of_2(len(todo.experts)))
    tiles = triton.cdiv(len(todo.experts), side)
    gram_kernel[(triton.cdiv(len(out), blocks), tiles, tiles)](
        todo.segments,
        out,
        **dtypes_of(todo),
        BLOCKS=blocks,
        ROWS=rows,
        SIDE=side,
        **OPTIONS,
    )
