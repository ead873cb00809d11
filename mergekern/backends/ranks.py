"""The magnitudes of given ranks in many tensors at once, by counting: for devices, where sorting
each of them would take longer, and waiting for each of them longer still."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from mergekern.fused import EVERY_INDEX
from mergekern.lazily import torch

Pair: TypeAlias = "tuple[torch.Tensor, torch.Tensor]"
# int64 [n, K, 3, 4] -> int64 [n, K, 2, 2]: what reaches the cuts of the second (strict) and of the
# first (given) windows, as Pass.windows and Pass.kept have them
Count: TypeAlias = "Callable[[torch.Tensor], torch.Tensor]"


def search(
    count: Count, ranks: torch.Tensor, numel: torch.Tensor, *, wide: bool, by_index: bool
) -> Pair:
    """int64 [n, K, 2] each: the magnitude of every rank, and the index of its element.

    ranks: int64 [n, K, 2], counted from 1; what is found for 0 means nothing
    numel: int64 [n];  wide: magnitudes have 63 bits, not 31

    A count tells for two cuts how many reach them, so that a third is left of where the wanted one
    may lie; then, with `by_index`, the same for the index of the last element that it keeps.
    """
    every = torch.full_like(ranks, EVERY_INDEX)
    # The magnitude of a rank is the largest that so many reach: one below the first that fewer do.
    bound = 2**63 - 1 if wide else 2**31
    magnitude = -1 + _first(
        lambda cuts: [reach < ranks for reach in _reach(count, cuts, (every, every))],
        torch.zeros_like(ranks),
        torch.full_like(ranks, bound),
        bound,
    )
    if not by_index:
        return magnitude, every
    # With what is larger, there are so many up to its last index, and fewer up to any before.
    ends = (numel - 1).view(-1, 1, 1).expand_as(ranks)
    place = _first(
        lambda at: [reach >= ranks for reach in _reach(count, (magnitude, magnitude), at)],
        torch.full_like(ranks, -1),
        ends,
        int(numel.max()),
    )
    return magnitude, place


def windows(
    ranks: torch.Tensor,
    magnitude: torch.Tensor,
    place: torch.Tensor,
    numel: torch.Tensor,
    *,
    by_index: bool,
) -> torch.Tensor:
    """int64 [n, K, 4]: the windows that keep what ranks say; see fused.Batch."""
    every = torch.full_like(ranks, EVERY_INDEX)
    sides = torch.tensor([0, 0 if by_index else 1], device=ranks.device)
    nothing = torch.tensor([0, EVERY_INDEX], device=ranks.device)
    cut = torch.where(ranks > 0, magnitude + sides, nothing)
    told = by_index & (ranks > 0) & (place < (numel - 1).view(-1, 1, 1))
    last = torch.where(told, place, every)
    return torch.stack([cut, last], -1).flatten(-2)


def _first(
    holds: Callable[[Pair], Sequence[torch.Tensor]],
    low: torch.Tensor,
    high: torch.Tensor,
    width: int,
) -> torch.Tensor:
    """The first number that something holds for. It holds for `high` and whatever follows it, not
    for `low`, and these are no more than `width` apart."""
    while width > 1:
        third = (high - low) // 3
        first = torch.maximum(low + third, torch.minimum(low + 1, high))
        second = torch.maximum(low + 2 * third, first)
        at_first, at_second = holds((first, second))
        low, high = (
            torch.where(at_first, low, torch.where(at_second, first, second)),
            torch.where(at_first, first, torch.where(at_second, second, high)),
        )
        # The last third is the longest; what is a little narrower may have a longer one.
        width = max(w - 2 * (w // 3) if w > 2 else 1 for w in range(max(1, width - 2), width + 1))
    return high


def _reach(count: Count, cuts: Pair, lasts: Pair) -> Pair:
    """How many magnitudes reach two cuts of either side of a window, with their last indices."""
    both = [torch.stack(pair, -1).flatten(-2) for pair in zip(cuts, lasts, strict=True)]
    kept = count(torch.stack([both[0], both[1], both[0]], -2))
    return kept[..., 1], kept[..., 0]
