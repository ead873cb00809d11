"""What statistics read: tensors as tiles, as often as they like."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from mergekern.fused import Tile
from mergekern.plan import Plan, Step

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


def alignment(step: Step) -> int:
    """Tiles of an output tensor start at multiples of this many elements."""
    panel = 1 if step.spec is None else step.spec.panel(step.shape)
    if step.equations is not None:
        panel = step.equations.panel(step.shape)
    return math.lcm(TILE_ALIGN, panel)


def alignments(plans: Sequence[Plan], rows: Sequence[np.ndarray], count: int) -> np.ndarray:
    """Where the tiles of each output may start, for all plans that make it."""
    align = np.full(count, TILE_ALIGN)
    for plan, row in zip(plans, rows, strict=True):
        if plan.solutions is not None or any(spec.prunes for spec in plan.specs):
            align[row] = np.lcm(align[row], [alignment(step) for step in plan.steps])
    return align


class Tensors(Protocol):
    """The tensors of some merge steps, that can be read more than once.

    stretch: how many elements of a tensor are worth reading as one
    tiles(): all of every tensor, in order; a tile is valid until the next one is taken, and starts
             at a multiple of alignment() of its step
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
    """Elements [start, stop) of a tile that begins its tensor; start: a multiple of 8 where it has
    masks."""
    base = None if tile.base is None else tile.base[start:stop]
    experts = tuple(x[start:stop] for x in tile.experts)
    masks = tuple(None if m is None else m[start // 8 : -(-stop // 8)] for m in tile.masks)
    return replace(tile, offset=start, base=base, experts=experts, masks=masks)
