"""One merge into a folder: the order of what is to be done, and who does it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from mergekern.arena import Arena
from mergekern.backends import Backend
from mergekern.batches import batch_of, by_kind, window_column
from mergekern.budget import MemoryEstimate
from mergekern.checkpoint.base import Checkpoint
from mergekern.destination import Destination
from mergekern.extents import lay_out
from mergekern.findings import check_copied, check_findings
from mergekern.fused import FusedOp, Tile
from mergekern.plan import Plan, Step
from mergekern.progress import Progress
from mergekern.sources import Reel, Resident
from mergekern.statistics import fused_op, resolve
from mergekern.stream import Flight, Pipeline
from mergekern.table import tabulate
from mergekern.trialpass import CHUNK, TrialPass
from mergekern.trimming import Windows, exact_windows
from mergekern.units import Cutter, Pieces

RESUME, THRESHOLDS, MERGE = "resume", "thresholds", "merge"  # phases, as progress shows them


class Run:
    """Open it, merge, finish, and close it in any case."""

    def __init__(
        self,
        plan: Plan,
        checkpoints: Sequence[Checkpoint],
        backend: Backend,
        progress: Progress,
        estimate: MemoryEstimate,
    ) -> None:
        self._plan = plan
        self._checkpoints = checkpoints
        self._backend = backend
        self._progress = progress
        self._showing = False
        self._table = tabulate(plan, checkpoints)
        self._pipeline = Pipeline(self._table, Arena(estimate.buffers))
        self._cutter = Cutter(self._table, estimate.buffers, estimate.tile)
        self._destination: Destination | None = None
        self._ops: dict[int, FusedOp] = {}  # by kind
        self._op: tuple[Step, FusedOp] | None = None  # of the tensor that is merged on its own

    @property
    def bytes_read(self) -> int:
        return self._pipeline.bytes_read

    def open(self, output: Path, inputs: list[Any] | None) -> int:
        """Take the folder, with what a run before this one left in it. Returns its bytes."""
        self._destination = Destination(self._plan, output)
        buffer = self._pipeline.arena.bytes
        return self._destination.open(inputs, buffer, self._pipeline.readers)

    def merge(self) -> int:
        """Everything that is not there yet. Returns the bytes written."""
        assert self._destination is not None
        table = self._table
        rows = np.arange(len(table.steps))
        fits = self._cutter.fits(rows)
        todo = self._destination.missing(table, table.whole_tensor & fits)
        written = self._expect(todo)
        if len(table.whole_model) and self._windows is None and written:
            if self._plan.passes == 1:
                todo = self._try_out(todo, table.whole_tensor & fits)
            else:
                self._find_windows()
        apart = (table.whole_tensor & ~fits)[todo.row]
        whole = todo[table.whole_tensor[todo.row] & ~apart]
        tiled = self._cutter.tiles(todo[~table.whole_tensor[todo.row]])
        self._merge_pieces(_in_order(whole, tiled))
        for row in dict.fromkeys(todo.row[apart].tolist()):
            self._merge_streamed(row, todo[todo.row == row])
        self._pipeline.drain()
        return written

    def finish(self, finish: Callable[[Path], None]) -> None:
        """Index and side files; the journal goes last."""
        assert self._destination is not None
        self._destination.finish(finish)

    def close(self) -> None:
        """Stop the threads and let go of files and buffers; what is recorded stays."""
        self._pipeline.close()
        if self._showing:
            self._progress.stop()
        if self._destination is not None:
            self._destination.close()

    def _expect(self, todo: Pieces) -> int:
        """Say what is to come, to the folder and to whom it is shown. Returns bytes to write."""
        assert self._destination is not None
        table = self._table
        elements = np.zeros(len(table.steps), np.int64)
        np.add.at(elements, todo.row, todo.numel)
        left = np.zeros(len(self._plan.shards), np.int64)
        np.add.at(left, table.shard, elements * table.itemsize)
        self._destination.expect(dict(enumerate(left.tolist())))
        written = int(left.sum())
        self._unseen = 0
        if len(table.whole_model) and self._windows is None and written:
            once = int((table.traffic * table.numel)[table.whole_model].sum())
            self._unseen = (self._plan.passes - 1) * once
        total = int((table.traffic * table.numel).sum())
        resumed = total - int((table.traffic * elements).sum())
        self._progress.start(total + self._unseen, len(table.steps))
        self._showing = True
        if done := int((elements == 0).sum()):
            self._progress.advance(resumed, done, RESUME)
        return written

    def _try_out(self, todo: Pieces, whole: np.ndarray) -> Pieces:
        """The one pass of methods that need a number of the whole model, which they can guess.
        Returns what is still to be merged, now that the number is known."""
        assert self._destination is not None
        rows = self._table.whole_model

        moved = 0

        def show(nbytes: int) -> None:
            nonlocal moved
            moved += nbytes
            self._progress.advance(nbytes, 0, MERGE)

        TrialPass(
            self._plan,
            self._checkpoints,
            self._backend,
            self._pipeline,
            self._cutter,
            self._destination,
            rows,
            show,
        ).run()
        left = self._destination.missing(self._table, whole)
        again = left[np.isin(left.row, rows)]
        announced = int((self._table.traffic * self._table.numel)[rows].sum())
        coming = int((self._table.traffic[again.row] * again.numel).sum())
        self._progress.more(moved + coming - announced)
        done = np.setdiff1d(np.unique(todo.row), np.unique(left.row))
        self._progress.advance(0, len(done), MERGE)
        return left

    def _find_windows(self) -> None:
        """The first pass of methods that need a number of the whole model."""
        assert self._destination is not None
        reel = Reel(self._pipeline, self._cutter, self._table.whole_model, self._show_thresholds)
        self._destination.keep_windows(exact_windows(self._backend, reel))
        self._show_thresholds(self._unseen)

    def _show_thresholds(self, nbytes: int) -> None:
        """How often is read is only known afterwards: show no more than was announced."""
        nbytes = min(nbytes, self._unseen)
        self._unseen -= nbytes
        self._progress.advance(nbytes, 0, THRESHOLDS)

    def _merge_streamed(self, row: int, ranges: Pieces) -> None:
        """A tensor that needs statistics of all of it, and is larger than the buffers."""
        step = self._plan.steps[row]
        reel = Reel(self._pipeline, self._cutter, np.array([row]))
        self._op = (step, resolve(self._backend, reel, self._known(step)))
        self._merge_pieces(self._cutter.tiles(ranges))

    def _merge_pieces(self, pieces: Pieces) -> None:
        table = self._table
        bundles = self._cutter.bundles(pieces, output=True)
        units = (lay_out(table, bundle, output=True) for bundle in bundles)
        seen = -1
        for flight in self._pipeline.stream(units):
            row = flight.unit.pieces.row
            apart = (table.whole_tensor | table.copied)[row]
            for group in by_kind(table, row, np.flatnonzero(~apart)):
                self._merge_batch(flight, group)
            for piece in np.flatnonzero(apart).tolist():
                self._merge_piece(flight, piece)
            self._write(flight)
            # A tensor is done when the next one begins, for all pieces in order.
            done = int((np.diff(row, prepend=seen) != 0).sum()) - (seen < 0)
            seen = int(row[-1])
            moved = int((table.traffic[row] * flight.unit.pieces.numel).sum())
            self._progress.advance(moved, done, MERGE)
        if seen >= 0:
            self._progress.advance(0, 1, MERGE)

    def _merge_batch(self, flight: Flight, chosen: np.ndarray) -> None:
        """Pieces of one kind, which need no statistics but those of the whole model."""
        rows = flight.unit.pieces.row[chosen]
        step = self._plan.steps[int(rows[0])]
        op = self._shared_op(int(self._table.kind[rows[0]]), step)
        trimmed = self._cuts if step.spec is not None and step.spec.whole_model else None
        batch = batch_of(self._table, flight, op, chosen, trimmed)
        found = self._backend.fuse_batch(op, batch)
        for tile in sorted(found):
            step = self._plan.steps[int(rows[tile])]
            check_findings(self._plan, self._checkpoints, step, found[tile])

    def _shared_op(self, kind: int, step: Step) -> FusedOp:
        """The op of a kind of steps, but for what a batch has in columns."""
        if kind not in self._ops:
            self._ops[kind] = fused_op(step)
        return self._ops[kind]

    @cached_property
    def _cuts(self) -> np.ndarray:
        assert self._windows is not None
        return window_column(self._table, self._windows)

    @property
    def _windows(self) -> Windows | None:
        assert self._destination is not None
        return self._destination.windows

    def _merge_piece(self, flight: Flight, piece: int) -> None:
        step = self._plan.steps[int(flight.unit.pieces.row[piece])]
        tile, out = flight.tile(piece), flight.out(piece)
        if step.action == "copy":
            check_copied(self._plan, self._checkpoints, step, tile)
            if out.data_ptr() != tile.experts[0].data_ptr():
                out.copy_(tile.experts[0])
            return
        found = self._backend.fuse(self._op_of(step, tile), tile, out)
        check_findings(self._plan, self._checkpoints, step, found)

    def _op_of(self, step: Step, tile: Tile) -> FusedOp:
        """The tiles of one tensor follow each other, and share its op."""
        if self._op is None or self._op[0] is not step:
            tensors = Resident([(step, tile)])
            self._op = (step, resolve(self._backend, tensors, self._known(step)))
        return self._op[1]

    def _known(self, step: Step) -> Windows | None:
        return self._windows if step.spec is not None and step.spec.whole_model else None

    def _write(self, flight: Flight) -> None:
        assert self._destination is not None
        for span in flight.unit.spans:
            for part in span.cut(CHUNK):
                data = flight.bytes(part.begin, part.length)
                self._pipeline.write(flight, partial(self._destination.store, part, data))


def _in_order(first: Pieces, second: Pieces) -> Pieces:
    """Two lists of pieces as one, in the order of rows and within them as they are."""
    columns = zip(_columns(first), _columns(second), strict=True)
    both = Pieces(*(np.concatenate(pair) for pair in columns))
    return both[np.argsort(both.row, kind="stable")]


def _columns(pieces: Pieces) -> tuple[np.ndarray, ...]:
    return pieces.row, pieces.start, pieces.stop
