"""A streaming pass that merges by guessed thresholds, and what sets it right afterwards.

    for unit in stream(units(tensors)):
        for piece in unit: speculate(op by the guess, its tile) -> its place in the output
        write(unit)
    exact thresholds from the counts and the elements in doubt
    for written range: elements in doubt -> their places

Every input byte is read once, and of the output only what holds an element in doubt. What the
guess was too far off for is left unrecorded, so that whoever merges what is missing merges it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from threading import Lock

import numpy as np
import torch

from mergekern.backends import Backend, Margin
from mergekern.checkpoint.base import Checkpoint
from mergekern.checkpoint.direct import BLOCK
from mergekern.coverage import Coverage
from mergekern.destination import Destination
from mergekern.extents import Span, lay_out
from mergekern.findings import check_findings
from mergekern.fused import Findings, FusedOp
from mergekern.journal import Range, Tried
from mergekern.plan import Plan, Step
from mergekern.settling import Settling
from mergekern.sources import Reel
from mergekern.speculation import Reach, Trial
from mergekern.spill import Entry, SpilledDoubts
from mergekern.statistics import fused_op
from mergekern.stream import Flight, Pipeline
from mergekern.trimming import Outcome, Windows, go_on_with_trial, outcome, start_trial
from mergekern.units import Cutter

CHUNK = 16 << 20  # bytes written by one task


class TrialPass:
    """The tensors of some rows of the table, which are ranked together.

    show: told of bytes moved
    """

    def __init__(
        self,
        plan: Plan,
        checkpoints: Sequence[Checkpoint],
        backend: Backend,
        pipeline: Pipeline,
        cutter: Cutter,
        destination: Destination,
        rows: np.ndarray,
        show: Callable[[int], None],
    ) -> None:
        self._plan = plan
        self._checkpoints = checkpoints
        self._backend = backend
        self._pipeline = pipeline
        self._table = pipeline.table
        self._cutter = cutter
        self._destination = destination
        self._rows = rows
        self._show = show
        self._ranges: list[Range] = []  # everything tried out
        self._suspect: list[tuple[int, int, int]] = []  # row, start, stop: look too large
        self._op: tuple[Step, FusedOp, tuple[Margin, ...]] | None = None

    def run(self) -> Windows:
        """Merge; returns the exact windows, which the destination has kept."""
        tensors = Reel(self._pipeline, self._cutter, self._rows)
        doubts = SpilledDoubts(self._destination.doubts_path, tensors.steps, self._dtypes)
        try:
            trial = self._begin(tensors, doubts)
            self._merge(trial, doubts)
            self._pipeline.drain()
            result = outcome(self._backend, tensors, trial)
            # From now on what was tried out is void, but for what is settled.
            self._destination.keep_windows(result.windows)
            if not result.lost:
                self._settle(doubts, result)
            doubts.remove()
        finally:
            doubts.close()
        return result.windows

    def _begin(self, tensors: Reel, doubts: SpilledDoubts) -> Trial:
        """The trial, gone on with where one was cut short."""
        bets = self._destination.bets
        if bets is None:
            doubts.forget()
            trial = start_trial(self._backend, tensors, doubts)
            assert trial is not None, "nothing to trim"
            self._destination.keep_bets(trial.bets)
            return trial
        trial = go_on_with_trial(self._backend, tensors.steps, bets, doubts)
        buffer, readers = self._pipeline.arena.bytes, self._pipeline.readers
        room = len(buffer) - 2 * BLOCK  # less than what was written at a time under a larger budget
        for tried in self._destination.tried(buffer, readers):
            fits = all(found.length <= room for found in tried.ranges)
            if fits and doubts.restore(tried.doubts):
                trial.count(tried.reach)
                self._ranges += tried.ranges
        return trial

    def _settle(self, doubts: SpilledDoubts, result: Outcome) -> None:
        steps = (self._table.steps[row] for row in self._rows.tolist())
        row_of = {id(step): row for step, row in zip(steps, self._rows.tolist(), strict=True)}
        again = [(row_of[id(part.step)], part.start, part.stop) for part in result.again]
        settling = Settling(
            self._plan,
            self._checkpoints,
            self._backend,
            self._table,
            self._destination,
            self._rows,
            result.windows,
            doubts,
        )
        settling.run(self._ranges, again + self._suspect, self._pipeline.arena.bytes)

    def _merge(self, trial: Trial, doubts: SpilledDoubts) -> None:
        table = self._table
        done = Coverage((found.file, found.offset, found.length) for found in self._ranges)
        whole = np.zeros(len(table.steps), bool)
        todo = self._destination.beyond(done, table, self._rows, whole)
        everything = int((table.traffic * table.numel)[self._rows].sum())
        self._show(everything - int((table.traffic[todo.row] * todo.numel).sum()))
        bundles = self._cutter.bundles(self._cutter.tiles(todo), output=True)
        units = (lay_out(table, bundle, output=True) for bundle in bundles)
        for flight in self._pipeline.stream(units):
            suspects = len(self._suspect)
            reach = self._merge_unit(flight, trial)
            if trial.lost:  # then some of the unit's open elements were not kept
                return
            self._write(flight, reach, doubts.fresh(), len(self._suspect) == suspects)
            row = flight.unit.pieces.row
            self._show(int((table.traffic[row] * flight.unit.pieces.numel).sum()))

    def _merge_unit(self, flight: Flight, trial: Trial) -> Reach:
        reach: Reach = {}
        for piece, row in enumerate(flight.unit.pieces.row.tolist()):
            step = self._table.steps[row]
            op, margins = self._op_of(trial, step)
            tile, out = flight.tile(piece), flight.out(piece)
            seen = self._backend.speculate(op, tile, margins, out)
            inputs = Findings(seen.findings.non_finite)
            check_findings(self._plan, self._checkpoints, step, inputs)
            if seen.findings.overflow:
                self._suspect.append((row, tile.offset, tile.offset + tile.numel))
            for wanted, counts in trial.add(step, tile, seen).items():
                before = reach.get(wanted, (0,) * len(counts))
                reach[wanted] = tuple(map(sum, zip(before, counts, strict=True)))
        return reach

    def _op_of(self, trial: Trial, step: Step) -> tuple[FusedOp, tuple[Margin, ...]]:
        """The tiles of one tensor follow each other, and share its op."""
        if self._op is None or self._op[0] is not step:
            self._op = (step, fused_op(step, trial.windows(step)), trial.margins(step))
        return self._op[1:]

    def _write(self, flight: Flight, reach: Reach, doubts: list[Entry], sound: bool) -> None:
        spans = [part for span in flight.unit.spans for part in span.cut(CHUNK)]
        note = _Note(self._destination, len(spans), reach, doubts, self._ranges, sound)
        for span in spans:
            data = flight.bytes(span.begin, span.length)
            self._pipeline.write(flight, partial(note.write, span, data))

    def _dtypes(self, step: Step) -> list[torch.dtype]:
        return [self._checkpoints[i.model].tensors[i.name].dtype for i in step.inputs]


class _Note:
    """A unit on its way to the disk; whoever writes the last of it records it.

    sound: whether nothing in it looks too large. What does is known to this run only: a run that
           goes on after it has to see for itself.
    """

    def __init__(
        self,
        destination: Destination,
        writes: int,
        reach: Reach,
        doubts: list[Entry],
        everything: list[Range],
        sound: bool,
    ) -> None:
        self._destination = destination
        self._left = writes
        self._tried = Tried([], reach, doubts)
        self._everything = everything
        self._sound = sound
        self._lock = Lock()

    def write(self, span: Span, data: memoryview) -> None:
        found = self._destination.try_out(span, data)
        with self._lock:
            self._tried.ranges.append(found)
            self._left -= 1
            last = self._left == 0
        if last:
            self._everything += self._tried.ranges
            if self._sound:
                self._destination.keep_tried(self._tried)
