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

from mergekern.backends import CHUNK
from mergekern.backends import ranks as by_rank
from mergekern.backends.brackets import Launches, bracket
from mergekern.backends.groups import Groups
from mergekern.backends.launch import Pass, findings, upload
from mergekern.dtypes import FLOAT64, to_torch
from mergekern.fused import EVERY_INDEX, KEEP_ALL, Batch, Findings, FusedOp
from mergekern.lazily import torch

MOST_OPEN = 1 / 2  # of all elements; a guess that leaves more is given up
TOGETHER = 1 << 29  # elements of tensors that are looked at together: what is open takes memory
ALIGN = 8  # elements: what the quick kernels take at a time begins at a multiple of 16 bytes
TILE = 1 << 40  # more than a tensor has elements: tells the places of tiles apart


def fuse_ranked(on: Launches, op: FusedOp, batch: Batch) -> dict[int, Findings]:
    """Find the windows that a batch's ranks stand for, write them into its column, and merge."""
    assert batch.ranks is not None and batch.windows is not None
    found: dict[int, Findings] = {}
    drops = any(expert.keep_below < KEEP_ALL for expert in op.experts)  # coins go by the place
    for guesses, rows in _together(batch, drops):
        part = _some(batch, rows)
        number = np.zeros_like(rows) if batch.together else np.arange(len(rows))
        groups = Groups.of(number, part.numel, on.device)
        given = batch.ranks if batch.together else batch.ranks[rows]
        way = _guessed if guesses else _counted
        exact, news = way(on, op, part, groups, upload(given, on.device))
        batch.windows[rows] = groups.windows(exact).cpu().numpy()
        found |= {int(rows[tile]): seen for tile, seen in news.items()}
    return dict(sorted(found.items()))


def _together(batch: Batch, drops: bool) -> Iterator[tuple[bool, np.ndarray]]:
    """The rows that are looked at together, and whether they are worth a guess: all of a model; all
    small tensors, and large ones of each size, no more at a time than TOGETHER allows."""
    if batch.together:
        yield not drops and int(batch.numel.sum()) > CHUNK, np.arange(len(batch))
        return
    size = np.where((batch.numel <= CHUNK) | drops, 0, np.frexp(batch.numel)[1])
    for kind in np.unique(size).tolist():
        rows = np.flatnonzero(size == kind)
        before = np.cumsum(batch.numel[rows]) - batch.numel[rows]
        bounds = np.flatnonzero(np.diff(before // TOGETHER)) + 1
        yield from ((kind > 0, part) for part in (np.split(rows, bounds) if kind else [rows]))


def _counted(
    on: Launches, op: FusedOp, batch: Batch, groups: Groups, ranks: torch.Tensor
) -> tuple[torch.Tensor, dict[int, Findings]]:
    """The exact windows, and what was found: of tensors that are small, or seldom come."""
    exact = _by_counting(on, op, batch, groups, ranks)
    return exact, findings(on.start(op, batch, groups.windows(exact)[:, :, None]).found)


def _by_counting(
    on: Launches, op: FusedOp, batch: Batch, groups: Groups, ranks: torch.Tensor
) -> torch.Tensor:
    """int64 [g, K, 4]: the exact windows."""
    wide, by_index, numel = op.work == FLOAT64, batch.by_index, groups.total
    count = _counter(on, op, batch, groups)
    magnitude, place = by_rank.search(count, ranks, numel, wide=wide, by_index=by_index)
    return by_rank.windows(ranks, magnitude, place, numel, by_index=by_index)


def _counter(on: Launches, op: FusedOp, batch: Batch, groups: Groups) -> by_rank.Count:
    """Launches that count in groups, for any windows of theirs."""
    count = _tile_counter(on, op, batch)
    return lambda windows: groups.sums(count(groups.windows(windows)))


def _tile_counter(on: Launches, op: FusedOp, batch: Batch) -> by_rank.Count:
    """Launches that count in tiles."""
    looking = replace(batch, outs=np.zeros_like(batch.outs))
    room = int(batch.numel.max(initial=0)) // 8 + 1
    unread = torch.empty(room, dtype=torch.uint8, device=on.device)  # marks that nobody looks at

    def count(windows: torch.Tensor) -> torch.Tensor:
        return on.start(op, looking, windows, np.full(len(batch), unread.data_ptr())).kept

    return count


def _guessed(
    on: Launches, op: FusedOp, batch: Batch, groups: Groups, ranks: torch.Tensor
) -> tuple[torch.Tensor, dict[int, Findings]]:
    """The same of large tensors, all of about one size, or of a model."""
    by_index = batch.by_index
    guess = bracket(on, op, batch, groups, ranks)
    nbytes = -(-batch.numel // 8)
    marks = torch.empty(int(nbytes.sum()), dtype=torch.uint8, device=on.device)
    marked = marks.data_ptr() + np.cumsum(nbytes) - nbytes
    first = on.start(op, batch, groups.windows(guess), marked)
    open_ = _Open(on, op, batch, groups, first, _places(marks, nbytes))
    sure, reached = groups.sums(first.kept).unbind(-1)
    off = ranks - reached  # so many are left out by the given cuts that belong in
    among = open_.count(guess[:, :, 0], guess[:, :, 2])
    won = (sure <= (ranks if by_index else ranks - 1)) & (off <= among[..., 0] - among[..., 1])
    lost = ~(won | (ranks == 0)).flatten(1).all(1)
    # Of what is open, so many reach the wanted cut; where none is left out, it is the given one.
    rank = torch.where((ranks > 0) & (off > 0), off + among[..., 1], 0)
    exact, here = open_.windows(rank, guess[:, :, 0], by_index)
    found = findings(first.found | open_.merge(here))
    return exact, _set_right(on, op, batch, groups, ranks, exact, lost, found)


def _set_right(
    on: Launches,
    op: FusedOp,
    batch: Batch,
    groups: Groups,
    ranks: torch.Tensor,
    exact: torch.Tensor,
    lost: torch.Tensor,
    found: dict[int, Findings],
) -> dict[int, Findings]:
    """Count where a guess was wrong, into the exact windows, and merge again. Returns what was
    found then."""
    again = lost.cpu().numpy()[groups.number]
    rows = np.flatnonzero(again)
    if len(rows):
        _, number = np.unique(groups.number[rows], return_inverse=True)
        part = _some(batch, rows)
        mine = Groups.of(number, part.numel, on.device)
        exact[lost] = _by_counting(on, op, part, mine, ranks[lost])
    # Too large a result may have been one that went by a wrong guess.
    again[[tile for tile, seen in found.items() if seen.overflow]] = True
    rows = np.flatnonzero(again)
    if not len(rows):
        return found
    windows = groups.windows(exact)[upload(rows, on.device)]
    redone = findings(on.start(op, _some(batch, rows), windows[:, :, None]).found)
    kept = {tile: seen for tile, seen in found.items() if not again[tile]}
    return kept | {int(rows[tile]): seen for tile, seen in redone.items()}


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
        groups: Groups,
        todo: Pass,
        places: tuple[torch.Tensor, torch.Tensor],
    ) -> None:
        self._on, self._op, self._todo = on, op, todo
        self._place, self._starts = places
        numel = self._starts.diff().cpu().numpy()
        self._whole, self._groups = groups, Groups.of(groups.number, numel, on.device)
        tile = torch.arange(len(numel), device=on.device)
        self._tile = torch.repeat_interleave(tile, self._groups.numel, output_size=len(self._place))
        room = -(-numel // ALIGN) * ALIGN
        starts = np.cumsum(room) - room
        self._gaps = self._with_gaps(upload(starts, on.device), int(room.sum()))
        self._merged = torch.empty(int(room.sum()), dtype=to_torch(batch.out), device=on.device)
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
        """int64 [g, K, 2, 2]: how many reach the wide, and the given cuts."""
        cuts = [self._mine(given), self._mine(wide)]
        count = _tile_counter(self._on, self._op, self._batch)
        return self._groups.sums(count(torch.stack([*cuts, cuts[0]], 2)))

    def windows(
        self, ranks: torch.Tensor, given: torch.Tensor, by_index: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The windows that keep what ranks among these elements say, the given ones for rank 0: of
        groups, int64 [g, K, 4], and of tiles, [n, K, 4], whose last indices count these elements.
        """
        magnitude, place = by_rank.search(
            _counter(self._on, self._op, self._batch, self._groups),
            ranks,
            self._groups.total,
            wide=self._op.work == FLOAT64,
            by_index=by_index,
        )
        sides = torch.tensor([0, 0 if by_index else 1], device=ranks.device)
        whole = place
        if by_index and len(self._place):
            at = (self._groups.first[:, None, None] + place).clamp(0, len(self._place) - 1)
            whole = self._place[at] + self._whole.start[self._tile[at]]
        told = ranks.repeat_interleave(2, -1) > 0
        exact, here = (
            torch.stack([magnitude + sides, last], -1).flatten(-2) for last in (whole, place)
        )
        mine = torch.where(told[self._groups.group], self._groups.windows(here), self._mine(given))
        return torch.where(told, exact, given), mine

    def merge(self, windows: torch.Tensor) -> torch.Tensor:
        """Merge them by windows that count these elements, and put them where they belong. Returns
        what was found, as Pass.found."""
        todo = self._on.start(self._op, self._batch, windows[:, :, None])
        if len(self._place):
            self._on.scatter(self._todo, *self._gaps, self._merged)
        return todo.found

    def _with_gaps(self, starts: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The places and where each tile's begin, with gaps so that tiles begin aligned."""
        device = self._place.device
        index = torch.full((size,), -1, dtype=torch.int64, device=device)
        further = (starts - self._starts[:-1])[self._tile]
        index[torch.arange(len(self._place), device=device) + further] = self._place
        return index, torch.cat([starts, self._starts[-1:] + (size - len(self._place))])

    def _mine(self, windows: torch.Tensor) -> torch.Tensor:
        """Windows of groups as those of tiles whose last indices count these elements."""
        found = self._whole.windows(windows)
        tile = torch.arange(len(found), device=found.device)
        keys = self._place + TILE * self._tile
        for column in (1, 3):
            last = found[..., column].contiguous()
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
