"""Products of matrices and systems of equations in fp64, with the same bits on every machine.

Every element is a sum over ascending k, products and sums rounded one by one, where libraries
choose the order by processor and threads. The plain functions below define the bits;
csrc/cpu/systems.h computes them in blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mergekern import _C
from mergekern.arrays import address
from mergekern.cdtypes import C_DTYPES
from mergekern.dtypes import FLOAT64

LEAST = 2.0**-23  # of a diagonal element: what is left of less is rounding of fp32


class SingularError(ArithmeticError):
    """A matrix that is not positive definite. row: the first that shows it;  left: of its diagonal
    element, what the rows before it leave."""

    def __init__(self, row: int, left: float) -> None:
        super().__init__(f"row {row} leaves {left:g}")
        self.row, self.left = row, left


@dataclass(frozen=True)
class Workers:
    """Who computes. No bit depends on threads or instruction_set ("": the widest there is)."""

    threads: int = 1
    instruction_set: str = ""

    def add_product(
        self,
        a: np.ndarray,
        b: np.ndarray,
        c: np.ndarray,
        reduction: float = 1.0,
        weight: float = 1.0,
        diagonal: int = 0,
    ) -> None:
        """c += shrunk(a) b, see plain_shrunk()

        a: [m, k], of C_DTYPES, any strides;  b: fp64 [k, n];  c: fp64 [m, n]; both contiguous
        """
        m, k = a.shape
        assert a.dtype in C_DTYPES and b.shape == (k, c.shape[1]) and len(c) == m
        assert _is_plain(b) and _is_plain(c)
        steps = [step // a.itemsize for step in a.strides]
        factor = _C.Factor(
            data=address(a),
            dtype=C_DTYPES[a.dtype],
            row_step=steps[0],
            step=steps[1],
            reduction=reduction,
            weight=weight,
            diagonal=diagonal,
        )
        isa, threads = self.instruction_set, self.threads
        _C.product(isa, threads, factor, m, c.shape[1], k, address(b), address(c))

    def factorise(self, a: np.ndarray, least: float = LEAST) -> None:
        """The upper triangle of a becomes U with U^T U = a; what lies below it is lost.

        a: fp64 [n, n], symmetric; only its upper triangle is read
        Raises SingularError where less than that share of a diagonal element is left.
        """
        assert _is_plain(a) and a.shape == a.shape[::-1]
        row, left = _C.factorise(self.instruction_set, self.threads, address(a), len(a), least)
        if row < len(a):
            raise SingularError(row, left)

    def solve(self, u: np.ndarray, x: np.ndarray) -> None:
        """x becomes (U^T U)^-1 x.  u: fp64 [n, n], of factorise();  x: fp64 [n, columns]"""
        assert _is_plain(u) and _is_plain(x) and u.shape == (len(x), len(x))
        _C.solve(self.instruction_set, self.threads, address(u), len(u), address(x), x.shape[1])


def shrunk(
    a: np.ndarray, reduction: float = 1.0, weight: float = 1.0, diagonal: int = 0
) -> np.ndarray:
    """As plain_shrunk(), in the memory of one fp64 copy; every row has its element there."""
    wide = a.astype(FLOAT64)
    row = np.arange(len(a))
    kept = wide[row, row + diagonal]
    wide *= reduction
    wide[row, row + diagonal] = kept
    wide *= weight
    return wide


def plain_shrunk(
    a: np.ndarray, reduction: float = 1.0, weight: float = 1.0, diagonal: int = 0
) -> np.ndarray:
    """fp64: a * reduction off the diagonal, where column - row is `diagonal`; then times weight."""
    wide = a.astype(FLOAT64)
    row, column = np.arange(a.shape[0])[:, None], np.arange(a.shape[1])
    return np.where(column - row == diagonal, wide, wide * reduction) * weight


def plain_product(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """c + a b"""
    for k in range(len(b)):
        c = c + a[:, k, None] * b[k]
    return c


def plain_factor(a: np.ndarray, least: float = LEAST) -> np.ndarray:
    """U with U^T U = a"""
    u = np.triu(a)
    bound = least * np.diagonal(a)
    for k in range(len(u)):
        if not u[k, k] > bound[k]:
            raise SingularError(k, u[k, k])
        u[k, k] = np.sqrt(u[k, k])
        u[k, k + 1 :] = u[k, k + 1 :] / u[k, k]
        u[k + 1 :, k + 1 :] -= np.triu(u[k, k + 1 :, None] * u[k, k + 1 :])
    return u


def plain_solution(u: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(U^T U)^-1 b: down the rows of U^T, then up those of U."""
    x = b.copy()
    for k in range(len(u)):
        x[k] = x[k] / u[k, k]
        x[k + 1 :] -= u[k, k + 1 :, None] * x[k]
    for k in reversed(range(len(u))):
        x[k] = x[k] / u[k, k]
        x[:k] -= u[:k, k, None] * x[k]
    return x


def _is_plain(x: np.ndarray) -> bool:
    return x.dtype == FLOAT64 and x.ndim == 2 and x.flags.c_contiguous
