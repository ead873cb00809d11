"""Guesses from a sample: about where the key of a rank is."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mergekern.backends import Backend
from mergekern.dtypes import FLOAT64, DType
from mergekern.fused import EVERY_INDEX
from mergekern.keys import Key, Wanted, bound_of, starts_of
from mergekern.plan import Step
from mergekern.tiles import Part, Tensors, numels_of

SIGMAS = 4.5  # of the sampled rank; a guess that fails nevertheless costs another pass
LEAST = 1 << 15  # elements that are sampled, and all of what has no more than that
MOST = 1 << 20
LEAST_RUNS = 64
GOLDEN = 0.6180339887498949  # steps of it are spread evenly, and in step with no row of a matrix


@dataclass(frozen=True)
class Sample:
    """Some elements of the tensors that are ranked together, of every expert that was asked for."""

    numels: Mapping[int, int]  # of all elements, by expert
    runs: Mapping[int, _Run]


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
    narrow = np.int64 if work == FLOAT64 else np.int32
    samples: dict[int, list[_Run]] = {expert: [] for expert in experts}
    begins = {id(step): start for step, start in zip(tensors.steps, starts, strict=False)}
    for group, tile in tensors.parts(parts):
        step = group[0].step
        first = np.array([part.start for part in group]) + begins[id(step)]
        lengths = np.array([part.numel for part in group])
        for place, expert in enumerate(step.expert_index):
            if expert in samples:
                bits = backend.magnitudes(tile, place, work).astype(narrow)
                samples[expert].append(_Run(bits, first, lengths))
    return Sample(
        numels_of(tensors.steps), {expert: _join(runs) for expert, runs in samples.items()}
    )


def guess(
    sample: Sample, work: DType, ranks: Mapping[Wanted, int], *, by_index: bool
) -> dict[Wanted, tuple[Key, Key]]:
    """For every wanted rank, two keys that very likely have its key between them.

    Where both would have one magnitude, they are one key, which is about the right one. Without
    `by_index`, magnitudes alone count. From everything, the keys are right, not guessed.
    """
    bound = bound_of(work)
    return {
        wanted: _bracket(sample.runs[wanted[0]], rank, sample.numels[wanted[0]], bound, by_index)
        for wanted, rank in ranks.items()
    }


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

    @property
    def begins(self) -> np.ndarray:
        """Where the stretches begin in the sample."""
        found: np.ndarray = np.cumsum(self.lengths) - self.lengths
        return found

    def place(self, index: int) -> int:
        """Where an element of the sample lies among all."""
        begins = self.begins
        stretch = int(np.searchsorted(begins, index, side="right")) - 1
        return int(self.first[stretch] + index - begins[stretch])


def _join(runs: Sequence[_Run]) -> _Run:
    if len(runs) == 1:
        return runs[0]
    empty = np.zeros(0, np.int32)
    columns = zip(*((run.bits, run.first, run.lengths) for run in runs), strict=True)
    joined = [np.concatenate([empty, *column]) for column in columns] or [empty] * 3
    return _Run(*joined)


def _bracket(sample: _Run, rank: int, numel: int, bound: int, by_index: bool) -> tuple[Key, Key]:
    size = sample.bits.size
    top, bottom = Key(bound, -1), Key(0, EVERY_INDEX)
    if not size:
        return top, bottom
    middle = min(max(round(rank / numel * size), 1), size)
    ordered = _Ordered(sample.bits)
    value = ordered[middle]
    if size == numel:
        key = _key(sample, value, middle) if by_index else Key(value, -1)
        return key, key
    spread = _spread(sample, value, rank / numel)
    at = (middle - spread, middle + spread)
    high, low = (ordered[rank] if 1 <= rank <= size else None for rank in at)
    if not by_index:
        return top if high is None else Key(high, -1), bottom if low is None else Key(low, -1)
    if high is not None and high == low:
        key = _key(sample, value, middle)
        return key, key
    return (
        top if high is None else _key(sample, high, at[0]),
        bottom if low is None else _key(sample, low, at[1]),
    )


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


def _key(sample: _Run, value: int, rank: int) -> Key:
    ties = np.flatnonzero(sample.bits == value)
    before = int(np.count_nonzero(sample.bits > value))
    return Key(value, sample.place(int(ties[rank - before - 1])))


class _Ordered:
    """Magnitudes by descending rank, no more of them in order than was asked for.

    Each answer parts what is larger from what is smaller, and the next one looks at its part only;
    several at once would cost numpy more than one after the other.
    """

    def __init__(self, bits: np.ndarray) -> None:
        self._bits = bits.copy()
        self._known = [-1, bits.size]  # places where the right number is

    def __getitem__(self, rank: int) -> int:
        at = self._bits.size - rank
        behind = bisect_left(self._known, at)
        if self._known[behind] != at:
            first = self._known[behind - 1] + 1
            self._bits[first : self._known[behind]].partition(at - first)
            self._known.insert(behind, at)
        return int(self._bits[at])
