"""Work on tensors in pieces that stay in cache, several at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

PIECE = 1 << 15  # elements
DEVICE_PIECE = 1 << 20  # a launch each is what costs there

Item = TypeVar("Item")
Result = TypeVar("Result")


def pieces(numel: int, device: torch.device, unit: int = 1) -> list[tuple[int, int]]:
    """Runs [start, stop) of whole units, as many as fit a piece, but at least one each."""
    most = PIECE if device.type == "cpu" else DEVICE_PIECE
    length = max(1, most // unit) * unit
    return [(start, min(start + length, numel)) for start in range(0, numel, length)]


def each(threads: int, do: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """What is done of every item, in their order. torch's operations let other threads run; its
    own, which would run against ours, are put to rest."""

    def alone(item: Item) -> Result:
        with torch.no_grad():  # which holds for the thread that says so alone, as the next line
            torch.set_num_threads(1)
            return do(item)

    before = torch.get_num_threads()
    try:
        if threads == 1 or len(items) <= 1:
            return [alone(item) for item in items]
        with ThreadPoolExecutor(min(threads, len(items))) as pool:
            return list(pool.map(alone, items))
    finally:
        torch.set_num_threads(before)
