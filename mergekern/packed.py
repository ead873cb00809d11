"""Masks of one bit for each element, as files hold them: U8 [ceil(numel / 8)] over the flat tensor,
element i being bit i % 8 of byte i // 8 (least significant first); bits behind the last are 0.

    packed_shape(numel)                     the shape that is stored
    read_packed(checkpoint, name, 9, 20)    the bytes that hold elements [9, 20), and the bit of 9
    add_marked(...)                         base + scale * delta where marked, by the loops
    marked_ones(...)                        1 where marked, 0 elsewhere, by the loops
    plain_add_marked(...), plain_marked_ones(...)   the same in plain numpy: these define the bits

In memory they are `Tile.masks` (fused.py), which the loops read and write by unpack_block and
pack_block (csrc/cpu/thin.h), plain torch by backends/masks.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mergekern import _C
from mergekern.arrays import address, to_host
from mergekern.cdtypes import C_DTYPES
from mergekern.dtypes import BFLOAT16, FLOAT32, FLOAT64, UINT8

if TYPE_CHECKING:
    from mergekern.checkpoint.base import Checkpoint


def packed_shape(numel: int) -> tuple[int]:
    """Of the mask of a tensor."""
    return (-(-numel // 8),)


def read_packed(checkpoint: Checkpoint, name: str, start: int, stop: int) -> tuple[np.ndarray, int]:
    """The bytes that hold elements [start, stop) of a mask, and which of their bits is `start`."""
    found = checkpoint.read(name, start // 8, -(-stop // 8), None)
    return to_host(found).view(UINT8), start % 8


def add_marked(
    base: np.ndarray,
    delta: np.ndarray,
    packed: np.ndarray,
    first: int,
    scale: float,
    out: np.ndarray,
    instruction_set: str = "",
) -> None:
    """out = base + scale * delta where an element is marked, base elsewhere.

    base, delta: flat, of C_DTYPES;  packed: uint8, whose bit `first` is that of the first element
    out: flat, fp32 or fp64, which is what is computed in; each product and sum is rounded once
    """
    n = len(out)
    assert len(base) == len(delta) == n and 8 * len(packed) >= first + n
    assert packed.dtype == UINT8 and out.dtype in (FLOAT32, FLOAT64)
    assert all(x.flags.c_contiguous for x in (base, delta, packed, out))
    _C.add_marked(
        instruction_set,
        out.dtype == FLOAT64,
        address(base),
        C_DTYPES[base.dtype],
        address(delta),
        C_DTYPES[delta.dtype],
        address(packed),
        first,
        scale,
        n,
        address(out),
    )


def marked_ones(packed: np.ndarray, first: int, out: np.ndarray, instruction_set: str = "") -> None:
    """out = 1 where an element is marked, 0 elsewhere.

    packed: uint8, whose bit `first` is that of the first element;  out: flat, bf16
    """
    assert packed.dtype == UINT8 and 8 * len(packed) >= first + len(out)
    assert out.dtype == BFLOAT16 and packed.flags.c_contiguous and out.flags.c_contiguous
    _C.marked_ones(instruction_set, address(packed), first, len(out), address(out))


def plain_add_marked(
    base: np.ndarray,
    delta: np.ndarray,
    packed: np.ndarray,
    first: int,
    scale: float,
    out: np.ndarray,
) -> None:
    """What add_marked() does, in plain numpy."""
    n, work = len(out), out.dtype
    marks = np.unpackbits(packed, count=first + n, bitorder="little")[first:].astype(bool)
    kept = np.where(marks, delta.astype(work), work.type(0))
    out[:] = base.astype(work) + kept * work.type(scale)


def plain_marked_ones(packed: np.ndarray, first: int, out: np.ndarray) -> None:
    """What marked_ones() does, in plain numpy."""
    out[:] = np.unpackbits(packed, count=first + len(out), bitorder="little")[first:]
