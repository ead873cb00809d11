"""Cutting steps into units of work: tiles of large tensors, bundles of small ones, as columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from mergekern.budget import PADDING, TILE_BYTES, UNITS
from mergekern.checkpoint.direct import BLOCK
from mergekern.columns import distinct
from mergekern.errors import BudgetError
from mergekern.table import READ, Table, Target

MOST_INPUTS = 1 << 15  # of one unit: columns of what is in flight take memory too


_ROW = 1 << 42  # more elements than a tensor has, so that row and element are one number


class Ranges(NamedTuple):
    """Elements [start, stop) of the output tensors of some rows of the table, in columns."""

    row: np.ndarray
    start: np.ndarray
    stop: np.ndarray

    @property
    def numel(self) -> np.ndarray:
        return self.stop - self.start

    def of(self, chosen: np.ndarray) -> Ranges:
        return Ranges(self.row[chosen], self.start[chosen], self.stop[chosen])


def all_of(numel: np.ndarray) -> Ranges:
    """All of every tensor that has elements."""
    rows = np.flatnonzero(numel)
    return Ranges(rows, np.zeros_like(rows), numel[rows])


@dataclass(frozen=True)
class Pieces:
    """Ranges with those who merge them: wants has a column for each of the table's targets."""

    row: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    wants: np.ndarray

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, chosen: slice | np.ndarray) -> Pieces:
        return Pieces(self.row[chosen], self.start[chosen], self.stop[chosen], self.wants[chosen])

    @property
    def numel(self) -> np.ndarray:
        return self.stop - self.start

    def but_for(self, targets: list[int]) -> Pieces:
        """What is left when some targets want nothing any more."""
        wants = self.wants.copy()
        wants[:, targets] = False
        return replace(self, wants=wants)[np.flatnonzero(wants.any(axis=1))]


def pieces_for(target: Target, of: int, ranges: Ranges) -> Pieces:
    """Ranges that one of the targets alone wants."""
    wants = np.zeros((len(ranges.row), of), bool)
    wants[:, target.number] = True
    return Pieces(*ranges, wants)


def overlaid(every: Sequence[Ranges]) -> Pieces:
    """What each target wants, cut where the wishes of any begin or end, in the order of rows."""
    first = [ranges.row * _ROW + ranges.start for ranges in every]
    last = [ranges.row * _ROW + ranges.stop for ranges in every]
    points = distinct(np.concatenate([*first, *last]))
    wants = np.zeros((len(points), len(every)), bool)
    for target, (begins, ends) in enumerate(zip(first, last, strict=True)):
        change = np.zeros(len(points), np.int64)
        np.add.at(change, np.searchsorted(points, begins), 1)
        np.add.at(change, np.searchsorted(points, ends), -1)
        wants[:, target] = np.cumsum(change) > 0
    wanted = np.flatnonzero(wants.any(axis=1))
    row = points[wanted] // _ROW
    stop = points[wanted + 1] if len(wanted) else points
    return Pieces(row, points[wanted] - row * _ROW, stop - row * _ROW, wants[wanted])


def in_order(first: Pieces, second: Pieces) -> Pieces:
    """Two lists of pieces as one, in the order of rows and within them as they are."""
    columns = zip(_columns(first), _columns(second), strict=True)
    both = Pieces(*(np.concatenate(pair) for pair in columns))
    return both[np.argsort(both.row, kind="stable")]


def _columns(pieces: Pieces) -> tuple[np.ndarray, ...]:
    return pieces.row, pieces.start, pieces.stop, pieces.wants


def needed(table: Table, pieces: Pieces) -> np.ndarray:
    """True for the inputs of each piece that those who want it need; a column per slot."""
    found = np.zeros((len(pieces), table.file.shape[1]), bool)
    for target, wants in zip(table.targets, pieces.wants.T, strict=True):
        found |= wants[:, None] & target.needs[pieces.row]
    return found


def traffic(table: Table, pieces: Pieces) -> int:
    """Bytes to be read and written for these pieces."""
    row = pieces.row
    element = (table.width[row] * needed(table, pieces)).sum(axis=1)
    element = element + (table.written[row] * pieces.wants).sum(axis=1)
    return int((element * pieces.numel).sum())


class Cutter:
    """Cuts steps so that every unit fits the buffers."""

    def __init__(self, table: Table, buffers: int, tile: int | None = None) -> None:
        self._table = table
        self._buffers = buffers
        self._share = buffers // UNITS
        self._tile = tile
        on_disk = table.file >= READ
        self._most = max(1, MOST_INPUTS // table.file.shape[1])
        outputs = table.written
        self._element = (table.width * on_disk).sum(axis=1) + outputs.sum(axis=1)
        self._around = (on_disk.sum(axis=1) + (outputs > 0).sum(axis=1)) * PADDING

    @cached_property
    def fits(self) -> np.ndarray:
        """True for tensors that can be held whole, all inputs and outputs."""
        numel = self._table.numel
        fits: np.ndarray = numel * self._element + self._around <= self._buffers
        return fits if self._tile is None else fits & (numel <= self._tile)

    def tiles(self, ranges: Pieces) -> Pieces:
        """Ranges cut into tiles."""
        length = self._tile_length(ranges.row)
        counts = -(-ranges.numel // length)
        which = np.repeat(np.arange(len(ranges)), counts)
        within = np.arange(len(which)) - (np.cumsum(counts) - counts)[which]
        start = ranges.start[which] + within * length[which]
        stop = np.minimum(start + length[which], ranges.stop[which])
        return Pieces(ranges.row[which], start, stop, ranges.wants[which])

    def bundles(self, pieces: Pieces, *, output: bool) -> Iterator[Pieces]:
        """Pieces of one unit each, in their order; `output`: with room for what is written."""
        cost = self._costs(pieces)
        ends = np.cumsum(cost)
        cut = np.arange(1, len(pieces) + 1)
        if output:  # where a unit's output ends with a block of the file, it is written as a whole
            whole = np.ones(len(pieces), bool)
            for target in self._table.targets:
                whole &= _places(target, pieces)[1] % BLOCK == 0
            cut = np.maximum.accumulate(np.where(whole, cut, 0))
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
        """The longest tile that leaves room for others in flight, but never less than the least:
        what tensors of several rows are cut between."""
        element, around = self._element[rows], self._around[rows]
        widest = np.maximum(1, self._table.width[rows].max(axis=1, initial=1))
        target = np.minimum(self._share - around, element * (TILE_BYTES // widest))
        align = self._table.align[rows]
        target = target if self._tile is None else np.minimum(target, element * self._tile)
        length = np.maximum(1, target // (element * align)).astype(np.int64) * align
        needed = np.minimum(length, self._table.numel[rows]) * element + around
        if (needed > self._buffers).any():
            worst = int(np.argmax(needed))
            raise BudgetError(
                f"{self._table.names[rows[worst]]}: its smallest tile takes {int(needed[worst])} "
                f"bytes, the buffers have {self._buffers}: raise max_memory"
            )
        return length

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
        together = ((file[1:] == file[:-1]) & follows).all(axis=1)
        for target in table.targets:
            out, behind = _places(target, pieces)
            together &= (out[1:] == behind[:-1]) & (np.diff(target.shard[row]) == 0)
        cost[1:] -= np.where(together, self._around[row][1:], 0)
        return cost


def _places(target: Target, pieces: Pieces) -> tuple[np.ndarray, np.ndarray]:
    """Where pieces begin and end in the shards of a target."""
    return target.places(pieces.row, pieces.start, pieces.stop)
