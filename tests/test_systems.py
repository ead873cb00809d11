"""Products, factors and solutions in blocks against the plain ones, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from mergekern import _C
from mergekern.arrays import same_bytes
from mergekern.cdtypes import C_DTYPES
from mergekern.systems import (
    SingularError,
    Workers,
    plain_factor,
    plain_product,
    plain_shrunk,
    plain_solution,
    shrunk,
)

# Around blocks of 4 and 8 rows, registers, panels of 128, 192 packed rows, and sums of 256.
SIZES = (1, 2, 7, 8, 23, 24, 25, 127, 128, 129, 191, 193, 257)


def workers() -> Iterator[Workers]:
    for isa in _C.instruction_sets():
        yield from (Workers(threads, isa) for threads in (1, 2))


def randn(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def definite(n: int) -> np.ndarray:
    """A Gram matrix whose elements are of very different sizes."""
    x = randn(n, 2 * n + 3, n) * 10.0 ** randn(1, n)
    return x.T @ x / len(x)


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 7, 3), (193, 25, 257), (192, 257, 131)], ids=str)
@pytest.mark.parametrize("dtype", C_DTYPES, ids=str)
def test_products(dtype: np.dtype, shape: tuple[int, int, int]) -> None:
    m, n, k = shape
    a, b, c = randn(0, m, k).astype(dtype), randn(1, k, n), randn(2, m, n)
    wanted = plain_product(plain_shrunk(a, 0.9, -0.3, 2), b, c)
    for each in workers():
        for given in (a, np.asfortranarray(a)):
            got = c.copy()
            each.add_product(given, b, got, 0.9, -0.3, 2)
            assert same_bytes(got, wanted), each


@pytest.mark.parametrize("diagonal", [0, 3])
def test_shrunk_rows(diagonal: int) -> None:
    a = randn(0, 5, 9).astype(np.float32)
    assert same_bytes(shrunk(a, 0.9, 0.3, diagonal), plain_shrunk(a, 0.9, 0.3, diagonal))


@pytest.mark.parametrize("m", SIZES)
def test_products_of_any_size(m: int) -> None:
    for n, k in ((1, 9), (m, 5), (300, 2)):
        a, b, c = randn(0, m, k), randn(1, k, n), np.zeros((m, n))
        wanted = plain_product(a, b, c)
        assert np.allclose(wanted, a @ b)
        for each in workers():
            got = c.copy()
            each.add_product(a, b, got)
            assert same_bytes(got, wanted), each


@pytest.mark.parametrize("n", SIZES)
def test_systems(n: int) -> None:
    a, b = definite(n), randn(3, n, 53)
    factor = plain_factor(a)
    solution = plain_solution(factor, b)
    assert np.allclose(factor.T @ factor, a)
    assert np.allclose(a @ solution, b)
    for each in workers():
        got = a.copy()
        got[np.tril_indices(n, -1)] = np.nan  # is not read
        each.factorise(got)
        assert same_bytes(np.triu(got), factor), each
        for columns in (1, 53):
            x = b[:, :columns].copy()
            each.solve(got, x)
            assert same_bytes(x, solution[:, :columns].copy()), each


@pytest.mark.parametrize("row", [0, 1, 127, 128, 140])
def test_matrices_that_are_not_definite(row: int) -> None:
    """Found where a row is the same as one before it, or 0, but for rounding."""
    for replace in (0.0, 1.0):
        a = definite(150)
        a[row] = replace * a[row - 1] if row else 0.0
        a[:, row] = a[row]
        a[row, row] = replace * a[row - 1, row - 1] if row else 0.0
        with pytest.raises(SingularError) as wanted:
            plain_factor(a)
        assert wanted.value.row == row
        for each in workers():
            with pytest.raises(SingularError) as got:
                each.factorise(a.copy())
            assert (got.value.row, got.value.left) == (row, wanted.value.left)
