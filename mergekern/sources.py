"""Tensors that can be read more than once, for statistics: held whole, or streamed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby

import numpy as np

from mergekern.arrays import Array, at, is_host, joined
from mergekern.extents import lay_out
from mergekern.fused import Tile
from mergekern.plan import Step
from mergekern.stream import Pipeline
from mergekern.table import Target
from mergekern.tiles import Part, cut
from mergekern.units import Cutter, Pieces, Ranges, pieces_for

SHORT = 1 << 14  # elements of parts that cost less to copy than to look at apart


class Resident:
    """Tensors that are held whole, each in one tile."""

    stretch = 2048  # costs a copy, and neighbours are alike

    def __init__(self, tiles: Iterable[tuple[Step, Tile]]) -> None:
        self._tiles = list(tiles)
        self._tile_of = {id(step): tile for step, tile in self._tiles}
        self.steps = [step for step, _ in self._tiles]
        for step, tile in self._tiles:
            assert tile.numel == step.numel, f"{step.name}: statistics of a part of it"

    def tiles(self) -> Iterator[tuple[Step, Tile]]:
        return iter(self._tiles)

    def parts(self, parts: Sequence[Part]) -> Iterator[tuple[Sequence[Part], Tile]]:
        for (_, short), found in groupby(parts, key=lambda p: (id(p.step), p.numel < SHORT)):
            group = list(found)
            tile = self._tile_of[id(group[0].step)]
            if short and len(group) > 1:
                yield group, _join(tile, group)
            else:
                for part in group:
                    yield [part], _cut(tile, part)


def _cut(tile: Tile, part: Part) -> Tile:
    """One part of a tile, without a copy; what it is read for does not go by its offset."""
    return replace(cut(tile, part.start, part.stop), offset=0)


def _join(tile: Tile, parts: Sequence[Part]) -> Tile:
    """Parts of a tile behind one another, since a call for each would cost more than they do."""
    base = None if tile.base is None else _gather(tile.base, parts)
    return Tile(tile.tensor, 0, base, tuple(_gather(x, parts) for x in tile.experts))


def _gather(whole: Array, parts: Sequence[Part]) -> Array:
    if is_host(whole):
        return joined([whole[part.start : part.stop] for part in parts])
    # On a device a copy is a launch: one for all.
    return at(whole, np.concatenate([np.arange(part.start, part.stop) for part in parts]))


class Reel:
    """Tensors read from disk as often as they are asked for."""

    stretch = 1 << 14  # a request costs as much as some ten thousand elements

    def __init__(
        self,
        pipeline: Pipeline,
        cutter: Cutter,
        target: Target,
        rows: np.ndarray,
        on_read: Callable[[int], None] = lambda nbytes: None,
    ) -> None:
        """rows: of the target's steps. on_read: told of the bytes of each tile."""
        self.steps = [target.steps[row] for row in rows.tolist()]
        self._rows = rows
        self._row_of = {id(step): row for step, row in zip(self.steps, rows.tolist(), strict=True)}
        self._pipeline = pipeline
        self._cutter = cutter
        self._target = target
        self._on_read = on_read

    def tiles(self) -> Iterator[tuple[Step, Tile]]:
        numel = self._target.numel[self._rows]
        everything = Ranges(self._rows, np.zeros_like(numel), numel)
        return self._read(self._cutter.tiles(self._pieces(everything)))

    def parts(self, parts: Sequence[Part]) -> Iterator[tuple[Sequence[Part], Tile]]:
        columns = [[self._row_of[id(p.step)] for p in parts], [p.start for p in parts]]
        ranges = Ranges(*(np.array(c, np.int64) for c in (*columns, [p.stop for p in parts])))
        for part, (_, tile) in zip(parts, self._read(self._pieces(ranges)), strict=True):
            yield [part], replace(tile, offset=0)

    def _pieces(self, ranges: Ranges) -> Pieces:
        return pieces_for(self._target, len(self._pipeline.table.targets), ranges)

    def _read(self, pieces: Pieces) -> Iterator[tuple[Step, Tile]]:
        table = self._pipeline.table
        bundles = self._cutter.bundles(pieces, output=False)
        units = (lay_out(table, bundle, output=False) for bundle in bundles)
        for flight in self._pipeline.stream(units):
            cargo = flight.cargo(self._target)
            for piece, row in enumerate(cargo.pieces.row.tolist()):
                tile = cargo.tile(piece)
                self._on_read(_nbytes(tile))
                yield self._target.steps[row], tile


def _nbytes(tile: Tile) -> int:
    inputs = (*tile.experts, *(() if tile.base is None else (tile.base,)))
    return sum(array.nbytes for array in inputs)
