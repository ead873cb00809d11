"""Cutting steps into units of work: tiles of large tensors, bundles of small ones, as columns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mergekern.budget import PADDING, TILE_BYTES, UNITS
from mergekern.checkpoint.direct import BLOCK
from mergekern.errors import BudgetError
from mergekern.table import READ, Table
from mergekern.tiles import TILE_ALIGN

MOST_INPUTS = 1 << 15  # of one unit: columns of what is in flight take memory too


@dataclass(frozen=True)
class Pieces:
    """Elements [start, stop) of the output tensors of some rows of the table, in columns."""

    row: np.ndarray
    start: np.ndarray
    stop: np.ndarray

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, chosen: slice | np.ndarray) -> Pieces:
        return Pieces(self.row[chosen], self.start[chosen], self.stop[chosen])

    @property
    def numel(self) -> np.ndarray:
        return self.stop - self.start


def pieces_of(row: int, ranges: list[tuple[int, int]]) -> Pieces:
    """Ranges of elements of one tensor."""
    bounds = np.array(ranges, np.int64).reshape(len(ranges), 2)
    return Pieces(np.full(len(ranges), row), bounds[:, 0], bounds[:, 1])


class Cutter:
    """Cuts steps so that every unit fits the buffers."""

    def __init__(self, table: Table, buffers: int, tile: int | None = None) -> None:
        self._table = table
        self._buffers = buffers
        self._share = buffers // UNITS
        self._tile = tile
        on_disk = table.file >= READ
        self._most = max(1, MOST_INPUTS // table.file.shape[1])
        self._element = (table.width * on_disk).sum(axis=1) + table.itemsize
        self._around = (on_disk.sum(axis=1) + 1) * PADDING

    def fits(self, rows: np.ndarray) -> np.ndarray:
        """True for tensors that can be held whole, all inputs and the output."""
        numel = self._table.numel[rows]
        fits: np.ndarray = numel * self._element[rows] + self._around[rows] <= self._buffers
        return fits if self._tile is None else fits & (numel <= self._tile)

    def tiles(self, ranges: Pieces) -> Pieces:
        """Ranges of elements cut into tiles."""
        length = self._tile_length(ranges.row)
        counts = -(-ranges.numel // length)
        which = np.repeat(np.arange(len(ranges)), counts)
        within = np.arange(len(which)) - (np.cumsum(counts) - counts)[which]
        start = ranges.start[which] + within * length[which]
        stop = np.minimum(start + length[which], ranges.stop[which])
        return Pieces(ranges.row[which], start, stop)

    def bundles(self, pieces: Pieces, *, output: bool) -> Iterator[Pieces]:
        """Pieces of one unit each, in their order; `output`: with room for what is written."""
        cost = self._costs(pieces)
        ends = np.cumsum(cost)
        cut = np.arange(1, len(pieces) + 1)
        if output:  # where a unit's output ends with a block of the file, it is written as a whole
            offset = self._offsets(pieces) + pieces.numel * self._table.itemsize[pieces.row]
            cut = np.maximum.accumulate(np.where(offset % BLOCK == 0, cut, 0))
        first = 0
        while first < len(pieces):
            room = ends[first] - cost[first] + self._share - self._around[pieces.row[first]]
            stop = int(np.searchsorted(ends, room, side="right"))
            stop = min(max(stop, first + 1), first + self._most)
            if output and stop < len(pieces) and cut[stop - 1] > (first + stop) // 2:
                stop = int(cut[stop - 1])
            yield pieces[first:stop]
            first = stop

    def _tile_length(self, rows: np.ndarray) -> np.ndarray:
        """The longest tile that leaves room for others in flight, but never less than the least."""
        element, around = self._element[rows], self._around[rows]
        widest = np.maximum(1, self._table.width[rows].max(axis=1, initial=1))
        target = np.minimum(self._share - around, element * (TILE_BYTES // widest))
        length = np.maximum(1, target // (element * TILE_ALIGN)) * TILE_ALIGN
        length = length if self._tile is None else np.minimum(length, self._tile)
        needed = np.minimum(length, self._table.numel[rows]) * element + around
        if (needed > self._buffers).any():
            worst = int(np.argmax(needed))
            raise BudgetError(
                f"{self._table.steps[rows[worst]].name}: its smallest tile takes {needed[worst]} "
                f"bytes, the buffers have {self._buffers}: raise max_memory"
            )
        return length

    def _offsets(self, pieces: Pieces) -> np.ndarray:
        table, row = self._table, pieces.row
        offsets: np.ndarray = table.offset[row] + pieces.start * table.itemsize[row]
        return offsets

    def _costs(self, pieces: Pieces) -> np.ndarray:
        """An upper bound of what each piece takes in a unit, behind those before it.

        Neighbours in every file share their blocks; all else is given blocks of its own.
        """
        table, row = self._table, pieces.row
        cost: np.ndarray = pieces.numel * self._element[row] + self._around[row]
        file, width = table.file[row], table.width[row]
        begin = table.begin[row] + pieces.start[:, None] * width
        end = begin + pieces.numel[:, None] * width
        follows = (begin[1:] == end[:-1]) & (width[1:] == width[:-1]) | (file[1:] < READ)
        out = self._offsets(pieces)
        behind = out + pieces.numel * table.itemsize[row]
        alike = (file[1:] == file[:-1]) & follows
        together = alike.all(axis=1) & (out[1:] == behind[:-1])
        together &= table.shard[row][1:] == table.shard[row][:-1]
        cost[1:] -= np.where(together, self._around[row][1:], 0)
        return cost
