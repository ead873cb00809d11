"""Merges into folders that run together: the order of what is to be done, from one read.

for flight in stream(units that any merge lacks):
    for merge that wants it: take(flight)
for merge that went by guessed thresholds: set right what was written
the same again for what is still missing, which is rarely anything
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from mergekern.arena import Arena
from mergekern.arrays import HOST
from mergekern.backends import Backend
from mergekern.backends.streams import Stream
from mergekern.budget import MemoryEstimate
from mergekern.checkpoint.base import Checkpoint
from mergekern.columns import distinct
from mergekern.crew import Crew
from mergekern.extents import Unit, lay_out
from mergekern.lazily import torch
from mergekern.member import Member
from mergekern.plan import Plan
from mergekern.progress import Progress
from mergekern.shared import Shared
from mergekern.stream import Pipeline
from mergekern.table import tabulate
from mergekern.unifying import Unifier
from mergekern.units import Cutter, Pieces, Ranges, all_of, in_order, overlaid, traffic

RESUME, THRESHOLDS, MERGE = "resume", "thresholds", "merge"  # phases, as progress shows them


class Run:
    """Open it, merge, finish, and close it in any case."""

    def __init__(
        self,
        plans: Sequence[Plan],
        checkpoints: Sequence[Sequence[Checkpoint]],
        backend: Backend,
        progress: Progress,
        estimate: MemoryEstimate,
    ) -> None:
        self._progress = progress
        self._showing = False
        self._table = tabulate(plans, checkpoints)
        for device in {each.device for mine in checkpoints for each in mine} - {HOST}:
            Stream(torch.device(device), current=True).finish()  # read by other threads
        self._pipeline = Pipeline(
            self._table, Arena(estimate.buffers), Crew(backend, estimate.crew)
        )
        self._unpin = backend.pin(self._pipeline.arena.array)
        self._cutter = Cutter(self._table, estimate.buffers, estimate.tile)
        self._shared = Shared(estimate.crew, estimate.open)
        self._unifier = Unifier(self._table)
        made = (backend, self._pipeline, self._cutter, self._shared, self._unifier)
        self._members = [Member(target, *made) for target in self._table.targets]
        self._seen = np.zeros(len(self._table.numel), bool)  # tensors that were shown as done
        self._moved = self._unseen = 0
        self._alone = [0] * len(self._members)  # bytes that each would have read on its own

    def open(self, outputs: Sequence[Path], inputs: Sequence[list[Any] | None]) -> list[int]:
        """Take the folders, with what runs before this one left in them. Returns the bytes of
        each. When one cannot be had, nothing is left in those where nothing was merged yet."""
        try:
            return [
                member.open(output, state)
                for member, output, state in zip(self._members, outputs, inputs, strict=True)
            ]
        except BaseException:
            for member in self._members:
                member.abandon()
            raise

    def merge(self) -> list[int]:
        """Everything that is not there yet. Returns the bytes written by each."""
        written = [member.expect() for member in self._members]
        missing = [member.missing for member in self._members]
        self._expect(missing)
        self._look_ahead()
        todo = [member.todo() for member in self._members]
        announced = self._traffic(missing)
        self._advance(announced - self._traffic(todo), 0, RESUME)
        self._merge(todo)
        self._pipeline.drain()
        left = [member.conclude() for member in self._members]
        self._progress.more(self._moved + self._traffic(left) - announced)
        self._advance(0, self._count(np.flatnonzero(self._in(missing) & ~self._in(left))), MERGE)
        self._merge(left)
        self._pipeline.drain()
        return written

    def bytes_read(self) -> list[int]:
        """By each: its part of what all read, by what it would have read on its own."""
        parts = list(accumulate(self._alone, initial=0))
        ends = [self._pipeline.bytes_read * part // max(1, parts[-1]) for part in parts]
        return [stop - first for first, stop in pairwise(ends)]

    def finish(self, finishes: Sequence[Callable[[Path], None]]) -> None:
        """Index and side files of every folder; the journals go last."""
        for member, finish in zip(self._members, finishes, strict=True):
            member.finish(finish)

    def close(self) -> None:
        """Stop the threads and let go of files and buffers; what is recorded stays."""
        self._pipeline.close()
        self._unpin()
        if self._showing:
            self._progress.stop()
        for member in self._members:
            member.close()

    def _expect(self, missing: Sequence[Ranges]) -> None:
        """Say what is to come to whom it is shown."""
        members = self._members
        self._alone = [m.reads(r) for m, r in zip(members, missing, strict=True)]
        self._seen = ~self._in(missing)
        everything = self._traffic([all_of(member.target.numel) for member in members])
        self._unseen = sum(member.ahead for member in members)
        self._progress.start(everything + self._unseen, len(self._seen))
        self._showing = True
        if done := int(self._seen.sum()):
            self._progress.advance(everything - self._traffic(missing), done, RESUME)

    def _look_ahead(self) -> None:
        """Whatever has to be known, or guessed, of whole models."""
        for member in self._members:
            if member.waits:
                member.look_ahead(self._show_thresholds)
        self._shared.forget()
        self._show_thresholds(self._unseen)

    def _show_thresholds(self, nbytes: int) -> None:
        """How often is read is only known afterwards: show no more than was announced."""
        nbytes = min(nbytes, self._unseen)
        if nbytes:
            self._unseen -= nbytes
            self._progress.advance(nbytes, 0, THRESHOLDS)

    def _merge(self, every: Sequence[Ranges]) -> None:
        """What each member lacks. Tensors that one needs whole are merged whole by all that lack
        all of them; those that are too large for it, after the others, one by one."""
        numel, fits = self._table.numel, self._cutter.fits
        needed = np.zeros(len(numel), bool)
        for member in self._members:
            needed |= member.target.whole_tensor
        held = [fits[r.row] & needed[r.row] & (r.numel == numel[r.row]) for r in every]
        entire = overlaid([r.of(mine) for r, mine in zip(every, held, strict=True)])
        others = overlaid([r.of(~mine) for r, mine in zip(every, held, strict=True)])
        large = (needed & ~fits)[others.row]
        self._merge_pieces(in_order(entire, self._cutter.tiles(others[~large])))
        for row in dict.fromkeys(others.row[large].tolist()):
            mine = others[others.row == row]
            self._shared.forget()
            for member in self._wanting(mine):
                if member.target.whole_tensor[row] and not member.lost:
                    member.prepare(row)
            self._merge_pieces(self._cutter.tiles(mine))

    def _merge_pieces(self, pieces: Pieces) -> None:
        last = np.zeros(0, np.int64)
        for flight in self._pipeline.stream(self._units(pieces)):
            self._shared.forget()
            self._unifier.forget()
            for member in self._wanting(flight.unit.pieces):
                member.take(flight)
            row = distinct(np.append(last, flight.unit.pieces.row))
            last = row[-1:]  # done when the next one begins, for all pieces in order
            done = self._count(row[:-1])
            self._advance(traffic(self._table, flight.unit.pieces), done, MERGE)
        self._advance(0, self._count(last), MERGE)

    def _units(self, pieces: Pieces) -> Iterator[Unit]:
        for bundle in self._cutter.bundles(pieces, output=True):
            wanted = bundle.but_for([m.target.number for m in self._members if m.lost])
            if len(wanted):
                yield lay_out(self._table, wanted, output=True)

    def _wanting(self, pieces: Pieces) -> list[Member]:
        return [self._members[number] for number in np.flatnonzero(pieces.wants.any(axis=0))]

    def _count(self, rows: np.ndarray) -> int:
        """How many of these tensors were not shown as done before."""
        fresh = rows[~self._seen[rows]]
        self._seen[fresh] = True
        return len(fresh)

    def _in(self, every: Sequence[Ranges]) -> np.ndarray:
        """True for the rows that any of these ranges are of."""
        found = np.zeros(len(self._table.numel), bool)
        for ranges in every:
            found[ranges.row] = True
        return found

    def _traffic(self, every: Sequence[Ranges]) -> int:
        return traffic(self._table, overlaid(every))

    def _advance(self, nbytes: int, tensors: int, phase: str) -> None:
        self._moved += nbytes
        if nbytes or tensors:
            self._progress.advance(nbytes, tensors, phase)
