"""The compiled low-rank products against plain numpy, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from mergekern import _C
from mergekern.arrays import same_bytes
from mergekern.checkpoint.lowrank import DTYPES, LowRank, add_squares, plain_squares

# slabs, rows, rank, columns: fewer and more columns than a register, a block and four rows have
SHAPES = (
    (1, 1, 1, 1),
    (1, 5, 3, 7),
    (3, 4, 2, 131),
    (1, 17, 16, 64),
    (2, 9, 5, 200),
    (1, 40, 4, 1),
)
FACTORS = (None, "row", "column")


def randn(g: np.random.Generator, *shape: int) -> np.ndarray:
    return g.standard_normal(shape, np.float32)


def low_rank(
    g: np.random.Generator, shape: tuple[int, int, int, int], factor: str | None
) -> LowRank:
    slabs, rows, rank, columns = shape
    left, right = randn(g, slabs, rows, rank), randn(g, slabs, rank, columns)
    by_column = factor == "column"
    numbers = None if factor is None else randn(g, columns if by_column else slabs * rows)
    return LowRank(left, right, 0.37, numbers, by_column)


@pytest.mark.parametrize("factor", FACTORS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_stretch_equals_the_plain_formula(dtype, shape, factor) -> None:
    g = np.random.default_rng(sum(shape))
    x = low_rank(g, shape, factor)
    columns, numel = shape[3], shape[0] * shape[1] * shape[3]
    weight = randn(g, numel).astype(dtype)
    wanted = x.plain(weight)
    stretches = {(0, numel), (numel // 3, numel), (columns // 2, min(numel, columns + 1))}
    for isa in _C.instruction_sets():
        for start, stop in stretches:
            out = np.full(stop - start, np.nan, np.float32)
            x.apply(weight[start:stop], start, out, isa)
            assert same_bytes(out, wanted[start:stop])
            # in place: the weights at the end of the memory of the result
            tail = out.view(np.uint8)[(4 - dtype.itemsize) * (stop - start) :].view(dtype)
            tail[:] = weight[start:stop]
            x.apply(tail, start, out, isa)
            assert same_bytes(out, wanted[start:stop])


@pytest.mark.parametrize("by_column", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (4, 131), (3, 64)], ids=str)
def test_squares_equal_the_plain_sums(shape, by_column) -> None:
    rows, columns = shape
    x = randn(np.random.default_rng(0), rows * columns)
    wanted = plain_squares(x, columns, by_column)
    assert np.allclose(wanted, (x.reshape(shape).astype(float) ** 2).sum(0 if by_column else 1))
    for isa in _C.instruction_sets():
        sums = np.zeros(columns if by_column else rows)
        add_squares(x, columns, by_column, sums, isa)
        assert same_bytes(sums, wanted)
