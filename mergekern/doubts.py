"""Open elements: those whose outcome a guessed cut leaves open, kept until it is known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from mergekern.arrays import Array, empty_like, reached
from mergekern.backends import Backend
from mergekern.fused import EVERY_INDEX, Findings, FusedOp, Tile, Window
from mergekern.plan import Step
from mergekern.tiles import Part, cut


@dataclass(frozen=True)
class Doubt:
    """The open elements of one tile: their indices in the tensor (ascending), and their values."""

    step: Step
    index: Array
    tile: Tile

    def window(self, window: Window) -> Window:
        """The same window, its last indices counted among these elements."""
        return replace(
            window, lo_last=self._last(window.lo_last), hi_last=self._last(window.hi_last)
        )

    def merge(self, backend: Backend, op: FusedOp, out: Array) -> Findings:
        """Merge these elements into `out`, one behind the other.

        Nothing may be dropped at random: a coin goes by the index in the tensor.
        """
        experts = tuple(replace(e, window=self.window(e.window)) for e in op.experts)
        return backend.fuse(replace(op, experts=experts), self.tile, out)

    def fuse(self, backend: Backend, op: FusedOp, out: Array) -> Findings:
        """Merge these elements and put them where they belong in `out`, the whole tensor."""
        merged = empty_like(out, self.tile.numel)
        found = self.merge(backend, op, merged)
        backend.put(merged, self.index, out)
        return found

    def _last(self, last: int) -> int:
        if last == EVERY_INDEX:
            return last
        return reached(self.index, last) - 1


class Doubts(Protocol):
    """Where doubts are kept, in the order of their tensors and, in these, of their elements."""

    def append(self, doubt: Doubt, /) -> None: ...

    def sizes(self) -> Sequence[tuple[Step, int]]: ...

    def __getitem__(self, number: int, /) -> Doubt: ...

    def __iter__(self) -> Iterator[Doubt]: ...


class HeldDoubts(list[Doubt]):
    """Doubts in memory."""

    def sizes(self) -> Sequence[tuple[Step, int]]:
        return [(doubt.step, doubt.tile.numel) for doubt in self]


class DoubtTensors:
    """Doubts as tensors of their own, for what is searched among them."""

    stretch = 0

    def __init__(self, doubts: Doubts) -> None:
        self._doubts = doubts
        sizes = doubts.sizes()
        self.steps = [
            replace(step, name=f"{step.name} {number}", shape=(size,))
            for number, (step, size) in enumerate(sizes)
        ]
        self._number = {step.name: number for number, step in enumerate(self.steps)}

    def tiles(self) -> Iterator[tuple[Step, Tile]]:
        for step, doubt in zip(self.steps, self._doubts, strict=True):
            yield step, doubt.tile

    def parts(self, parts: Sequence[Part]) -> Iterator[tuple[Sequence[Part], Tile]]:
        for part in parts:
            doubt = self._doubts[self._number[part.step.name]]
            yield [part], replace(cut(doubt.tile, part.start, part.stop), offset=0)
