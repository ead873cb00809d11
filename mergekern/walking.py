"""From a key to one nearby: among equal magnitudes, a number of places further on or back."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from mergekern.backends import Backend
from mergekern.keys import Key, starts_of
from mergekern.plan import Step
from mergekern.tiles import TILE_ALIGN, Part, Tensors

STRIDE = 1 << 18  # elements looked at in one go
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
    parts = list(parts_between(tensors.steps, [bounds], STRIDE))
    left = abs(off)
    begins = {id(step): start for step, start in zip(tensors.steps, starts, strict=False)}
    for part in parts if forth else reversed(parts):
        if expert not in part.step.expert_index:
            continue
        ((_, tile),) = tensors.parts([part])
        place = part.step.expert_index.index(expert)
        bits = backend.magnitudes(tile, place, part.step.work).numpy()
        places = np.flatnonzero(bits == key.magnitude) + (begins[id(part.step)] + part.start)
        places = places[places > key.place] if forth else places[places < key.place]
        if left <= places.size:
            return Key(key.magnitude, int(places[left - 1] if forth else places[-left]))
        left -= places.size
    return None


def parts_between(
    steps: Sequence[Step], intervals: Iterable[tuple[int, int]], stride: int = TILE_ALIGN
) -> Iterator[Part]:
    """What lies at some intervals of places, in order and once, as parts that begin and end at
    multiples of `stride` of their tensors; but not before the first place or behind the last."""
    starts = starts_of(steps)
    done = 0
    for first, stop in sorted(intervals):
        at, stop = max(first, done, 0), min(stop, starts[-1])
        number = bisect_right(starts, at) - 1
        while at < stop:
            step, start = steps[number], starts[number]
            begin = (at - start) // stride * stride
            end = min(step.numel, begin + stride)
            if end > begin:
                yield Part(step, begin, end)
            at = done = start + end
            number += start + end >= starts[number + 1]
