"""What a method's function may have to know of a whole tensor: sums, order statistics, and numbers
of rows and columns. None of them depends on how the tensor is cut, or on threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np

from mergekern.arrays import as_tensor, joined
from mergekern.backends import BLOCK, CHUNK, Backend
from mergekern.backends.cpu import CpuBackend
from mergekern.backends.functions import Inputs, widened
from mergekern.counting import keys_by_counting
from mergekern.dtypes import FLOAT64, to_torch
from mergekern.elementary import total
from mergekern.function import Found, Function
from mergekern.fused import ExpertScalars, FusedOp, Tile
from mergekern.lazily import torch
from mergekern.methods.elementwise import overlaps
from mergekern.pieces import each, pieces
from mergekern.plan import Step
from mergekern.tiles import Part, Tensors, cut

ROWS = 64  # that are added up at once, where columns are summed
LONGEST = 16 * CHUNK  # elements of a tile that is made of others

Elementwise: TypeAlias = "Callable[..., torch.Tensor]"


class Survey:
    """One tensor, as the survey of a function sees it; every call reads it once, rank() more often.

    shape:     of the tensor
    row_width: elements of a row, a run along the last dimension; of one dimension it is one row
    numel:     of the tensor
    inputs:    how many experts there are
    """

    def __init__(self, backend: Backend, tensors: Tensors) -> None:
        (self._step,) = tensors.steps
        self._backend, self._tensors = backend, tensors
        self.shape = self._step.shape
        self.row_width = self.shape[-1] if self.shape else 1
        self.numel = self._step.numel
        self.inputs = len(self._step.experts)

    def sums(self, function: Elementwise, **parameters: Any) -> torch.Tensor:
        """fp64: the sums of what an elementwise function(base, experts, **parameters) makes of the
        tensor, over the last dimension of what it returns; of booleans, how many are true.

        Per BLOCK elements by halves, the blocks in order.
        """
        if isinstance(self._backend, CpuBackend) and function is overlaps:
            return self._overlaps(self._backend, **parameters)

        def of_blocks(tile: Tile) -> torch.Tensor:
            values = function(*self._seen(tile, (-1,)), **parameters)
            room = -values.shape[-1] % BLOCK
            blocks = torch.nn.functional.pad(values, (0, room)).unflatten(-1, (-1, BLOCK))
            counts = values.dtype == torch.bool  # the same in any order
            return (blocks.sum(-1) if counts else total(blocks.double())).double().cpu()

        blocks = torch.cat(list(self._map(of_blocks, BLOCK)), -1).numpy()
        return torch.from_numpy(np.add.accumulate(blocks, -1)[..., -1])

    def _overlaps(self, backend: CpuBackend, *, epsilon: float) -> torch.Tensor:
        tiles = (tile for _, tile in self._tensors.tiles())
        counts = [backend.overlaps(tile, self._step.work, epsilon) for tile in tiles]
        return torch.from_numpy(np.sum(counts, axis=0)).double()

    def rows(self, function: Elementwise) -> torch.Tensor:
        """fp64 [rows, ...] of function(base, experts), which sees whole rows, [r, row_width], and
        returns [r, ...]: a row's numbers may go by nothing else, sums by elementary.total()."""

        def of_rows(tile: Tile) -> torch.Tensor:
            return function(*self._seen(tile, (-1, self.row_width))).double()

        return torch.cat(list(self._map(of_rows, self.row_width)))

    def column_sums(self, function: Elementwise) -> torch.Tensor:
        """fp64 [..., columns]: sums along the first dimension, the others being one, of what an
        elementwise function(base, experts) makes of [r, columns].

        Per ROWS rows by halves, these in order.
        """
        columns = self._step.numel // self.shape[0] if self.shape else 1

        def of_rows(tile: Tile) -> torch.Tensor:
            values = function(*self._seen(tile, (-1, columns))).double()
            padded = torch.nn.functional.pad(values, (0, 0, 0, -values.shape[-2] % ROWS))
            parts = padded.unflatten(-2, (-1, ROWS)).transpose(-1, -2)
            return total(parts).movedim(-2, 0)

        sums: torch.Tensor | None = None
        for parts in self._map(of_rows, ROWS * columns):
            for part in parts:
                sums = part if sums is None else sums + part
        assert sums is not None, f"{self._step.name} is empty"
        return sums

    def ascending(
        self, function: Elementwise, places: Sequence[int], found: Found
    ) -> list[torch.Tensor]:
        """What stands at these places, from 0 on, when an elementwise function(base, experts,
        found), which is nowhere negative, is sorted: exactly, by counting."""
        numel, work = self._step.numel, self._step.work
        made = _Derived(self._tensors, function, found, self._backend)
        ranks = {(0, which): numel - place for which, place in enumerate(places)}
        keys = keys_by_counting(self._backend, made, work, ranks, by_index=False)
        bits = [keys[wanted].magnitude for wanted in ranks]
        narrow = torch.int64 if work == FLOAT64 else torch.int32
        return list(torch.tensor(bits, dtype=narrow).view(to_torch(work)))

    def _seen(self, tile: Tile, shape: tuple[int, ...]) -> Inputs:
        base, experts = widened(tile, self._step.work)
        return None if base is None else base.view(shape), [x.view(shape) for x in experts]

    def _map(self, do: Callable[[Tile], torch.Tensor], unit: int) -> Iterator[torch.Tensor]:
        """What is made of the tensor, piece by piece of whole units, in order."""
        for tile in _in_units(self._tensors, unit):
            device = as_tensor(tile.experts[0]).device
            parts = [cut(tile, *part) for part in pieces(tile.numel, device, unit)]
            yield from each(self._backend.lanes, do, parts)


class _Derived:
    """Tensors(Protocol) of one tensor that is made of another, by an elementwise function."""

    stretch = CHUNK

    def __init__(
        self, tensors: Tensors, function: Elementwise, found: Found, backend: Backend
    ) -> None:
        (self._source,) = tensors.steps
        one = replace(self._source, experts=self._source.experts[:1], expert_index=(0,))
        self.steps: list[Step] = [one]
        self._tensors, self._backend = tensors, backend
        experts = tuple(ExpertScalars(index, 1.0) for index in self._source.expert_index)
        made = Function("what is sorted", function, lambda *_: found, digest="")
        self._op = FusedOp("function", experts, work=one.work, function=made, found=found)

    def tiles(self) -> Iterator[tuple[Step, Tile]]:
        for _, tile in self._tensors.tiles():
            whole = tile.as_tensors()
            for start in range(0, tile.numel, LONGEST):
                part = cut(whole, start, min(start + LONGEST, tile.numel))
                yield self.steps[0], self._made(replace(part, offset=tile.offset + start))

    def parts(self, parts: Sequence[Part]) -> Iterator[tuple[Sequence[Part], Tile]]:
        for part in parts:
            ((_, tile),) = self._tensors.parts([replace(part, step=self._source)])
            made = self._made(replace(tile.as_tensors(), offset=part.start))
            yield [part], replace(made, offset=0)

    def _made(self, tile: Tile) -> Tile:
        """Of one tile; its base is zero, as magnitudes are those of differences."""
        work, device = self.steps[0].work, as_tensor(tile.experts[0]).device
        made = torch.empty(tile.numel, dtype=to_torch(work), device=device)
        self._backend.fuse(self._op, tile, made)
        zero = torch.zeros(tile.numel, dtype=torch.bfloat16, device=device)
        return Tile(tile.tensor, tile.offset, zero, (made,))


def _in_units(tensors: Tensors, unit: int) -> Iterator[Tile]:
    """The tensor in tiles of whole units, but for its last: what a tile has left of one waits for
    the next tile."""
    kept: Tile | None = None
    for _, given in tensors.tiles():
        tile, start = given.as_tensors(), 0
        if kept is not None:
            start = min(unit - kept.numel, tile.numel)
            kept = _joined(kept, cut(tile, 0, start))
            if kept.numel == unit:
                yield kept
                kept = None
        stop = start + (tile.numel - start) // unit * unit
        if stop > start:
            yield cut(tile, start, stop)
        if stop < tile.numel:
            kept = _joined(None, cut(tile, stop, tile.numel))
    if kept is not None:
        yield kept


def _joined(first: Tile | None, second: Tile) -> Tile:
    """A copy of one tile, or of two behind one another."""
    tiles = (second,) if first is None else (first, second)
    base = None if second.base is None else joined([t.base for t in tiles if t.base is not None])
    experts = tuple(joined(each) for each in zip(*(t.experts for t in tiles), strict=True))
    return Tile(second.tensor, 0, base, experts)
