"""Exact k-th magnitudes by counting: the way that needs no luck, and a few passes.

A pass counts what lies above a range that is known to hold the magnitude, and tallies what lies
inside it; the next pass looks into one bin. Counts add up over tiles and tensors, so that memory
does not grow with the model. Where the sample's guess held (speculation.py), only the few elements
that it left open are searched in this way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from mergekern.backends import CHUNK, Backend, Bracket
from mergekern.dtypes import DType
from mergekern.fused import EVERY_INDEX
from mergekern.keys import Key, Wanted, bound_of, starts_of
from mergekern.tiles import Part, Tensors

MOST_BINS = 1 << 20
COUNTERS = 1 << 22  # of all tallies together, 8 bytes each: the memory that a search may take


@dataclass
class Search:
    """One wanted magnitude: the `rank`-th largest |delta| of one expert (1 is the largest).

    [low, high) holds it. Once `found`: `magnitude` are its bits, `wanted` of the `equal` elements
    that have just this magnitude belong to the `rank` largest.
    """

    expert: int  # place in the recipe
    rank: int
    low: int
    high: int
    found: bool = False
    magnitude: int = 0
    wanted: int = 0
    equal: int = 0
    located: bool = False
    chunks: dict[str, np.ndarray] = field(default_factory=dict)  # ties per CHUNK of each tensor

    def bracket(self, most_bins: int) -> tuple[int, int, int]:
        """low, shift and bins of the next count."""
        if self.found:
            return self.magnitude, 0, 1
        shift = max(0, (self.high - self.low - 1).bit_length() - (most_bins.bit_length() - 1))
        return self.low, shift, -(-(self.high - self.low) // (1 << shift))

    def update(self, low: int, shift: int, above: int, tally: np.ndarray) -> None:
        """Draw the conclusion from a count."""
        if self.found:
            self.located = True
            return
        beyond = above + np.cumsum(tally[::-1])[::-1]  # counts at or above each bin
        bin_ = int(np.flatnonzero(beyond >= self.rank)[-1])
        self.low, self.high = low + (bin_ << shift), low + ((bin_ + 1) << shift)
        if shift:
            return
        self.found, self.magnitude, self.equal = True, self.low, int(tally[bin_])
        self.wanted = self.rank - (int(beyond[bin_]) - self.equal)
        self.located = len(tally) == 1


def keys_by_counting(
    backend: Backend,
    tensors: Tensors,
    work: DType,
    ranks: Mapping[Wanted, int],
    *,
    by_index: bool,
) -> dict[Wanted, Key]:
    """The key of every wanted rank; without `by_index`, that of all elements of its magnitude."""
    bound = bound_of(work)
    searches = {wanted: Search(wanted[0], rank, 0, bound) for wanted, rank in ranks.items()}
    every = list(searches.values())
    while pending := [s for s in every if not (s.found and (s.located or not by_index))]:
        _count(backend, tensors, work, pending)
    return {
        wanted: Key(s.magnitude, _place(backend, tensors, s) if by_index else EVERY_INDEX)
        for wanted, s in searches.items()
    }


def _place(backend: Backend, tensors: Tensors, search: Search) -> int:
    """The place of the last of the `rank` largest."""
    wanted, number = search.wanted, 0
    ties = [
        int(search.chunks[s.name].sum()) if s.name in search.chunks else 0 for s in tensors.steps
    ]
    while wanted > ties[number]:
        wanted -= ties[number]
        number += 1
    step, start = tensors.steps[number], starts_of(tensors.steps)[number]
    counts = search.chunks[step.name]
    reached = np.cumsum(counts)
    chunk = int((reached < wanted).sum())
    wanted -= int(reached[chunk] - counts[chunk])
    first = chunk * CHUNK
    part = Part(step, first, min(step.numel, first + CHUNK))
    ((_, tile),) = tensors.parts([part])
    bits = backend.magnitudes(tile, step.expert_index.index(search.expert), step.work)
    tied = np.flatnonzero(bits == search.magnitude)
    return start + first + int(tied[wanted - 1])


def _count(backend: Backend, tensors: Tensors, work: DType, searches: list[Search]) -> None:
    """One pass over everything, counting for all searches at once."""
    numel = sum(step.numel for step in tensors.steps)
    most = min(MOST_BINS, COUNTERS // (backend.lanes * len(searches)), max(1 << 12, numel // 8))
    shapes = [search.bracket(1 << (most.bit_length() - 1)) for search in searches]
    tallies = [np.zeros((backend.lanes, b), np.int64) for _, _, b in shapes]
    above = [0] * len(searches)
    for search in searches:
        search.chunks = {}
    for step, tile in tensors.tiles():
        places = {expert: place for place, expert in enumerate(step.expert_index)}
        mine = [q for q, search in enumerate(searches) if search.expert in places]
        brackets = [Bracket(places[searches[q].expert], *shapes[q]) for q in mine]
        found = backend.count(tile, brackets, work, [tallies[q] for q in mine])
        for q, counts in zip(mine, found, strict=True):
            above[q] += counts.above
            known = searches[q].chunks.get(step.name)
            chunks = counts.chunks if known is None else np.concatenate([known, counts.chunks])
            searches[q].chunks[step.name] = chunks
    for q, search in enumerate(searches):
        search.update(shapes[q][0], shapes[q][1], above[q], tallies[q].sum(0))
