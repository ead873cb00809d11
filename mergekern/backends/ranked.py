"""Batches whose tensors are trimmed by ranks, on a device: one pass over them, and a little more.

    sample -> two cuts around every wanted one
    one launch over all: merge by the upper cut, count, mark what lies between the two
    among what is marked, gathered: the exact cuts; merge again, scatter

All tensors take these steps together, and the host waits a few times for all of them, not for each.
The same as OnePass does for one tensor (mergekern/onepass.py), where what is sampled or open is
looked at on the host. Small tensors are counted as often as it takes instead: they stay in cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from mergekern.backends import CHUNK
from mergekern.backends import ranks as by_rank
from mergekern.backends.brackets import Launches, bracket
from mergekern.backends.launch import Pass, findings, upload
from mergekern.fused import EVERY_INDEX, KEEP_ALL, Batch, Findings, FusedOp

MOST_OPEN = 1 / 2  # of all elements; a guess that leaves more is given up
TOGETHER = 1 << 29  # elements of tensors that are looked at together: what is open takes memory
ALIGN = 8  # elements: what the quick kernels take at a time begins at a multiple of 16 bytes
TILE = 1 << 40  # more than a tensor has elements: tells the places of tiles apart


def fuse_ranked(on: Launches, op: FusedOp, batch: Batch) -> dict[int, Findings]:
    """Find the windows that a batch's ranks stand for, write them into its column, and merge."""
    assert batch.ranks is not None and batch.windows is not None
    found: dict[int, Findings] = {}
    drops = any(expert.keep_below < KEEP_ALL for expert in op.experts)  # coins go by the place
    size = np.where((batch.numel <= CHUNK) | drops, 0, np.frexp(batch.numel)[1])
    for kind, rows in _together(size, batch.numel):
        part = _some(batch, rows)
        ranks, numel = upload(batch.ranks[rows], on.device), upload(part.numel, on.device)
        exact, news = (_guessed if kind else _counted)(on, op, part, ranks, numel)
        batch.windows[rows] = exact.cpu().numpy()
        found |= {int(rows[tile]): seen for tile, seen in news.items()}
    return dict(sorted(found.items()))


def _together(size: np.ndarray, numel: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """The rows of each size; of large ones, no more at a time than TOGETHER allows."""
    for kind in np.unique(size).tolist():
        rows = np.flatnonzero(size == kind)
        before = np.cumsum(numel[rows]) - numel[rows]
        bounds = np.flatnonzero(np.diff(before // TOGETHER)) + 1
        yield from ((kind, part) for part in (np.split(rows, bounds) if kind else [rows]))


def _counted(
    on: Launches, op: FusedOp, batch: Batch, ranks: torch.Tensor, numel: torch.Tensor
) -> tuple[torch.Tensor, dict[int, Findings]]:
    """The exact windows, and what was found: of tensors that are small, or seldom come."""
    exact = _by_counting(on, op, batch, ranks, numel)
    return exact, findings(on.start(op, batch, exact[:, :, None]).found)


def _by_counting(
    on: Launches, op: FusedOp, batch: Batch, ranks: torch.Tensor, numel: torch.Tensor
) -> torch.Tensor:
    """int64 [n, K, 4]: the exact windows."""
    wide, by_index = op.work == torch.float64, batch.by_index
    count = _counter(on, op, batch)
    magnitude, place = by_rank.search(count, ranks, numel, wide=wide, by_index=by_index)
    return by_rank.windows(ranks, magnitude, place, numel, by_index=batch.by_index)


def _counter(on: Launches, op: FusedOp, batch: Batch) -> by_rank.Count:
    """Launches that count, for any windows."""
    looking = replace(batch, outs=np.zeros_like(batch.outs))
    room = int(batch.numel.max(initial=0)) // 8 + 1
    unread = torch.empty(room, dtype=torch.uint8, device=on.device)  # marks that nobody looks at

    def count(windows: torch.Tensor) -> torch.Tensor:
        return on.start(op, looking, windows, np.full(len(batch), unread.data_ptr())).kept

    return count


def _guessed(
    on: Launches, op: FusedOp, batch: Batch, ranks: torch.Tensor, numel: torch.Tensor
) -> tuple[torch.Tensor, dict[int, Findings]]:
    """The same of large tensors, all of about one size."""
    by_index = batch.by_index
    guess = bracket(on, op, batch, ranks, numel)
    nbytes = -(-batch.numel // 8)
    marks = torch.empty(int(nbytes.sum()), dtype=torch.uint8, device=on.device)
    marked = marks.data_ptr() + np.cumsum(nbytes) - nbytes
    first = on.start(op, batch, guess, marked)
    open_ = _Open(on, op, batch, first, _places(marks, nbytes))
    sure, reached = first.kept.unbind(-1)
    off = ranks - reached  # so many are left out by the given cuts that belong in
    among = open_.count(guess[:, :, 0], guess[:, :, 2])
    won = (sure <= (ranks if by_index else ranks - 1)) & (off <= among[..., 0] - among[..., 1])
    lost = ~(won | (ranks == 0)).flatten(1).all(1)
    # Of what is open, so many reach the wanted cut; where none is left out, it is the given one.
    rank = torch.where((ranks > 0) & (off > 0), off + among[..., 1], 0)
    exact, here = open_.windows(rank, guess[:, :, 0], by_index)
    found = findings(first.found | open_.merge(here))
    again = lost.cpu().numpy()
    # Too large a result may have been one that went by a wrong guess.
    again[[tile for tile, seen in found.items() if seen.overflow]] = True
    rows = np.flatnonzero(again)
    if len(rows):
        part, chosen = _some(batch, rows), upload(rows, on.device)
        exact[chosen], redone = _counted(on, op, part, ranks[chosen], numel[chosen])
        found = {tile: seen for tile, seen in found.items() if not again[tile]}
        found |= {int(rows[tile]): seen for tile, seen in redone.items()}
    return exact, found


def _places(marks: torch.Tensor, nbytes: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """int64 [m], [n + 1]: the places of marked elements in their tiles, and where those of each
    tile begin; none, where they are too many."""
    device = marks.device
    byte = marks.nonzero()[:, 0]  # most are 0: only the others become eight places each
    ends = upload(np.cumsum(nbytes), device)
    is_set = (marks[byte, None] >> torch.arange(8, dtype=torch.uint8, device=device)) & 1
    if int(is_set.count_nonzero()) > 8 * len(marks) * MOST_OPEN:
        is_set = is_set[:0]
    number, bit = is_set.nonzero().unbind(1)
    byte = byte[number]
    tiles = torch.searchsorted(ends, byte, right=True)
    place = (byte - (ends - upload(nbytes, device))[tiles]) * 8 + bit
    numbers = torch.arange(len(nbytes) + 1, device=device)
    return place, torch.searchsorted(tiles, numbers)


class _Open:
    """What a guess left open: its elements, tile by tile, as tiles of their own."""

    def __init__(
        self,
        on: Launches,
        op: FusedOp,
        batch: Batch,
        todo: Pass,
        places: tuple[torch.Tensor, torch.Tensor],
    ) -> None:
        self._on, self._op, self._todo = on, op, todo
        self._place, self._starts = places
        self._numel = self._starts.diff()
        numel = self._numel.cpu().numpy()
        room = -(-numel // ALIGN) * ALIGN
        starts = np.cumsum(room) - room
        self._gaps = self._with_gaps(room, upload(starts, on.device))
        self._merged = torch.empty(int(room.sum()), dtype=batch.out, device=on.device)
        lines: Sequence[torch.Tensor] = []
        if len(self._place):
            base, experts = on.gather(todo, *self._gaps)
            lines = [base, *experts]
        self._lines = lines  # kept: addresses of them are in use
        columns = [line.data_ptr() + starts * line.element_size() for line in lines]
        self._batch = replace(
            batch,
            inputs=np.stack(columns, 1).astype(np.uint64) if columns else 0 * batch.inputs,
            outs=(self._merged.data_ptr() + starts * batch.out.itemsize).astype(np.uint64),
            offset=np.zeros_like(batch.offset),
            numel=numel,
            windows=None,
            ranks=None,
        )

    def count(self, given: torch.Tensor, wide: torch.Tensor) -> torch.Tensor:
        """int64 [n, K, 2, 2]: how many reach the wide, and the given cuts."""
        cuts = [self._mine(given), self._mine(wide)]
        return _counter(self._on, self._op, self._batch)(torch.stack([*cuts, cuts[0]], 2))

    def windows(
        self, ranks: torch.Tensor, given: torch.Tensor, by_index: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """int64 [n, K, 4] each: the windows that keep what ranks among these elements say, by
        places in the whole tensors and among these; the given ones, for rank 0."""
        magnitude, place = by_rank.search(
            _counter(self._on, self._op, self._batch),
            ranks,
            self._numel,
            wide=self._op.work == torch.float64,
            by_index=by_index,
        )
        sides = torch.tensor([0, 0 if by_index else 1], device=ranks.device)
        whole = place
        if by_index and len(self._place):
            at = (self._starts[:-1, None, None] + place).clamp(0, len(self._place) - 1)
            whole = self._place[at]
        found = []
        for last, guess in ((whole, given), (place, self._mine(given))):
            window = torch.stack([magnitude + sides, last], -1).flatten(-2)
            told = ranks.repeat_interleave(2, -1) > 0
            found.append(torch.where(told, window, guess))
        return found[0], found[1]

    def merge(self, windows: torch.Tensor) -> torch.Tensor:
        """Merge them by windows that count these elements, and put them where they belong. Returns
        what was found, as Pass.found."""
        todo = self._on.start(self._op, self._batch, windows[:, :, None])
        if len(self._place):
            self._on.scatter(self._todo, *self._gaps, self._merged)
        return todo.found

    def _with_gaps(
        self, room: np.ndarray, starts: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The places and where each tile's begin, with gaps so that tiles begin aligned."""
        size = int(room.sum())
        index = torch.full((size,), -1, dtype=torch.int64, device=self._place.device)
        further = torch.repeat_interleave(
            starts - self._starts[:-1], self._numel, output_size=len(self._place)
        )
        index[torch.arange(len(self._place), device=further.device) + further] = self._place
        return index, torch.cat([starts, self._starts[-1:] + (size - len(self._place))])

    def _mine(self, windows: torch.Tensor) -> torch.Tensor:
        """Windows whose last indices count these elements."""
        tile = torch.arange(len(windows), device=windows.device)
        keys = self._place + TILE * torch.repeat_interleave(
            tile, self._numel, output_size=len(self._place)
        )
        found = windows.clone()
        for column in (1, 3):
            last = windows[..., column].contiguous()
            wanted = last.clamp(-1, TILE - 1) + TILE * tile[:, None]
            at = torch.searchsorted(keys, wanted, right=True) - 1 - self._starts[:-1, None]
            found[..., column] = torch.where(last == EVERY_INDEX, last, at)
        return found


def _some(batch: Batch, rows: np.ndarray) -> Batch:
    """Some tiles of a batch, whose windows are not known."""
    return replace(
        batch,
        inputs=batch.inputs[rows],
        outs=batch.outs[rows],
        offset=batch.offset[rows],
        numel=batch.numel[rows],
        name_hash=batch.name_hash[rows],
        windows=None,
        ranks=None,
    )
