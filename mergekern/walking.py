"""From a key to one nearby: among equal magnitudes, a number of places further on or back."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from mergekern.backends import Backend, Bracket
from mergekern.fused import Tile
from mergekern.keys import Key, starts_of
from mergekern.plan import Step
from mergekern.tiles import TILE_ALIGN, Part, Tensors

GROUP = 16  # parts that are looked at in one go, at the most: what lies too far is read in vain
FARTHEST = 1 / 8  # of all elements; whoever has to go farther had better count


def walk(backend: Backend, tensors: Tensors, expert: int, key: Key, off: int) -> Key | None:
    """The key of the element `off` places behind that of `key` (before it, where negative), among
    one expert's elements of its magnitude. None where there is none within reach."""
    if not off:
        return key
    starts = starts_of(tensors.steps)
    reach = int(starts[-1] * FARTHEST)
    forth = off > 0
    bounds = (key.place + 1, key.place + 1 + reach) if forth else (key.place - reach, key.place)
    parts = [p for p in parts_between(tensors.steps, [bounds]) if expert in p.step.expert_index]
    parts = parts if forth else parts[::-1]
    begins = dict(zip(map(id, tensors.steps), starts_of(tensors.steps), strict=False))
    left = abs(off)
    for chosen in _growing(parts):
        for group, tile in tensors.parts(chosen):
            begin = begins[id(group[0].step)]
            holds = any(begin + p.start <= key.place < begin + p.stop for p in group)
            ties = _count(backend, tile, group[0].step, expert, key.magnitude)
            if ties < left and not holds:
                left -= ties
                continue
            places = _ties(backend, tile, group, expert, key.magnitude) + begin
            places = places[places > key.place] if forth else -np.sort(-places[places < key.place])
            if left <= places.size:
                return Key(key.magnitude, int(places[left - 1]))
            left -= places.size
    return None


def _growing(parts: Sequence[Part]) -> Iterator[Sequence[Part]]:
    """One part, then two, then four…"""
    first, size = 0, 1
    while first < len(parts):
        yield parts[first : first + size]
        first, size = first + size, min(2 * size, GROUP)


def _count(backend: Backend, tile: Tile, step: Step, expert: int, magnitude: int) -> int:
    """How many of one expert's elements have a magnitude."""
    tally = np.zeros((backend.lanes, 1), np.int64)
    bracket = Bracket(step.expert_index.index(expert), magnitude, 0, 1)
    backend.count(tile, [bracket], step.work, [tally])
    return int(tally.sum())


def _ties(
    backend: Backend, tile: Tile, parts: Sequence[Part], expert: int, magnitude: int
) -> np.ndarray:
    """Their indices in the tensor that the parts belong to."""
    step = parts[0].step
    bits = backend.magnitudes(tile, step.expert_index.index(expert), step.work)
    return np.concatenate([np.arange(part.start, part.stop) for part in parts])[bits == magnitude]


def parts_between(steps: Sequence[Step], intervals: Iterable[tuple[int, int]]) -> Iterator[Part]:
    """What lies at some intervals of places, in order and once, in parts that begin at multiples of
    TILE_ALIGN of their tensors and are no longer; not before the first place or behind the last."""
    starts = starts_of(steps)
    done = 0
    for first, stop in sorted(intervals):
        at, stop = max(first, done, 0), min(stop, starts[-1])
        number = bisect_right(starts, at) - 1
        while at < stop:
            step, start = steps[number], starts[number]
            begin = (at - start) // TILE_ALIGN * TILE_ALIGN
            end = min(step.numel, begin + TILE_ALIGN)
            if end > begin:
                yield Part(step, begin, end)
            at = done = start + end
            number += start + end >= starts[number + 1]
