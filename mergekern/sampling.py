"""Guesses from a sample: about where the key of a rank is."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mergekern import _C
from mergekern.backends import Backend
from mergekern.dtypes import DType
from mergekern.fused import EVERY_INDEX
from mergekern.keys import Key, Wanted, bound_of, starts_of
from mergekern.plan import Step
from mergekern.tiles import Part, Tensors, numels_of

SIGMAS = 4.5  # of the sampled rank; a guess that fails nevertheless costs another pass
LEAST = 1 << 15  # elements that are sampled, and all of what has no more than that
MOST = 1 << 20
LEAST_RUNS = 64
Element = tuple[int, int]  # magnitude, index in a sample
GOLDEN = 0.6180339887498949  # steps of it are spread evenly, and in step with no row of a matrix


@dataclass(frozen=True)
class Sample:
    """Some elements of the tensors that are ranked together, of every expert that was asked for.

    numels: of all elements, by expert; lanes: how many may be looked into at once
    """

    numels: Mapping[int, int]
    runs: Mapping[int, _Run]
    lanes: int


def draw(
    backend: Backend,
    tensors: Tensors,
    work: DType,
    experts: Iterable[int],
    everything: bool = False,
) -> Sample:
    """Magnitudes of runs spread over all tensors, or of everything."""
    starts = starts_of(tensors.steps)
    parts = sample_parts(tensors.steps, starts, 0 if everything else tensors.stretch)
    samples: dict[int, list[_Run]] = {expert: [] for expert in experts}
    begins = {id(step): start for step, start in zip(tensors.steps, starts, strict=False)}
    for group, tile in tensors.parts(parts):
        step = group[0].step
        first = np.array([part.start for part in group]) + begins[id(step)]
        lengths = np.array([part.numel for part in group])
        for place, expert in enumerate(step.expert_index):
            if expert in samples:
                bits = backend.magnitudes(tile, place, work)
                samples[expert].append(_Run(bits, first, lengths))
    joined = {expert: _join(runs) for expert, runs in samples.items()}
    return Sample(numels_of(tensors.steps), joined, backend.lanes)


def guess(
    sample: Sample, work: DType, ranks: Mapping[Wanted, int], *, by_index: bool
) -> dict[Wanted, tuple[Key, Key]]:
    """For every wanted rank, two keys that very likely have its key between them.

    Where both would have one magnitude, they are one key, which is about the right one. Without
    `by_index`, magnitudes alone count. From everything, the keys are right, not guessed.
    """
    middle = {wanted: _middle(sample, wanted, rank) for wanted, rank in ranks.items()}
    found = _elements(sample, {wanted: [rank] for wanted, rank in middle.items()})
    ends: dict[Wanted, tuple[int, int]] = {}
    for wanted, rank in ranks.items():
        run, numel, at = sample.runs[wanted[0]], sample.numels[wanted[0]], middle[wanted]
        guessed = 0 < run.bits.size < numel
        spread = _spread(run, found[wanted, at][0], rank / numel) if guessed else 0
        ends[wanted] = (at - spread, at + spread)
    found |= _elements(
        sample, {w: [rank for rank in pair if (w, rank) not in found] for w, pair in ends.items()}
    )
    keys = {}
    for wanted, at in middle.items():
        high, low = (found.get((wanted, rank)) for rank in ends[wanted])
        if by_index and high and low and high[0] == low[0]:
            high = low = found[wanted, at]
        run = sample.runs[wanted[0]]
        keys[wanted] = (
            _key(run, high, by_index) if high else Key(bound_of(work), -1),
            _key(run, low, by_index) if low else Key(0, EVERY_INDEX),
        )
    return keys


def sample_size(total: int) -> int:
    """How many of `total` elements are sampled. The larger a sample, the fewer elements it leaves
    open, so that the best size grows with the 2/3rd power."""
    return min(total, max(int(2 * total ** (2 / 3)), LEAST), MOST)


def most_open(total: int, wanted: int) -> int:
    """How many elements guesses of `wanted` keys may leave open: twice what is to be expected."""
    expected = wanted * SIGMAS * total / max(1, sample_size(total)) ** 0.5
    return min(total, int(2 * expected))


def sample_parts(steps: Sequence[Step], starts: Sequence[int], stretch: int) -> list[Part]:
    """Runs of about `stretch` elements spread over all tensors; everything, if that is little or
    there is no stretch."""
    total = starts[-1]
    wanted = sample_size(total)
    if total == wanted or not stretch:
        return [Part(step, 0, step.numel) for step in steps if step.numel]
    runs = max(LEAST_RUNS, wanted // stretch)
    length = wanted // runs
    found: list[Part] = []
    for run in range(runs):
        first, last = total * run // runs, total * (run + 1) // runs
        at = first + int((last - first - length) * (run * GOLDEN % 1))
        stop = at + length
        number = bisect_right(starts, at) - 1
        while at < stop:  # a run may reach into the next tensors
            end = min(stop, starts[number + 1])
            if end > at:
                found.append(Part(steps[number], at - starts[number], end - starts[number]))
            at, number = end, number + 1
    return found


@dataclass(frozen=True)
class _Run:
    """Magnitudes of a sample; the place of the first of each stretch, and how many belong to it."""

    bits: np.ndarray
    first: np.ndarray
    lengths: np.ndarray

    @cached_property
    def begins(self) -> np.ndarray:
        """Where the stretches begin in the sample."""
        found: np.ndarray = np.cumsum(self.lengths) - self.lengths
        return found

    def place(self, index: int) -> int:
        """Where an element of the sample lies among all."""
        stretch = bisect_right(self.begins, index) - 1
        return int(self.first[stretch] + index - self.begins[stretch])


def _join(runs: Sequence[_Run]) -> _Run:
    if len(runs) == 1:
        return runs[0]
    empty = np.zeros(0, np.int64)
    columns = zip(*((run.bits, run.first, run.lengths) for run in runs), strict=True)
    joined = [np.concatenate([empty, *column]) for column in columns] or [empty] * 3
    return _Run(*joined)


def _middle(sample: Sample, wanted: Wanted, rank: int) -> int:
    """The rank in the sample that stands for one among all; 0 in a sample of nothing."""
    size = sample.runs[wanted[0]].bits.size
    return min(max(round(rank / max(1, sample.numels[wanted[0]]) * size), 1), size)


def _elements(
    sample: Sample, ranks: Mapping[Wanted, Sequence[int]]
) -> dict[tuple[Wanted, int], Element]:
    """What has these ranks in the sample; nothing for a rank that it does not have."""
    bits = {wanted: sample.runs[wanted[0]].bits for wanted in ranks}
    inside = {w: [r for r in mine if 1 <= r <= bits[w].size] for w, mine in ranks.items()}
    found = _C.order_statistics(
        sample.lanes, [(bits[w].ctypes.data, bits[w].size, mine) for w, mine in inside.items()]
    )
    return {
        (wanted, rank): element
        for (wanted, mine), elements in zip(inside.items(), found, strict=True)
        for rank, element in zip(mine, elements, strict=True)
    }


def _key(sample: _Run, element: Element, by_index: bool) -> Key:
    magnitude, index = element
    return Key(magnitude, sample.place(index) if by_index else -1)


def _spread(sample: _Run, value: int, fraction: float) -> int:
    """How far the sampled rank may be off: as counts of one stretch differ from its neighbour's,
    for elements that lie together are alike."""
    size, lengths = sample.bits.size, sample.lengths
    reached = np.add.reduceat((sample.bits >= value).view(np.int8), sample.begins, dtype=np.int32)
    excess = reached - lengths * (reached.sum() / size)
    apart = float((np.diff(excess) ** 2).sum() / 2)
    plain = size * fraction * (1 - fraction)
    ties = int((sample.bits == value).sum()) // len(lengths)
    return int(SIGMAS * max(apart, plain) ** 0.5) + ties + 2
