"""From a spec to a fused op: the thresholds and sums that a method needs before its fused pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from mergekern.backends import Backend
from mergekern.fused import FusedOp, Tile, Window
from mergekern.plan import Step

TILE_ALIGN = 1 << 16  # tiles start at multiples of this many elements: sums do not depend on them


class TileSource(Protocol):
    """One tensor as tiles that can be read more than once.

    tiles() covers the tensor in order; a tile is valid until the next one is taken, and starts at a
    multiple of TILE_ALIGN. sample(runs, length) gives `runs` short tiles of at most `length`
    elements each, spread evenly over the tensor.
    """

    step: Step

    def tiles(self) -> Iterator[Tile]: ...

    def sample(self, runs: int, length: int) -> Iterator[Tile]: ...


ModelWindows = dict[str, tuple[Window, ...]]  # output tensor -> one window per expert of its step


def model_windows(backend: Backend, sources: Sequence[TileSource]) -> ModelWindows:
    """The trimming windows of scope="model" for every given tensor, in two or rarely three reads."""
    raise NotImplementedError


def resolve(backend: Backend, source: TileSource, windows: ModelWindows | None) -> FusedOp:
    """The fused op of a merge step; reads the tensor only if its spec needs statistics of it."""
    raise NotImplementedError
