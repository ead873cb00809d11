"""A checkpoint seen through index maps: its vocabulary-indexed tensors in another order of rows.

    aligned[i] = inner[own[i]]                              where own[i] >= 0
                 mean over k of part_k[rows_k[i]]           elsewhere; zeros without such a part
                 mean of aligned[0 .. padded_from)          from row `padded_from` on

Nothing is built in memory: a range that is asked for is gathered from the models' own storage.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from threading import Lock
from typing import Any

import numpy as np

from mergekern.arrays import Array, address, to_host
from mergekern.checkpoint.base import Checkpoint, TensorInfo
from mergekern.checkpoint.contents import Contents
from mergekern.checkpoint.placed import Placed
from mergekern.dtypes import FLOAT32, FLOAT64

PIECE = 1 << 14  # elements held besides the buffer, or one row; torch's threads wake for more
ALIGNED = 64  # what read() may expect of a buffer


@dataclass(frozen=True, eq=False)
class Fill:
    """Rows that a model lacks: the mean of rows of some tensors, exact where there is but one.

    parts: whose tensor, and its name; all have rows of one width, and lie on disk or on the CPU
    rows:  of each part and output row, the row that takes part, or -1
    """

    parts: tuple[tuple[Checkpoint, str], ...]
    rows: np.ndarray


@dataclass(frozen=True, eq=False)
class RowMap:
    """Where the rows of one tensor come from.

    source: the tensor of the inner checkpoint, which may go by another name
    own:    of each output row, a row of `source`, or -1: the fill's
    padded_from: rows from here on are the mean of those before; None: there are none
    """

    source: str
    own: np.ndarray
    fill: Fill
    padded_from: int | None = None


class AlignedCheckpoint:
    """A checkpoint some of whose tensors are gathered by rows; the rest is the inner one's.

    config: in place of the inner one's;  mark: what tells these maps from others in a fingerprint
    """

    def __init__(
        self,
        inner: Checkpoint,
        maps: Mapping[str, RowMap],
        *,
        config: Mapping[str, Any] | None = None,
        mark: str = "",
    ) -> None:
        self._inner = inner
        self._maps = maps
        self._means: dict[str, np.ndarray] = {}
        self._lock = Lock()
        self.label = inner.label
        self.shared = inner.shared
        self.config = inner.config if config is None else config
        self.generation_config = inner.generation_config
        self.folder = inner.folder
        self.fingerprint = inner.fingerprint
        if inner.fingerprint and mark:
            self.fingerprint = {**inner.fingerprint, "vocabulary": mark}
        self.states = inner.states
        self.on_disk = inner.on_disk
        self.device = inner.device
        self.files = inner.files
        self.notes = inner.notes
        self.tensors = Contents(inner.tensors)
        for name, rows in maps.items():
            info = inner.tensors[rows.source]
            shape = _shape(info, len(rows.own))
            self.tensors[name] = TensorInfo(name, info.dtype, shape, native=info.native)
        self.placed: Placed | None = None
        if inner.placed is not None:
            sources = [maps[name].source if name in maps else name for name in self.tensors]
            moved = np.array([name in maps for name in self.tensors], bool)
            self.placed = inner.placed.chosen(inner.tensors.places_of(sources), moved)

    def read(self, name: str, start: int, stop: int, buffer: np.ndarray | None) -> Array:
        """Elements [start, stop), flat; see Checkpoint.read. Views where one run gives them all."""
        if name not in self._maps:
            return self._inner.read(name, start, stop, buffer)
        info, rows = self.tensors[name], self._maps[name]
        assert 0 <= start <= stop <= info.numel
        width = info.numel // max(len(rows.own), 1)
        first, last = (start // width, -(-stop // width)) if stop > start else (0, 0)
        own = rows.own[first:last]
        if len(own) and own[0] >= 0 and (np.diff(own) == 1).all():
            shift = (int(own[0]) - first) * width
            return self._inner.read(rows.source, start + shift, stop + shift, buffer)
        if buffer is None:
            buffer = np.empty((stop - start) * info.dtype.itemsize, np.uint8)
        out = buffer[: (stop - start) * info.dtype.itemsize].view(info.dtype)
        for begin, end in _runs(own):
            # A range may begin and end inside a row.
            left = max((first + begin) * width, start)
            right = min((first + end) * width, stop)
            shift = (int(own[begin]) - first - begin) * width
            place = out[left - start : right - start]
            _copy(self._inner, rows.source, left + shift, right + shift, place)
        with np.errstate(all="ignore"):  # what is not finite is found in what is merged
            self._fill(name, first + np.flatnonzero(own < 0), start, out)
        return out

    def verify_unchanged(self) -> None:
        """Raise CheckpointError when a file of the inner checkpoint changed."""
        self._inner.verify_unchanged()

    def close(self) -> None:
        """Close the inner checkpoint."""
        self._inner.close()

    def _fill(self, name: str, rows: np.ndarray, start: int, out: np.ndarray) -> None:
        """Rows that are not the model's own, as far as they lie in `out`, a range from `start`."""
        mapped = self._maps[name]
        width = self.tensors[name].numel // len(mapped.own)
        step = max(1, PIECE // width)
        padding = len(mapped.own) if mapped.padded_from is None else mapped.padded_from
        real = int(np.searchsorted(rows, padding))
        for at in range(0, real, step):
            some = rows[at : min(at + step, real)]
            _put(_mean(mapped.fill, some, width, out), some, start, out)
        if real < len(rows):
            mean = self._padding(name, width)
            _put(np.tile(mean, (len(rows) - real, 1)), rows[real:], start, out)

    def _padding(self, name: str, width: int) -> np.ndarray:
        """The mean of a tensor's rows but for the padding, summed in fp64 and rounded once."""
        with self._lock:
            if name not in self._means:
                info, real = self.tensors[name], self._maps[name].padded_from
                assert real, f"{name}: padding without a row to take the mean of"
                step = max(1, PIECE // width)
                total = np.zeros(width)
                for row in range(0, real, step):
                    end = min(row + step, real)
                    found = to_host(self.read(name, row * width, end * width, None))
                    total += found.reshape(-1, width).astype(FLOAT64).sum(0)
                self._means[name] = (total / real).astype(info.dtype)
            return self._means[name]


def _shape(info: TensorInfo, rows: int) -> tuple[int, ...]:
    """With another number of rows."""
    axis = _axis(info)
    return (*info.shape[:axis], rows, *info.shape[axis + 1 :])


def _runs(rows: np.ndarray) -> Iterator[tuple[int, int]]:
    """Stretches of an index map that follow each other in their source, less rows without one."""
    ends = np.flatnonzero(np.diff(rows) != 1) + 1
    edges = [0, *ends.tolist(), len(rows)] if len(rows) else []
    for begin, end in pairwise(edges):
        missing = int(rows[begin]) < 0  # -1 and 0 follow each other as well
        if begin + missing < end:
            yield begin + missing, end


def _copy(checkpoint: Checkpoint, name: str, start: int, stop: int, place: np.ndarray) -> None:
    """Read elements into their place."""
    if address(place) % ALIGNED == 0:
        found = checkpoint.read(name, start, stop, place.view(np.uint8))
        if address(found) != address(place):
            place[:] = to_host(found)
        return
    step = max(1, PIECE)
    for at in range(start, stop, step):
        end = min(at + step, stop)
        place[at - start : end - start] = to_host(checkpoint.read(name, at, end, None))


def _put(values: np.ndarray, rows: np.ndarray, start: int, out: np.ndarray) -> None:
    """Rows into a range that begins at element `start`, and may begin and end inside one."""
    width, stop = values.shape[1], start + len(out)
    first, last = -(-start // width), stop // width
    whole = (rows >= first) & (rows < last)
    if whole.any():
        there = out[first * width - start : last * width - start].reshape(-1, width)
        there[rows[whole] - first] = values[whole]
    for place in np.flatnonzero(~whole).tolist():
        begin = int(rows[place]) * width
        left, right = max(begin, start), min(begin + width, stop)
        out[left - start : right - start] = values[place, left - begin : right - begin]


def _mean(fill: Fill, rows: np.ndarray, width: int, like: np.ndarray) -> np.ndarray:
    """Filled rows: sums in fp32, in fp64 for fp64, in the order of the parts; rounded once."""
    work = FLOAT64 if like.dtype == FLOAT64 else FLOAT32
    total = np.full((len(rows), width), -0.0, work)  # -0.0 + x is x
    taken = fill.rows[:, rows]
    for (checkpoint, name), mine in zip(fill.parts, taken, strict=True):
        have = np.flatnonzero(mine >= 0)
        total[have] += _gather(checkpoint, name, mine[have], width).astype(work)
    count = (taken >= 0).sum(axis=0).astype(work)[:, None]
    return np.where(count > 0, total / np.maximum(count, 1), 0).astype(like.dtype)


def _gather(checkpoint: Checkpoint, name: str, rows: np.ndarray, width: int) -> np.ndarray:
    """These rows of a tensor, behind one another."""
    dtype = checkpoint.tensors[name].dtype
    found = np.empty((len(rows), width), dtype)
    for begin, end in _runs(rows):
        first, last = int(rows[begin]) * width, (int(rows[begin]) + end - begin) * width
        _copy(checkpoint, name, first, last, found[begin:end].reshape(-1))
    return found


def rows_in(info: TensorInfo) -> int:
    """Of a vocabulary-indexed tensor, which may be a bias stored as the one row of a matrix."""
    return info.shape[_axis(info)]


def _axis(info: TensorInfo) -> int:
    return 1 if info.shape[0] == 1 and len(info.shape) == 2 else 0
