"""Work on tensors in pieces that stay in cache, several at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from mergekern.lazily import torch

PIECE = 1 << 15  # elements
DEVICE_PIECE = 1 << 20  # a launch each is what costs there

DENORMAL = 2.0**-1074

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

    inference = torch.is_inference_mode_enabled()  # of which tensors are, all threads must be

    def alone(item: Item) -> Result:
        with torch.inference_mode(inference), _plainly():
            return do(item)

    before = torch.get_num_threads()
    try:
        if threads == 1 or len(items) <= 1:
            return [alone(item) for item in items]
        with ThreadPoolExecutor(min(threads, len(items))) as pool:
            return list(pool.map(alone, items))
    finally:
        torch.set_num_threads(before)


@contextmanager
def _plainly() -> Iterator[None]:
    """What holds for one thread alone: no gradients, none of torch's threads, denormals kept."""
    flushes = bool(torch.tensor(DENORMAL, dtype=torch.float64) * 1.0 == 0)
    torch.set_num_threads(1)
    if flushes:
        torch.set_flush_denormal(False)
    try:
        with torch.no_grad():
            yield
    finally:
        if flushes:
            torch.set_flush_denormal(True)
