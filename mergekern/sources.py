"""Tensors that can be read more than once, for statistics: held whole, or streamed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby

import torch

from mergekern.fused import Tile
from mergekern.plan import Step
from mergekern.stream import Pipeline
from mergekern.tiles import Part, cut
from mergekern.units import Cutter


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
        for _, found in groupby(parts, key=lambda part: id(part.step)):
            group = list(found)
            tile = self._tile_of[id(group[0].step)]
            yield group, _join(tile, group) if len(group) > 1 else _cut(tile, group[0])


def _cut(tile: Tile, part: Part) -> Tile:
    """One part of a tile, without a copy; what it is read for does not go by its offset."""
    piece = cut(tile, part.start, part.stop)
    return Tile(tile.tensor, 0, piece.base, piece.experts)


def _join(tile: Tile, parts: Sequence[Part]) -> Tile:
    """Parts of a tile behind one another, since a call for each would cost more than they do."""
    base = None if tile.base is None else _gather(tile.base, parts)
    return Tile(tile.tensor, 0, base, tuple(_gather(x, parts) for x in tile.experts))


def _gather(whole: torch.Tensor, parts: Sequence[Part]) -> torch.Tensor:
    """Copied one by one: torch.cat would wake its threads, which then spin against ours."""
    joined = torch.empty(sum(part.numel for part in parts), dtype=whole.dtype)
    filled = 0
    for part in parts:
        joined[filled : filled + part.numel] = whole[part.start : part.stop]
        filled += part.numel
    return joined


class Reel:
    """Tensors read from disk as often as they are asked for."""

    stretch = 1 << 12

    def __init__(
        self,
        pipeline: Pipeline,
        cutter: Cutter,
        steps: Sequence[Step],
        on_read: Callable[[int], None] = lambda nbytes: None,
    ) -> None:
        self.steps = steps
        self._pipeline = pipeline
        self._cutter = cutter
        self._on_read = on_read

    def tiles(self) -> Iterator[tuple[Step, Tile]]:
        everything = (self._cutter.tiles(step, [(0, step.numel)]) for step in self.steps)
        for part, tile in self._read(part for parts in everything for part in parts):
            yield part.step, tile

    def parts(self, parts: Sequence[Part]) -> Iterator[tuple[Sequence[Part], Tile]]:
        for part, tile in self._read(parts):
            yield [part], Tile(tile.tensor, 0, tile.base, tile.experts)

    def _read(self, parts: Iterable[Part]) -> Iterator[tuple[Part, Tile]]:
        for flight in self._pipeline.stream(self._cutter.units(parts, output=False)):
            for number, part in enumerate(flight.unit.parts):
                tile = flight.tile(number)
                self._on_read(_nbytes(tile))
                yield part, tile


def _nbytes(tile: Tile) -> int:
    inputs: list[torch.Tensor] = [*tile.experts, *(() if tile.base is None else (tile.base,))]
    return sum(tensor.numel() * tensor.dtype.itemsize for tensor in inputs)
