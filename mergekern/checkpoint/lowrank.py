"""The arithmetic of adapters: a matrix plus a product of two thin ones, for any stretch of it.

    P[i, j] = L[i, 0] * R[0, j] + L[i, 1] * R[1, j] + ...      over ascending ranks
    out     = f * (W + scale * P)                              f of the row or column, or 1

in fp32, every product and sum rounded by itself, so that the bits depend on no library, thread or
vector width; W widens exactly. It is W' = W + scale B A of LoRA (arXiv 2106.09685, section 4.1),
and with f = m / ||W + scale B A|| the W' of DoRA (arXiv 2402.09353, equation 5).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mergekern import _C
from mergekern.arrays import address
from mergekern.cdtypes import C_DTYPES
from mergekern.dtypes import BFLOAT16, FLOAT16, FLOAT32, FLOAT64

DTYPES = (FLOAT32, FLOAT16, BFLOAT16)  # of weights that adapters change
LANES = 16  # partial sums of a row's squares: column j adds to lane j mod 16


@dataclass(frozen=True)
class LowRank:
    """The factors of one tensor of shape [slabs, rows, columns], 1 slab for a matrix.

    left:   fp32 [slabs, rows, rank], contiguous;  right: fp32 [slabs, rank, columns], contiguous
    scale:  rounded to fp32 once
    factor: fp32 [slabs * rows], or [columns] where by_column; None for 1
    """

    left: np.ndarray
    right: np.ndarray
    scale: float
    factor: np.ndarray | None = None
    by_column: bool = False

    @property
    def columns(self) -> int:
        return self.right.shape[2]

    @property
    def nbytes(self) -> int:
        return self.left.nbytes + self.right.nbytes

    def apply(
        self, weight: np.ndarray, start: int, out: np.ndarray, instruction_set: str = ""
    ) -> None:
        """out = f * (W + scale * P) for the elements from `start` on that `weight` holds.

        weight: flat, of DTYPES;  out: flat fp32 of that length. The weights may lie at the end of
        the memory of `out`: they are read before they are written over.
        """
        slabs, rows, rank = self.left.shape
        assert self.right.shape[:2] == (slabs, rank) and weight.flags.c_contiguous
        assert out.dtype == FLOAT32 and len(out) == len(weight)
        native = _C.LowRank(
            left=address(self.left),
            right=address(self.right),
            factor=0 if self.factor is None else address(self.factor),
            by_column=self.by_column,
            rows=rows,
            columns=self.columns,
            rank=rank,
            scale=self.scale,
        )
        stop = start + len(weight)
        dtype = C_DTYPES[weight.dtype]
        _C.add_lowrank(instruction_set, native, address(weight), dtype, start, stop, address(out))

    def plain(self, weight: np.ndarray) -> np.ndarray:
        """What apply() computes, for the whole tensor, in plain numpy: this defines the bits."""
        total = self.left[:, :, :1] * self.right[:, :1]
        for rank in range(1, self.left.shape[2]):
            total = total + self.left[:, :, rank, None] * self.right[:, rank, None]
        out = weight.astype(FLOAT32).reshape(total.shape) + np.float32(self.scale) * total
        if self.factor is not None:
            rows = self.factor.reshape((1, -1) if self.by_column else (-1, 1))
            out = out.reshape(-1, self.columns) * rows
        return out.reshape(-1)


def add_squares(
    x: np.ndarray, columns: int, by_column: bool, sums: np.ndarray, instruction_set: str = ""
) -> None:
    """Add the squares of whole rows to `sums`: of each row, or by column to all of them.

    x: flat fp32, whole rows;  sums: fp64, [rows of x] or [columns]. A row's column j adds to
    partial sum j mod LANES, and these add up in order; a column's rows add up in order.
    """
    assert x.dtype == FLOAT32 and x.flags.c_contiguous and sums.dtype == FLOAT64
    _C.sum_squares(
        instruction_set, address(x), len(x) // columns, columns, by_column, address(sums)
    )


def plain_squares(x: np.ndarray, columns: int, by_column: bool) -> np.ndarray:
    """What add_squares() adds to zeros, in plain numpy: this defines the bits."""
    wide = x.astype(FLOAT64).reshape(-1, columns)
    squares = wide * wide
    if by_column:
        sums = np.zeros(columns)
        for row in squares:
            sums = sums + row
        return sums
    lanes = np.zeros((len(squares), LANES))
    for j in range(columns):
        lanes[:, j % LANES] += squares[:, j]
    sums = np.zeros(len(squares))
    for lane in range(LANES):
        sums = sums + lanes[:, lane]
    return sums
