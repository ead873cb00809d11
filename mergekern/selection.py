"""Exact k-th magnitudes of deltas, of one tensor or of a whole model, without sorting.

A sample brackets each wanted magnitude; one pass counts what lies above the bracket and tallies
what lies inside it, and the counts prove the bracket right or say to which side to move it. The
threshold is exact when its tally is of single magnitudes. Counts add up over tiles and tensors, so
one tensor in memory and a model on a disk are searched by the same few lines.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from mergekern.backends import CHUNK, Backend, Bracket
from mergekern.fused import Tile
from mergekern.plan import Step
from mergekern.tiles import TileSource

SAMPLE = (1 << 15, 1 << 17)  # least and most elements that the first brackets are guessed from
SAMPLED = 1 / 64  # of the elements, between those
RUN = 1 << 12  # consecutive elements of a sample
SIGMAS = 5.0  # of the sampled rank; a bracket that fails nevertheless costs one more count
MOST_BINS = 1 << 20
COUNTERS = 1 << 23  # of all tallies together, 8 bytes each: the memory that a search may take


@dataclass
class Search:
    """One wanted magnitude: the `rank`-th largest |delta| of one expert (1 is the largest).

    [low, high) holds it for certain. Once `found`: `magnitude` are its bits, `wanted` of the
    `equal` elements that have just this magnitude belong to the `rank` largest.
    """

    expert: int  # place in the recipe
    rank: int
    low: int
    high: int
    guess: tuple[int, int] | None = None  # from the sample, not certain
    found: bool = False
    magnitude: int = 0
    wanted: int = 0
    equal: int = 0
    located: bool = False
    chunks: dict[str, torch.Tensor] = field(default_factory=dict)  # ties per CHUNK of each tensor

    def bracket(self, most_bins: int) -> tuple[int, int, int]:
        """low, shift and bins of the next count."""
        if self.found:
            return self.magnitude, 0, 1
        low, high = self.guess or (self.low, self.high)
        shift = max(0, (high - low - 1).bit_length() - (most_bins.bit_length() - 1))
        return low, shift, -(-(high - low) // (1 << shift))

    def update(self, low: int, shift: int, above: int, tally: torch.Tensor) -> None:
        """Draw the conclusion from a count."""
        if self.found:
            self.located = True
            return
        self.guess = None
        end = low + (tally.numel() << shift)
        if above >= self.rank:
            self.low = end
            return
        beyond = above + torch.cumsum(tally.flip(0), 0).flip(0)  # counts at or above each bin
        hits = (beyond >= self.rank).nonzero()
        if not hits.numel():
            self.high = low
            return
        bin_ = int(hits[-1])
        self.low, self.high = low + (bin_ << shift), low + ((bin_ + 1) << shift)
        if shift:
            return
        self.found, self.magnitude, self.equal = True, self.low, int(tally[bin_])
        self.wanted = self.rank - (int(beyond[bin_]) - self.equal)
        self.located = tally.numel() == 1 or self.wanted == self.equal


def select(
    backend: Backend,
    sources: Sequence[TileSource],
    work: torch.dtype,
    ranks: Iterable[tuple[int, int]],
    *,
    locate: bool,
) -> list[Search]:
    """Find the magnitude of every (expert, rank); with `locate`, count its ties per chunk too.

    Reads the sources once after the sample, and again where a bracket failed or, rarely, where ties
    must be located that no count has yet singled out.
    """
    bound = 1 << (63 if work == torch.float64 else 31)
    searches = [Search(expert, rank, 0, bound) for expert, rank in sorted(ranks)]
    if searches:
        _guess(backend, sources, work, searches)
    while pending := [s for s in searches if not (s.found and (s.located or not locate))]:
        _count(backend, sources, work, pending)
    return searches


def last_index(backend: Backend, source: TileSource, search: Search, before: int) -> int | None:
    """Index, within the tensor, of the last of its ties that belongs to the `rank` largest.

    before: how many of the ties lie in earlier tensors. None: all ties of this tensor belong,
    -1: none does.
    """
    wanted = search.wanted - before
    counts = search.chunks[source.step.name]
    if wanted >= int(counts.sum()):
        return None
    if wanted <= 0:
        return -1
    reached = torch.cumsum(counts, 0)
    chunk = int((reached < wanted).sum())
    wanted -= int(reached[chunk] - counts[chunk])
    place = source.step.expert_index.index(search.expert)
    tile = source.part(chunk * CHUNK, min(source.step.numel, (chunk + 1) * CHUNK))
    bits = backend.magnitudes(tile, place, source.step.work)
    ties = np.flatnonzero(bits.numpy() == search.magnitude)
    return chunk * CHUNK + int(ties[wanted - 1])


def _guess(
    backend: Backend, sources: Sequence[TileSource], work: torch.dtype, searches: list[Search]
) -> None:
    """Bracket every rank between two order statistics of a sample."""
    numel = sum(source.step.numel for source in sources)
    wanted = min(max(numel * SAMPLED, SAMPLE[0]), SAMPLE[1])
    share = min(1.0, wanted / max(1, numel))
    sampled: dict[int, list[np.ndarray]] = {search.expert: [] for search in searches}
    for source, tile in ((s, t) for s in sources for t in s.sample(share, RUN)):
        for place, expert in enumerate(source.step.expert_index):
            if expert in sampled:
                sampled[expert].append(backend.magnitudes(tile, place, work).numpy())
    numels = expert_numels([source.step for source in sources])
    for search in searches:
        bits = np.concatenate([*sampled[search.expert], np.zeros(0, np.int64)])
        if not bits.size:
            continue
        fraction = search.rank / numels[search.expert]
        spread = SIGMAS * (bits.size * fraction * (1 - fraction)) ** 0.5 + 2
        spread = 0.0 if bits.size == numels[search.expert] else spread
        middle = search.rank if not spread else fraction * bits.size
        # Descending rank r is ascending place size - r.
        first = int(np.clip(bits.size - middle - spread, 0, bits.size - 1))
        last = int(np.clip(bits.size - middle + spread, 0, bits.size - 1))
        ordered = np.partition(bits, sorted({first, last}))
        low = 0 if first == 0 and spread else int(ordered[first])
        high = search.high if last == bits.size - 1 and spread else int(ordered[last]) + 1
        search.guess = (low, high)


def _count(
    backend: Backend, sources: Sequence[TileSource], work: torch.dtype, searches: list[Search]
) -> None:
    """One pass over everything, counting for all searches at once."""
    numel = sum(source.step.numel for source in sources)
    most = min(MOST_BINS, COUNTERS // (backend.lanes * len(searches)), max(1 << 12, numel // 8))
    shapes = [search.bracket(1 << (most.bit_length() - 1)) for search in searches]
    # numpy takes zeroed pages from the system as they are touched; torch would write them all
    tallies = [torch.from_numpy(np.zeros((backend.lanes, b), np.int64)) for _, _, b in shapes]
    above = [0] * len(searches)
    for search in searches:
        search.chunks = {}
    for source, tile in _tiles(sources, {search.expert for search in searches}):
        places = {expert: place for place, expert in enumerate(source.step.expert_index)}
        mine = [q for q, search in enumerate(searches) if search.expert in places]
        brackets = [Bracket(places[searches[q].expert], *shapes[q]) for q in mine]
        found = backend.count(tile, brackets, work, [tallies[q] for q in mine])
        for q, counts in zip(mine, found, strict=True):
            above[q] += counts.above
            known = searches[q].chunks.get(tile.tensor)
            chunks = counts.chunks if known is None else torch.cat([known, counts.chunks])
            searches[q].chunks[tile.tensor] = chunks
    for q, search in enumerate(searches):
        search.update(shapes[q][0], shapes[q][1], above[q], tallies[q].sum(0))


def _tiles(sources: Sequence[TileSource], experts: set[int]) -> Iterator[tuple[TileSource, Tile]]:
    for source in sources:
        if experts.intersection(source.step.expert_index):
            for tile in source.tiles():
                yield source, tile


def expert_numels(steps: Iterable[Step]) -> dict[int, int]:
    """How many elements each expert has in these steps."""
    numels: dict[int, int] = {}
    for step in steps:
        for expert in step.expert_index:
            numels[expert] = numels.get(expert, 0) + step.numel
    return numels
