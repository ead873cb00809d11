"""The fused op: a plain description of one elementwise pass, which is all that kernels take.

With base b, experts x_1 … x_K and the element's index i, `task_vector` computes, in the work dtype
and rounding every product and sum,

    d_k  = x_k - b                                        delta
    d_k  = 0 unless bit i of mask_k is set                mask, where the tile has one
    d_k  = 0 unless window_k holds |d_k| at i             trim  (trim_by = "magnitude")
           0 unless window_k holds var(d) at i            trim  (trim_by = "variance")
    d_k  = 0 unless coin(seed, name, k, i) < keep_k       drop
    v_k  = d_k * coef_k                                   value
    u_k  = d_k * vote_k                                   ballot
    s    = sum_k u_k            (elect = "mass")
           sum_k sign(u_k)      (elect = "count")
    m    = - if s < 0 else +
    a_k  = u_k has sign m       (all true when elect = "none", u_k is not 0 when elect = "any")
    num  = sum_k a_k v_k        (combine = "sum" or "mean")
           the a_k v_k of largest magnitude, the first on a tie  (combine = "max")
    den  = sum_k a_k share_k, 1 where that is 0, at least `least`   (combine = "mean")
           `divisor` otherwise
    out  = b + scale * (num / den)

with var(d) = (sum_k (d_k - (sum_k d_k) / K)^2) / K of the deltas as they are, masked or not.
`linear_combination` computes out = (sum_k coef_k x_k) / divisor, without a base, and `function`
what a function over tensors makes of them; see function.py. `unify` writes more than one tensor:
Backend.unify() runs it, see Unified.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

import numpy as np

from mergekern.arrays import Array, as_tensor
from mergekern.dtypes import FLOAT32, DType
from mergekern.function import Found, Function

Rule = Literal["task_vector", "linear_combination", "function", "unify"]
Elect = Literal["none", "any", "mass", "count"]
Combine = Literal["sum", "mean", "max"]
TrimBy = Literal["magnitude", "variance"]

EVERY_INDEX = 2**63 - 1
KEEP_ALL = 2**32  # a coin is a number below 2**32


def name_hash(tensor: str) -> int:
    """What makes the coins of a tensor its own: 32 bits of its name."""
    return zlib.crc32(tensor.encode())


@dataclass(frozen=True)
class Window:
    """Which magnitudes a trimmed delta keeps: bits(|d|) >= lo, but < hi.

    Magnitudes are compared as the integer bits of their floating-point number (same order). A cut
    moves up by one ulp behind its last index, which is how exactly k of many equal magnitudes are
    kept: at element i the cuts are lo + (i > lo_last) and hi + (i > hi_last).
    """

    lo: int = 0
    lo_last: int = EVERY_INDEX
    hi: int = 2**63 - 1
    hi_last: int = EVERY_INDEX

    @property
    def open(self) -> bool:
        """True when nothing is trimmed."""
        return self == Window()


@dataclass(frozen=True)
class ExpertScalars:
    """The scalars of one expert. `index` is its place in the recipe: the k of its coin."""

    index: int
    coef: float
    vote: float = 1.0
    share: float = 1.0
    window: Window = Window()
    keep_below: int = KEEP_ALL


@dataclass(frozen=True)
class Odds:
    """How likely one expert's deltas are kept: bounds of the coin, see Pruning. `index` is its
    place in the recipe: the k of its coin. Not less likely the larger they are."""

    index: int
    smallest: int = KEEP_ALL
    largest: int = KEEP_ALL


@dataclass(frozen=True)
class Pruning:
    """A random drop whose odds go by rank within rows: it gives the masks of a tile.

    A row has `length` elements, `stride` apart: element i of a tensor belongs to row
    (i // (length * stride), i % stride). By magnitude, and by place where those are equal, its
    elements have ranks r = 0 … length - 1, and bit i of mask_k is set where d_k is not 0 and

        coin(seed, name, k, i) < smallest_k + (largest_k - smallest_k) r // (length - 1)

    in whole numbers; the middle of both, rounded down, is the bound of a row of one element.
    """

    odds: tuple[Odds, ...]
    length: int
    stride: int = 1
    seed: int = 0
    name_hash: int = 0
    work: DType = FLOAT32

    @property
    def panel(self) -> int:
        """Elements of the rows that lie among one another: tiles are cut between them."""
        return self.length * self.stride


@dataclass(frozen=True)
class FusedOp:
    """One fused pass over one tensor. Scalars are rounded to `work` before use.

    function, found: of the rule "function", and what its survey found
    pruning: what gives the masks of tiles that come without
    """

    rule: Rule
    experts: tuple[ExpertScalars, ...]
    elect: Elect = "none"
    combine: Combine = "sum"
    scale: float = 1.0
    divisor: float = 1.0
    seed: int = 0
    name_hash: int = 0
    work: DType = FLOAT32
    function: Function | None = None
    found: Found = field(default_factory=dict)
    trim_by: TrimBy = "magnitude"
    least: float = 0.0  # of denominators; 0 for any
    pruning: Pruning | None = None


Masks: TypeAlias = "tuple[Array | None, ...]"


@dataclass(frozen=True)
class Tile:
    """A run of consecutive elements of one tensor: base and experts, flat, of any float dtypes.

    masks:  uint8 [ceil(numel / 8)] per expert, None for one that is not masked; element i of the
            tile is bit i % 8 of byte i // 8. Empty where none is
    spread: what is looked at (magnitudes, counts, guesses) is the variance of all deltas, as if it
            were the delta of one expert
    """

    tensor: str
    offset: int  # index of the first element within its tensor
    base: Array | None
    experts: tuple[Array, ...]
    masks: Masks = ()
    spread: bool = False

    @property
    def numel(self) -> int:
        return len(self.experts[0])

    def as_tensors(self) -> Tile:
        """The same memory as torch's."""
        base = None if self.base is None else as_tensor(self.base)
        masks = tuple(None if mask is None else as_tensor(mask) for mask in self.masks)
        experts = tuple(as_tensor(each) for each in self.experts)
        return replace(self, base=base, experts=experts, masks=masks)


@dataclass(frozen=True)
class Batch:
    """Many tiles that an op and their dtypes have in common, in columns.

    The op's name_hash, and its windows where `windows` is given, hold for no tile: the columns do.

    base, experts, out: dtypes; without a base the first column of inputs is not looked at
    inputs:    uint64 [n, 1 + experts]: addresses of the first elements, the base first
    outs:      uint64 [n]: the same of the outputs
    offset:    int64 [n]: index of the first element within its tensor
    numel:     int64 [n]
    name_hash: uint32 [n]
    windows:   int64 [n, experts, 4]: lo, lo_last, hi, hi_last
    ranks:     int64 [n, experts, 2]: where given, the windows are found by them first, and written
               into their column; every tile is a whole tensor, no larger than Backend.ranked
    by_index:  equal magnitudes are told apart by their place; otherwise a cut has all of them
    together:  the tiles are ranked as one tensor, in order, and ranks has one row for all of them

    Of magnitudes in descending order, counted from 1, ranks name the last one that is kept, and the
    last one that is too large; 0 where there is none. Where equal magnitudes stay together, the
    second names the first one that is kept.
    """

    base: DType | None
    experts: tuple[DType, ...]
    out: DType
    inputs: np.ndarray
    outs: np.ndarray
    offset: np.ndarray
    numel: np.ndarray
    name_hash: np.ndarray
    windows: np.ndarray | None = None
    ranks: np.ndarray | None = None
    by_index: bool = True
    together: bool = False

    def __len__(self) -> int:
        return len(self.outs)


@dataclass(frozen=True)
class Unified:
    """Where a pass writes the task vector that stands for many, and what goes with it. None is not
    asked for.

        s    = sum_k d_k
        u    = the d_k of largest magnitude among those with the sign of s, 0 where s is
        out  = u, rounded to `stored`; below it is out that counts
        bit i of mask_k is set where d_k and out have one sign, and neither is 0
        sums = sum |d_k|, sum |out| where mask_k is set; for each CHUNK elements

    out:   [n] in `stored`
    masks: for each expert uint8 [ceil(n / 8)], packed as a tile's are
    sums:  fp64, flat: [chunks, experts, 2]; blocks of BLOCK elements are added in order
    """

    stored: DType
    out: Array | None
    masks: tuple[Array | None, ...]
    sums: Array | None


@dataclass(frozen=True)
class Findings:
    """What a fused pass saw that must not pass in silence."""

    non_finite: tuple[int, ...] = ()  # inputs holding NaN or Inf: -1 the base, else place in tile
    overflow: bool = False  # a finite result that the output dtype cannot hold

    def __or__(self, other: Findings) -> Findings:
        """What two passes over parts of a tensor found."""
        holders = sorted({*self.non_finite, *other.non_finite})
        return Findings(tuple(holders), self.overflow or other.overflow)
