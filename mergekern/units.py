"""Cutting steps into units of work: tiles of large tensors, bundles of small ones."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from mergekern.budget import PADDING, TILE_BYTES, UNITS
from mergekern.checkpoint.base import Checkpoint, TensorInfo
from mergekern.errors import BudgetError
from mergekern.plan import Input, Plan, Step
from mergekern.tiles import TILE_ALIGN, Part

MOST_PARTS = 512  # of one unit: keeps the latency of a bundle of tiny tensors low
LARGE = 1 << 16  # bytes from which a buffer is aligned to a page

Interval = tuple[int, int]


@dataclass(frozen=True)
class Place:
    """Where a part's buffers begin in its unit; None for inputs that are in memory already."""

    inputs: tuple[int | None, ...]
    out: int


@dataclass(frozen=True)
class Run:
    """Output bytes that lie together in the unit and in their shard."""

    shard: int
    offset: int  # in the file
    begin: int  # in the unit
    length: int


@dataclass(frozen=True)
class Unit:
    """What is read, computed and written as one, in one stretch of buffer."""

    parts: tuple[Part, ...]
    places: tuple[Place, ...]
    runs: tuple[Run, ...]
    nbytes: int


@dataclass
class _Layout:
    """A unit being laid out: what is placed so far, and how many bytes that takes."""

    places: list[Place]
    runs: list[Run]
    used: int = 0

    def take(self, nbytes: int) -> int:
        align = PADDING if nbytes >= LARGE else 64
        begin = -(-self.used // align) * align
        self.used = begin + nbytes
        return begin


class Cutter:
    """Cuts steps so that every unit fits the buffers."""

    def __init__(
        self,
        plan: Plan,
        checkpoints: Sequence[Checkpoint],
        buffers: int,
        tile: int | None = None,
    ) -> None:
        self._checkpoints = checkpoints
        self._buffers = buffers
        self._tile = tile
        self._share = buffers // UNITS
        self._where = {
            name: (number, offset)
            for number, shard in enumerate(plan.shards)
            for name, offset in shard.offsets.items()
        }

    def info(self, source: Input) -> TensorInfo:
        return self._checkpoints[source.model].tensors[source.name]

    def where(self, step: Step) -> tuple[int, int]:
        """Number of the shard that holds a step's output, and the first byte there."""
        return self._where[step.name]

    def fits(self, step: Step) -> bool:
        """True when a tensor can be held whole, all inputs and the output."""
        if self._tile is not None and step.numel > self._tile:
            return False
        return self._bytes(step, step.numel) <= self._buffers

    def intervals(self, step: Step, missing: Iterable[Interval]) -> list[Interval]:
        """Byte ranges of an output tensor as ranges of elements that tiles can begin at."""
        found: list[Interval] = []
        for first, last in missing:
            start = first // step.dtype.itemsize // TILE_ALIGN * TILE_ALIGN
            stop = -(-last // step.dtype.itemsize)
            stop = min(step.numel, -(-stop // TILE_ALIGN) * TILE_ALIGN)
            if found and start <= found[-1][1]:
                start = found.pop()[0]
            found.append((start, stop))
        return found

    def tiles(self, step: Step, intervals: Iterable[Interval]) -> Iterator[Part]:
        """Ranges of elements cut into tiles."""
        length = self._tile_length(step)
        for start, stop in intervals:
            for first in range(start, stop, length):
                yield Part(step, first, min(first + length, stop))

    def units(self, parts: Iterable[Part], *, output: bool) -> Iterator[Unit]:
        """Bundle parts, in their order; `output`: with room for what is written."""
        bundle: list[Part] = []
        used = 0
        for part in parts:
            size = self._bytes(part.step, part.numel)
            if bundle and (used + size > self._share or len(bundle) >= MOST_PARTS):
                yield self._unit(bundle, output)
                bundle, used = [], 0
            bundle.append(part)
            used += size
        if bundle:
            yield self._unit(bundle, output)

    def _tile_length(self, step: Step) -> int:
        """The longest tile that leaves room for others in flight, but never less than the least."""
        widest = max(self.info(source).dtype.itemsize for source in step.inputs)
        target = min(self._share, self._bytes(step, TILE_BYTES // widest))
        overhead = self._bytes(step, 0)
        per_chunk = self._bytes(step, TILE_ALIGN) - overhead
        length = max(1, (target - overhead) // per_chunk) * TILE_ALIGN
        length = length if self._tile is None else min(length, self._tile)
        needed = self._bytes(step, min(length, step.numel))
        if needed > self._buffers:
            raise BudgetError(
                f"{step.name}: its smallest tile takes {needed} bytes, the buffers have "
                f"{self._buffers}: raise max_memory"
            )
        return length

    def _bytes(self, step: Step, elements: int) -> int:
        """An upper bound of what `elements` elements of a step take in a unit."""
        total = elements * step.dtype.itemsize + _padding(elements * step.dtype.itemsize)
        for source in step.inputs:
            if self._checkpoints[source.model].on_disk:
                nbytes = elements * self.info(source).dtype.itemsize
                total += nbytes + _padding(nbytes)
        return total

    def _unit(self, bundle: list[Part], output: bool) -> Unit:
        layout = _Layout([], [])
        direct = [output and self._direct(part.step) for part in bundle]
        inputs = [
            self._inputs(layout, part, skip) for part, skip in zip(bundle, direct, strict=True)
        ]
        for part, places, skip in zip(bundle, inputs, direct, strict=True):
            out = self._out(layout, part, skip) if output else 0
            first = (out,) if skip else ()
            layout.places.append(Place((*first, *places), out))
        return Unit(tuple(bundle), tuple(layout.places), tuple(layout.runs), layout.used)

    def _direct(self, step: Step) -> bool:
        """True when the first input can be read to where the output is written from."""
        return step.action == "copy" and self._checkpoints[step.inputs[0].model].on_disk

    def _inputs(self, layout: _Layout, part: Part, skip: bool) -> list[int | None]:
        places: list[int | None] = []
        for source in part.step.inputs[skip:]:
            on_disk = self._checkpoints[source.model].on_disk
            nbytes = part.numel * self.info(source).dtype.itemsize
            places.append(layout.take(nbytes) if on_disk else None)
        return places

    def _out(self, layout: _Layout, part: Part, apart: bool) -> int:
        """Room for a part's output, behind its neighbour's where that is so in the file too."""
        step = part.step
        shard, offset = self.where(step)
        offset += part.start * step.dtype.itemsize
        length = part.numel * step.dtype.itemsize
        last = layout.runs[-1] if layout.runs else None
        follows = last is not None and (last.shard, last.offset + last.length) == (shard, offset)
        if last is None or apart or not follows or layout.used % step.dtype.itemsize:
            layout.runs.append(Run(shard, offset, layout.take(length), length))
            return layout.runs[-1].begin
        assert layout.used == last.begin + last.length
        layout.runs[-1] = Run(shard, last.offset, last.begin, last.length + length)
        layout.used += length
        return layout.used - length


def _padding(nbytes: int) -> int:
    return PADDING if nbytes >= LARGE else 64


class Coverage:
    """Which bytes of which files are known to be right."""

    def __init__(self, ranges: Iterable[tuple[str, int, int]] = ()) -> None:
        """ranges: file, first byte, length; in any order, overlaps allowed."""
        self._files: dict[str, list[Interval]] = {}
        for file, begin, length in sorted(ranges):
            merged = self._files.setdefault(file, [])
            if merged and begin <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(merged[-1][1], begin + length))
            else:
                merged.append((begin, begin + length))

    @property
    def nbytes(self) -> int:
        return sum(stop - start for ranges in self._files.values() for start, stop in ranges)

    def missing(self, file: str, start: int, stop: int) -> list[Interval]:
        """What [start, stop) lacks, counted from `start`."""
        ranges = self._files.get(file, [])
        first = max(0, bisect_right(ranges, (start, start)) - 1)
        found, at = [], start
        for begin, end in ranges[first:]:
            if begin >= stop:
                break
            if begin > at:
                found.append((at - start, begin - start))
            at = max(at, end)
        if at < stop:
            found.append((at - start, stop - start))
        return found
