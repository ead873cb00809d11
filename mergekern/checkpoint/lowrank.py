"""The arithmetic of adapters: a matrix plus a product of two thin ones, for any stretch of it.

    P[i, j] = L[i, 0] * R[0, j] + L[i, 1] * R[1, j] + ...      over ascending ranks
    out     = f * (W + scale * P)                              f of the row or column, or 1

in fp32, every product and sum rounded by itself, so that the bits depend on no library, thread or
vector width; W widens exactly. It is W' = W + scale B A of LoRA (arXiv 2106.09685, section 4.1),
and with f = m / ||W + scale B A|| the W' of DoRA (arXiv 2402.09353, equation 5).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mergekern import _C

DTYPES = {
    torch.float32: _C.DType.f32,
    torch.float16: _C.DType.f16,
    torch.bfloat16: _C.DType.bf16,
}
LANES = 16  # partial sums of a row's squares: column j adds to lane j mod 16


@dataclass(frozen=True)
class LowRank:
    """The factors of one tensor of shape [slabs, rows, columns], 1 slab for a matrix.

    left:   fp32 [slabs, rows, rank], contiguous;  right: fp32 [slabs, rank, columns], contiguous
    scale:  rounded to fp32 once
    factor: fp32 [slabs * rows], or [columns] where by_column; None for 1
    """

    left: torch.Tensor
    right: torch.Tensor
    scale: float
    factor: torch.Tensor | None = None
    by_column: bool = False

    @property
    def columns(self) -> int:
        return self.right.shape[2]

    @property
    def nbytes(self) -> int:
        return self.left.nbytes + self.right.nbytes

    def apply(
        self, weight: torch.Tensor, start: int, out: torch.Tensor, instruction_set: str = ""
    ) -> None:
        """out = f * (W + scale * P) for the elements from `start` on that `weight` holds.

        weight: flat, of DTYPES;  out: flat fp32 of that length. The weights may lie at the end of
        the memory of `out`: they are read before they are written over.
        """
        slabs, rows, rank = self.left.shape
        assert self.right.shape[:2] == (slabs, rank) and weight.is_contiguous()
        assert out.dtype == torch.float32 and out.numel() == weight.numel()
        native = _C.LowRank(
            left=self.left.data_ptr(),
            right=self.right.data_ptr(),
            factor=0 if self.factor is None else self.factor.data_ptr(),
            by_column=self.by_column,
            rows=rows,
            columns=self.columns,
            rank=rank,
            scale=self.scale,
        )
        stop = start + weight.numel()
        dtype = DTYPES[weight.dtype]
        _C.add_lowrank(
            instruction_set, native, weight.data_ptr(), dtype, start, stop, out.data_ptr()
        )

    def plain(self, weight: torch.Tensor) -> torch.Tensor:
        """What apply() computes, for the whole tensor, in plain torch: this defines the bits."""
        total = self.left[:, :, :1] * self.right[:, :1]
        for rank in range(1, self.left.shape[2]):
            total = total + self.left[:, :, rank, None] * self.right[:, rank, None]
        out = weight.float().view(total.shape) + torch.tensor(self.scale) * total
        if self.factor is not None:
            rows = self.factor.view(1, 1, -1) if self.by_column else self.factor.view(-1, 1)
            out = out.view(-1, self.columns) * rows.view(-1, rows.shape[-1])
        return out.reshape(-1)


def add_squares(
    x: torch.Tensor, columns: int, by_column: bool, sums: torch.Tensor, instruction_set: str = ""
) -> None:
    """Add the squares of whole rows to `sums`: of each row, or by column to all of them.

    x: flat fp32, whole rows;  sums: fp64, [rows of x] or [columns]. A row's column j adds to
    partial sum j mod LANES, and these add up in order; a column's rows add up in order.
    """
    assert x.dtype == torch.float32 and x.is_contiguous() and sums.dtype == torch.float64
    _C.sum_squares(
        instruction_set, x.data_ptr(), x.numel() // columns, columns, by_column, sums.data_ptr()
    )


def plain_squares(x: torch.Tensor, columns: int, by_column: bool) -> torch.Tensor:
    """What add_squares() adds to zeros, in plain torch: this defines the bits."""
    squares = x.double().view(-1, columns) ** 2
    if by_column:
        sums = torch.zeros(columns, dtype=torch.float64)
        for row in squares:
            sums = sums + row
        return sums
    lanes = torch.zeros(len(squares), LANES, dtype=torch.float64)
    for j in range(columns):
        lanes[:, j % LANES] += squares[:, j]
    sums = torch.zeros(len(squares), dtype=torch.float64)
    for lane in range(LANES):
        sums = sums + lanes[:, lane]
    return sums
