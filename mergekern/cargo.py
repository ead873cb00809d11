"""What a flight carries for one of those who merge it: inputs, and room for outputs."""

from __future__ import annotations

import numpy as np

from mergekern.arena import Arena
from mergekern.arrays import Array, address
from mergekern.extents import Share
from mergekern.fused import Tile
from mergekern.table import MEMORY, NONE, Target


class Cargo:
    """What a flight carries for one target: the inputs of its pieces, and room for its outputs."""

    def __init__(self, begin: int, arena: Arena, target: Target, share: Share) -> None:
        """begin: of the flight, in the arena."""
        self.pieces = share.pieces
        self.spans = share.spans
        self._begin = begin
        self._arena = arena
        self._target = target
        self._share = share
        self._views: list[Array] = []  # of models in memory, while addresses are in use

    def tile(self, piece: int) -> Tile:
        """The inputs of one piece."""
        row, start = int(self.pieces.row[piece]), int(self.pieces.start[piece])
        step = self._target.steps[row]
        base = None if step.base is None else self._input(piece, 0)
        experts = (self._input(piece, 1 + place) for place in range(len(step.experts)))
        return Tile(step.name, start, base, tuple(experts))

    def out(self, piece: int) -> np.ndarray:
        """Where a piece's output belongs, flat, in its dtype."""
        dtype = self._target.steps[int(self.pieces.row[piece])].dtype
        begin, end = self._target.places(
            self.pieces.row[piece], self.pieces.start[piece], self.pieces.stop[piece]
        )
        return self._view(int(self._share.outs[piece]), int(end - begin)).view(dtype)

    def inputs(self, chosen: np.ndarray) -> np.ndarray:
        """Addresses of the inputs of some pieces, a column each, the base first; 0 for none."""
        file = self._target.file[self.pieces.row[chosen]]
        found = self._share.inputs[chosen] + (self._arena.address + self._begin)
        found[file == NONE] = 0
        for at, place in np.argwhere(file == MEMORY).tolist():
            view = self._input(int(chosen[at]), place)
            self._views.append(view)
            found[at, place] = address(view)
        return found

    def outs(self, chosen: np.ndarray) -> np.ndarray:
        """Addresses of the outputs of some pieces."""
        found: np.ndarray = self._share.outs[chosen] + (self._arena.address + self._begin)
        return found

    def bytes(self, begin: int, length: int) -> memoryview:
        first = self._begin + begin
        return self._arena.bytes[first : first + length]

    def _input(self, piece: int, place: int) -> Array:
        """One input of one piece, flat, in its own dtype."""
        row, start, stop = (
            int(column[piece]) for column in (self.pieces.row, self.pieces.start, self.pieces.stop)
        )
        checkpoint, info = self._target.source(row, place)
        if self._target.file[row, place] == MEMORY:
            return checkpoint.read(info.name, start, stop, None)
        length = (stop - start) * info.dtype.itemsize
        begin = int(self._share.inputs[piece, place])
        return self._view(begin, length).view(info.dtype)

    def _view(self, begin: int, length: int) -> np.ndarray:
        first = self._begin + begin
        return self._arena.array[first : first + length]
