"""Tensors as tiles that can be read more than once, for statistics: held whole, or streamed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
import torch

from mergekern.coverage import Interval
from mergekern.extents import lay_out
from mergekern.fused import Tile
from mergekern.plan import Step
from mergekern.stream import Pipeline
from mergekern.tiles import TILE_ALIGN
from mergekern.units import Cutter, Pieces

Pass = (
    tuple[Literal["tiles"]]
    | tuple[Literal["part"], int, int]
    | tuple[Literal["sample"], float, int]
)


def sample_ranges(numel: int, share: float, run: int) -> list[Interval]:
    """About `share` of a tensor in ranges of about `run` elements, evenly spread; all of it for 1.

    They begin at multiples of TILE_ALIGN as all tiles do, so that they are the same ones however a
    tensor is tiled.
    """
    wanted = min(numel, int(numel * share))
    if not wanted:
        return []
    chunks = -(-numel // TILE_ALIGN)
    runs = min(chunks, -(-wanted // run))
    length = min(TILE_ALIGN, -(-wanted // runs)) if wanted < numel else TILE_ALIGN
    runs = chunks if wanted == numel else runs
    starts = [chunks * number // runs * TILE_ALIGN for number in range(runs)]
    return [(start, min(numel, start + length)) for start in starts]


class Resident:
    """A tensor that is held whole, in one tile."""

    def __init__(self, step: Step, tile: Tile) -> None:
        self.step = step
        self._tile = tile

    def tiles(self) -> Iterator[Tile]:
        assert self._tile.numel == self.step.numel, f"{self.step.name}: statistics of a part of it"
        yield self._tile

    def part(self, start: int, stop: int) -> Tile:
        return cut(self._tile, start, stop)

    def sample(self, share: float, run: int) -> Iterator[Tile]:
        assert self._tile.numel == self.step.numel, f"{self.step.name}: statistics of a part of it"
        ranges = sample_ranges(self.step.numel, share, run)
        if ranges:  # joined, since a call for each would cost more than its elements
            base = None if self._tile.base is None else _join(self._tile.base, ranges)
            experts = tuple(_join(x, ranges) for x in self._tile.experts)
            yield Tile(self._tile.tensor, 0, base, experts)


def _join(whole: torch.Tensor, ranges: list[Interval]) -> torch.Tensor:
    """Ranges of a tensor behind one another, copied one by one: torch.cat would wake its threads,
    which then spin against ours."""
    joined = torch.empty(sum(stop - start for start, stop in ranges), dtype=whole.dtype)
    filled = 0
    for start, stop in ranges:
        joined[filled : filled + stop - start] = whole[start:stop]
        filled += stop - start
    return joined


def cut(tile: Tile, start: int, stop: int) -> Tile:
    """Elements [start, stop) of a tile that begins its tensor."""
    base = None if tile.base is None else tile.base[start:stop]
    return Tile(tile.tensor, start, base, tuple(x[start:stop] for x in tile.experts))


class Streamed:
    """One tensor of a Reel."""

    def __init__(self, reel: Reel, number: int) -> None:
        self.step = reel.steps[number]
        self._reel = reel
        self._number = number

    def tiles(self) -> Iterator[Tile]:
        return self._reel.play(self._number, ("tiles",))

    def part(self, start: int, stop: int) -> Tile:
        (tile,) = self._reel.play(self._number, ("part", start, stop))
        return tile

    def sample(self, share: float, run: int) -> Iterator[Tile]:
        return self._reel.play(self._number, ("sample", share, run))


class Reel:
    """Several tensors read one after the other, again and again.

    Reads run ahead into the tensors behind the one asked for, in the belief that those are asked
    for next and in the same way; where that is not so, reading starts anew.
    """

    def __init__(self, pipeline: Pipeline, cutter: Cutter, rows: Sequence[int]) -> None:
        """rows: of the pipeline's table, in the order in which they will be asked for."""
        self.rows = rows
        self.steps = [pipeline.table.steps[row] for row in rows]
        self.sources = [Streamed(self, number) for number in range(len(rows))]
        self.on_read: Callable[[int], None] = lambda nbytes: None
        self._pipeline = pipeline
        self._cutter = cutter
        self._tape: Iterator[tuple[Step, Tile]] | None = None
        self._next: tuple[int, Pass] | None = None

    def play(self, number: int, how: Pass) -> Iterator[Tile]:
        """The tiles of one tensor."""
        step = self.steps[number]
        count = len(self._pieces([number], how))
        if self._next != (number, how) or self._tape is None:
            self.stop()
            self._tape = self._read(number, how)
        self._next = None
        tape = self._tape
        for _ in range(count):
            found, tile = next(tape)
            assert found is step
            self.on_read(_nbytes(tile))
            yield tile
        self._next = (number + 1, how)

    def stop(self) -> None:
        """Drop what was read ahead."""
        tape, self._tape = self._tape, None
        if tape is not None:
            tape.close()  # type: ignore[attr-defined]

    def _read(self, first: int, how: Pass) -> Iterator[tuple[Step, Tile]]:
        # A part is asked of one tensor alone; all else is asked of every tensor in turn.
        last = first + 1 if how[0] == "part" else len(self.rows)
        table = self._pipeline.table
        bundles = self._cutter.bundles(self._pieces(range(first, last), how), output=False)
        units = (lay_out(table, bundle, output=False) for bundle in bundles)
        for flight in self._pipeline.stream(units):
            for piece, row in enumerate(flight.unit.pieces.row.tolist()):
                yield table.steps[row], flight.tile(piece)

    def _pieces(self, numbers: Sequence[int], how: Pass) -> Pieces:
        rows = np.array([self.rows[number] for number in numbers], np.int64)
        numel = self._pipeline.table.numel[rows]
        if how[0] == "tiles":
            return self._cutter.tiles(Pieces(rows, np.zeros_like(rows), numel))
        ranges = [
            [how[1:]] if how[0] == "part" else sample_ranges(int(size), how[1], how[2])
            for size in numel
        ]
        row = np.repeat(rows, [len(found) for found in ranges])
        bounds = np.array([bound for found in ranges for bound in found], np.int64).reshape(-1, 2)
        return Pieces(row, bounds[:, 0], bounds[:, 1])


def _nbytes(tile: Tile) -> int:
    inputs: list[torch.Tensor] = [*tile.experts, *(() if tile.base is None else (tile.base,))]
    return sum(tensor.numel() * tensor.dtype.itemsize for tensor in inputs)
