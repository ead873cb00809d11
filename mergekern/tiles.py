"""What statistics read: one tensor as tiles, as often as they like."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from mergekern.fused import Tile
from mergekern.plan import Step

TILE_ALIGN = 1 << 16  # tiles start at multiples of this many elements: sums do not depend on them


class TileSource(Protocol):
    """One tensor as tiles that can be read more than once.

    tiles() covers the tensor in order; a tile is valid until the next one is taken, and starts at
    a multiple of TILE_ALIGN. part() gives elements [start, stop), at most TILE_ALIGN from a
    multiple of it on. sample() gives about `share` of the tensor, all of it for 1, in stretches of
    about `run` elements that are spread evenly.
    """

    step: Step

    def tiles(self) -> Iterator[Tile]: ...

    def part(self, start: int, stop: int) -> Tile: ...

    def sample(self, share: float, run: int) -> Iterator[Tile]: ...
