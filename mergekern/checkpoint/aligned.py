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
import torch

from mergekern.checkpoint.base import Checkpoint, TensorInfo
from mergekern.checkpoint.contents import Contents

SCRATCH = 1 << 20  # bytes that one read() holds besides the buffer, or one row
ALIGNED = 64  # what read() may expect of a buffer


@dataclass(frozen=True, eq=False)
class Fill:
    """Rows that a model lacks: the mean of rows of some tensors, exact where there is but one.

    parts: whose tensor, and its name; all have rows of one width
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
        self._means: dict[str, torch.Tensor] = {}
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
        self.tensors = Contents(inner.tensors)
        for name, rows in maps.items():
            info = inner.tensors[rows.source]
            self.tensors[name] = TensorInfo(name, info.dtype, _shape(info, len(rows.own)))

    def read(self, name: str, start: int, stop: int, buffer: torch.Tensor | None) -> torch.Tensor:
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
            size = (stop - start) * info.dtype.itemsize
            buffer = torch.empty(size, dtype=torch.uint8, device=self.device)
        out = buffer[: (stop - start) * info.dtype.itemsize].view(info.dtype)
        for begin, end in _runs(own):
            # A range may begin and end inside a row.
            left = max((first + begin) * width, start)
            right = min((first + end) * width, stop)
            place = out[left - start : right - start]
            if own[begin] >= 0:
                shift = (int(own[begin]) - first - begin) * width
                _copy(self._inner, rows.source, left + shift, right + shift, place)
            else:
                self._fill(name, left, right, width, place)
        return out

    def span(self, name: str) -> tuple[int, int]:
        """Of the tensor that the rows are taken from."""
        return self._inner.span(self._maps[name].source if name in self._maps else name)

    def verify_unchanged(self) -> None:
        """Raise CheckpointError when a file of the inner checkpoint changed."""
        self._inner.verify_unchanged()

    def close(self) -> None:
        """Close the inner checkpoint."""
        self._inner.close()

    def _fill(self, name: str, start: int, stop: int, width: int, place: torch.Tensor) -> None:
        """Elements [start, stop) of rows that are not the model's own."""
        rows = self._maps[name]
        padded_from = len(rows.own) if rows.padded_from is None else rows.padded_from
        step = max(1, SCRATCH // (8 * width))
        first, last = start // width, -(-stop // width)
        for begin in range(first, min(last, padded_from), step):
            end = min(begin + step, last, padded_from)
            values = _mean(rows.fill, begin, end, width, place.dtype).view(-1)
            left, right = max(begin * width, start), min(end * width, stop)
            place[left - start : right - start] = values[left - begin * width :][: right - left]
        for row in range(max(first, padded_from), last):
            left, right = max(row * width, start), min((row + 1) * width, stop)
            mean = self._padding(name, width)
            place[left - start : right - start] = mean[left - row * width :][: right - left]

    def _padding(self, name: str, width: int) -> torch.Tensor:
        """The mean of a tensor's rows but for the padding, summed in fp64 and rounded once."""
        with self._lock:
            if name not in self._means:
                info, real = self.tensors[name], self._maps[name].padded_from
                assert real, f"{name}: padding without a row to take the mean of"
                step = max(1, SCRATCH // (8 * width))
                total = torch.zeros(width, dtype=torch.float64, device=self.device)
                for row in range(0, real, step):
                    end = min(row + step, real)
                    found = self.read(name, row * width, end * width, None)
                    total += found.view(-1, width).to(torch.float64).sum(0)
                self._means[name] = (total / real).to(info.dtype)
            return self._means[name]


def _shape(info: TensorInfo, rows: int) -> tuple[int, ...]:
    """With another number of rows."""
    axis = _axis(info)
    return (*info.shape[:axis], rows, *info.shape[axis + 1 :])


def _runs(own: np.ndarray) -> Iterator[tuple[int, int]]:
    """Stretches of an index map that follow each other in their source, or have none at all."""
    follows = (np.diff(own) == 1) & (own[:-1] >= 0) | (own[1:] < 0) & (own[:-1] < 0)
    ends = np.flatnonzero(~follows) + 1
    edges = [0, *ends.tolist(), len(own)] if len(own) else []
    yield from pairwise(edges)


def _copy(checkpoint: Checkpoint, name: str, start: int, stop: int, place: torch.Tensor) -> None:
    """Read elements into their place."""
    if place.data_ptr() % ALIGNED == 0:
        found = checkpoint.read(name, start, stop, place.view(torch.uint8))
        if found.data_ptr() != place.data_ptr():
            place.copy_(found)
        return
    step = max(1, SCRATCH // place.dtype.itemsize)
    for at in range(start, stop, step):
        end = min(at + step, stop)
        place[at - start : end - start] = checkpoint.read(name, at, end, None)


def _mean(fill: Fill, begin: int, end: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    """Filled rows [begin, end): sums in fp32, in fp64 for fp64, in the order of the parts."""
    work = torch.promote_types(dtype, torch.float32)
    rows = fill.rows[:, begin:end]
    device = fill.parts[0][0].device if fill.parts else torch.device("cpu")
    total = torch.full((end - begin, width), -0.0, dtype=work, device=device)  # keeps -0.0 as it is
    for part, (checkpoint, name) in enumerate(fill.parts):
        for first, last in _runs(rows[part]):
            row = int(rows[part, first])
            if row >= 0:
                start, stop = row * width, (row + last - first) * width
                total[first:last] += checkpoint.read(name, start, stop, None).view(-1, width)
    count = torch.from_numpy((rows >= 0).sum(axis=0)).to(device, work)[:, None]
    return torch.where(count > 0, total / count.clamp(min=1), 0.0).to(dtype)


def rows_in(info: TensorInfo) -> int:
    """Of a vocabulary-indexed tensor, which may be a bias stored as the one row of a matrix."""
    return info.shape[_axis(info)]


def _axis(info: TensorInfo) -> int:
    return 1 if info.shape[0] == 1 and len(info.shape) == 2 else 0
