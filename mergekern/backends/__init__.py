"""Who runs statistics and fused ops: all give the same bits, and `reference` says which."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mergekern.arrays import Array
from mergekern.dtypes import DType
from mergekern.fused import Batch, Findings, FusedOp, Masks, Pruning, Tile, Unified, Window

BLOCK = 4096  # elements of one partial sum
CHUNK = 65536  # elements of one in-range count


@dataclass(frozen=True)
class Bracket:
    """A range of magnitude bits of one expert, cut into `bins` bins of 2**shift magnitudes.

    Bin j holds bits(|d|) in [low + (j << shift), low + ((j + 1) << shift)).
    """

    expert: int  # place in the tile
    low: int
    shift: int
    bins: int

    @property
    def end(self) -> int:
        return self.low + (self.bins << self.shift)


@dataclass(frozen=True)
class Counts:
    """Counts of one bracket over one tile."""

    above: int  # magnitudes at or beyond the bracket's end
    chunks: np.ndarray  # int64 [ceil(numel / CHUNK)]: magnitudes inside, per run of CHUNK


@dataclass(frozen=True)
class Margin:
    """How far one expert's window, which an op gives, is a guess.

    strict: the window if its cuts lie as high as they may
    wide:   the window if its cuts lie as low as they may
    """

    strict: Window
    wide: Window


@dataclass(frozen=True)
class Speculation:
    """What a pass with guessed windows saw.

    An element is open when, for some expert and one of its two cuts, its magnitude has reached the
    wide window's cut but not the one that the pass went by: its output is not to be relied on.
    """

    findings: Findings
    kept: np.ndarray  # int64 [K, 2, 2]: magnitudes that reach lower, upper cut of strict, given
    open: Array  # uint8 [ceil(numel / 8)]: element i is bit i % 8 of byte i // 8


@dataclass(frozen=True)
class Sums:
    """What a pass that thins out adds up, and what it has kept.

    masks: the masks of a tile that stand in for its own, for the coins of an op and for its windows
           on the variance; see kept_by(). Empty where they were not asked for, or where a backend
           is as quick to find out again
    """

    sums: np.ndarray
    masks: Masks = ()


class Backend(Protocol):
    """lanes: rows of a tally, each added to by one worker at a time.

    batched: elements of a tensor in memory up to which it is merged together with others
    ranked:  elements of a tensor up to which a batch may name ranks instead of windows
    together: whether these may be ranks among all tiles of a batch
    """

    name: str
    lanes: int
    batched: int
    ranked: int
    together: bool

    def share(self, count: int) -> Backend:
        """The same with one of `count` equal shares of its threads: so many may work at once, of a
        backend that has as many lanes."""

    def pin(self, memory: np.ndarray) -> Callable[[], None]:
        """Told of host memory that many inputs will come from. Returns what to call before it is
        given back."""

    def fuse(self, op: FusedOp, tile: Tile, out: Array) -> Findings:
        """Run the op over a tile into `out` (flat, any mergeable dtype).

        Masks are the tile's: what an op's pruning makes is asked for first, by prune().
        """

    def speculate(
        self, op: FusedOp, tile: Tile, margins: Sequence[Margin], out: Array | None
    ) -> Speculation:
        """fuse() with windows that are guesses: counts and marks what may prove them wrong.

        A task_vector op, one margin per expert. Without `out`, counts and marks alone.
        """

    def compact(self, tile: Tile, open_: Array, most: int) -> tuple[Array, Tile] | None:
        """The open elements of a tile: their places in it (int64, ascending), and their values as a
        tile of its own, from offset 0 on. None, and no memory taken, where they are more than
        `most`."""

    def put(self, values: Array, index: Array, out: Array) -> None:
        """out[index] = values, in one dtype; the index as compact() gives it: ascending."""

    def fuse_batch(self, op: FusedOp, batch: Batch) -> dict[int, Findings]:
        """Run the op over many tiles. Returns what was found, for tiles where something was."""

    def magnitudes(self, tile: Tile, expert: int, work: DType) -> np.ndarray:
        """bits(|x_expert - base|) as int64, flat; meant for samples and single chunks."""

    def count(
        self, tile: Tile, brackets: list[Bracket], work: DType, tallies: list[np.ndarray]
    ) -> list[Counts]:
        """Count the magnitudes of every bracket in one pass over the tile.

        What lies inside bracket q is added to tallies[q], int64 [lanes, bins]: its rows add up to
        the histogram of all tiles counted so far.
        """

    def masked_sums(self, op: FusedOp, tile: Tile, *, keep: bool = False) -> Sums:
        """fp64 [blocks, K, 2]: sum |d| before and after mask, trim and drop, per BLOCK elements.

        keep: hand on what was kept; see Sums.
        """

    def energies(self, op: FusedOp, tile: Tile, *, keep: bool = False) -> Sums:
        """fp64 [blocks, K]: sum d^2 after mask, trim and drop, per BLOCK; keep: the same."""

    def prune(self, pruning: Pruning, tile: Tile) -> Masks:
        """The masks of a tile made of whole rows; None for experts that keep all. See Pruning."""

    def unify(self, tile: Tile, work: DType, into: Unified) -> Findings:
        """The task vector that stands for those of a tile's experts, their masks and sums."""

    def gram(self, tile: Tile, work: DType) -> np.ndarray:
        """fp64 [blocks, K, K]: dot products of the deltas (weights without a base), per BLOCK."""


def nothing() -> None:
    """What undoes a pin() that did nothing."""
