"""What statistics read: tensors as tiles, as often as they like."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from mergekern.fused import Tile
from mergekern.plan import Step

TILE_ALIGN = 1 << 16  # tiles start at multiples of this many elements: sums do not depend on them


@dataclass(frozen=True)
class Part:
    """Elements [start, stop) of one output tensor."""

    step: Step
    start: int
    stop: int

    @property
    def numel(self) -> int:
        return self.stop - self.start

    @property
    def whole(self) -> bool:
        return self.start == 0 and self.stop == self.step.numel


class Tensors(Protocol):
    """The tensors of some merge steps, that can be read more than once.

    stretch: how many elements of a tensor are worth reading as one
    tiles(): all of every tensor, in order; a tile is valid until the next one is taken, and starts
             at a multiple of TILE_ALIGN
    parts(): the parts asked for, in order, none longer than TILE_ALIGN; those that belong to one
             tensor may come joined, so that each tile is given with the parts it is made of
    """

    @property
    def steps(self) -> Sequence[Step]: ...

    @property
    def stretch(self) -> int: ...

    def tiles(self) -> Iterator[tuple[Step, Tile]]: ...

    def parts(self, parts: Sequence[Part]) -> Iterator[tuple[Sequence[Part], Tile]]: ...


def numels_of(steps: Sequence[Step]) -> dict[int, int]:
    """How many elements each expert has in these steps."""
    numels: dict[int, int] = {}
    for step in steps:
        for expert in step.expert_index:
            numels[expert] = numels.get(expert, 0) + step.numel
    return numels


def cut(tile: Tile, start: int, stop: int) -> Tile:
    """Elements [start, stop) of a tile that begins its tensor."""
    base = None if tile.base is None else tile.base[start:stop]
    return Tile(tile.tensor, start, base, tuple(x[start:stop] for x in tile.experts))
