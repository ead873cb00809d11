"""Tensors to find numbers of: held whole, or in tiles."""

from __future__ import annotations

from collections.abc import Sequence

from mergekern.dtypes import FLOAT32, DType
from mergekern.fused import Tile
from mergekern.plan import Input, Step
from mergekern.sources import Resident
from mergekern.spec import Spec
from mergekern.tiles import cut


class Tiled:
    """Tensors in several tiles, as those larger than the budget are read."""

    stretch = 1000

    def __init__(self, tensors: Sequence[tuple[Step, Tile]], length: int) -> None:
        self.steps = [step for step, _ in tensors]
        self.whole, self.length, self.reads = {id(pair[0]): pair for pair in tensors}, length, 0

    def tiles(self):
        self.reads += 1
        for step in self.steps:
            for start in range(0, step.numel, self.length):
                stop = min(step.numel, start + self.length)
                yield step, cut(self.whole[id(step)][1], start, stop)

    def parts(self, parts):
        for part in parts:
            tile = cut(self.whole[id(part.step)][1], part.start, part.stop)
            yield [part], Tile(tile.tensor, 0, tile.base, tile.experts)


def spec_of(experts: int, **changes) -> Spec:
    row = (1.0,) * experts
    defaults = {"rule": "task_vector", "density": row, "gamma": (0.0,) * experts, "keep": row}
    return Spec(weight=row, **(defaults | changes))


def tensors_of(tiles: list[Tile], spec: Spec, length: int = 0, work=FLOAT32):
    pairs = [step_of(t, spec, f"w{i}", work) for i, t in enumerate(tiles)]
    return Tiled(pairs, length) if length else Resident(pairs)


def step_of(t: Tile, spec: Spec, name: str, work: DType):
    experts = tuple(Input(i + 1, name) for i in range(len(t.experts)))
    places = tuple(range(len(t.experts)))
    step = Step(name, "merge", FLOAT32, (t.numel,), Input(0, name), experts, places, work, spec)
    return step, Tile(name, 0, t.base, t.experts)
