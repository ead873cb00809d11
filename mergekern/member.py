"""One merge among those that run together: what becomes of the flights that all of them share."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from mergekern.arrays import address
from mergekern.backends import Backend
from mergekern.batches import batch_of, by_kind, fuse_batch, window_column
from mergekern.cargo import Cargo
from mergekern.crew import ALONE
from mergekern.destination import Destination
from mergekern.findings import check_copied, check_findings
from mergekern.fused import FusedOp
from mergekern.plan import Step
from mergekern.pools import weighed
from mergekern.shared import Shared
from mergekern.sources import Reel
from mergekern.spill import SpilledDoubts
from mergekern.statistics import fused_op, pruned
from mergekern.stream import CHUNK, Flight, Pipeline
from mergekern.table import Target
from mergekern.trialpass import TrialPass
from mergekern.trimming import Windows
from mergekern.unifying import Unifier
from mergekern.units import Cutter, Ranges, all_of


class Member:
    """Open it, ask what is missing, let it take flights, conclude, finish; close it in any case."""

    def __init__(
        self,
        target: Target,
        backend: Backend,
        pipeline: Pipeline,
        cutter: Cutter,
        shared: Shared,
        unifier: Unifier,
    ) -> None:
        self.target = target
        self._plan = target.plan
        self._backend = backend
        self._pipeline = pipeline
        self._cutter = cutter
        self._shared = shared
        self._unifier = unifier
        self.missing = all_of(target.numel)  # what was not there when it began
        self._destination: Destination | None = None
        self._trial: TrialPass | None = None
        self._ops: dict[int, FusedOp] = {}  # by kind
        self._op: tuple[int, FusedOp] | None = None  # by row, of the tensor merged on its own

    def open(self, output: Path, inputs: list[Any] | None) -> int:
        """Take the folder, with what a run before this one left in it. Returns its bytes."""
        self._destination = Destination(self._plan, output)
        buffer = self._pipeline.arena.bytes
        return self._destination.open(inputs, buffer, self._pipeline.readers)

    @property
    def destination(self) -> Destination:
        assert self._destination is not None, "not open"
        return self._destination

    @property
    def lost(self) -> bool:
        """True when it has no use for more flights, until it has concluded."""
        return self._trial is not None and self._trial.lost

    def expect(self) -> int:
        """Find out what is missing, and tell the folder. Returns its bytes."""
        self.missing = self._missing()
        left = np.zeros(len(self._plan.shards), np.int64)
        begin, end = self.target.places(*self.missing)
        np.add.at(left, self.target.shard[self.missing.row], end - begin)
        self.destination.expect(dict(enumerate(left.tolist())))
        return int(left.sum())

    @property
    def waits(self) -> bool:
        """True when a number of the whole model has to be found first, or guessed."""
        unknown = self.destination.windows is None and len(self.target.whole_model) > 0
        return (unknown or len(self.target.pooled) > 0) and len(self.missing.row) > 0

    def look_ahead(self, show: Callable[[int], None]) -> None:
        """Find what is to be known of the whole model, or guess it. show: told of bytes read."""
        rows = self.target.whole_model
        reel = Reel(self._pipeline, self._cutter, self.target, self._looked_at, show)
        if len(self.target.pooled):
            self._weigh(reel)
            return
        if self._plan.passes == 1:
            self._trial = TrialPass(
                self.target, self._backend, reel, self._pipeline, self.destination
            )
            self._trial.begin(self._shared)
            return
        path, steps = self.destination.doubts_path, reel.steps
        with closing(SpilledDoubts(path, steps, self.target.dtypes)) as doubts:
            doubts.forget()
            windows = self._shared.windows(self._backend, self.target, rows, reel, doubts)
        self.destination.keep_windows(windows)

    @property
    def ahead(self) -> int:
        """Bytes that looking ahead will read, but for samples."""
        every = all_of(self.target.numel)
        looked_at = every.of(np.isin(every.row, self._looked_at))
        return (self._plan.passes - 1) * self.reads(looked_at) if self.waits else 0

    def reads(self, ranges: Ranges) -> int:
        """Bytes of the inputs of some ranges."""
        return int((ranges.numel * self.target.element[ranges.row]).sum())

    def todo(self) -> Ranges:
        """What to merge: all that is missing, but for what is tried out already."""
        return self.missing if self._trial is None else self._trial.untried()

    def prepare(self, row: int) -> None:
        """Find what is to be known of a tensor that is larger than the buffers."""
        reel = Reel(self._pipeline, self._cutter, self.target, np.array([row]))
        step = self.target.steps[row]
        known = self._known(step)
        self._op = (row, self._shared.op(self._backend, self.target, row, reel, known))

    def take(self, flight: Flight) -> None:
        """Merge its pieces of a flight, and write them."""
        if self.lost:
            return
        target, cargo = self.target, flight.cargo(self.target)
        row = cargo.pieces.row
        tried = np.zeros(len(row), bool) if self._trial is None else self._trial.tries[row]
        apart = self._apart[row]
        for group in by_kind(target, row, np.flatnonzero(~apart & ~tried)):
            self._merge_batch(cargo, group)
        if target.unified.any():
            self._unifier.board(flight)
        self._merge_pieces(cargo, np.flatnonzero(apart))
        if self._trial is None:
            self._write(flight, cargo)
            return
        for piece in np.flatnonzero(tried).tolist():
            self._trial.merge(cargo, piece)
        self._trial.write(flight, cargo)

    def conclude(self) -> Ranges:
        """Set right what went by a guess. Returns what is to be merged after all."""
        if self._trial is None:
            return self.missing.of(np.zeros(0, np.int64))
        self._trial.conclude()
        self._trial = None
        return self._missing()

    def finish(self, finish: Callable[[Path], None]) -> None:
        """Index and side files; the journal goes last."""
        self.destination.finish(finish)

    def abandon(self) -> None:
        """Leave nothing behind where nothing was merged yet."""
        if self._destination is not None:
            self._destination.abandon()

    def close(self) -> None:
        """Let go of the files; what is recorded stays."""
        if self._trial is not None:
            self._trial.close()
        if self._destination is not None:
            self._destination.close()

    @property
    def _looked_at(self) -> np.ndarray:
        """Rows that have to be known before any is merged: a method ranks them, or weighs them."""
        pooled = self.target.pooled
        return pooled if len(pooled) else self.target.whole_model

    def _weigh(self, reel: Reel) -> None:
        """Give the steps of pools the weights of these."""
        found = weighed(self._backend, reel.steps, reel.tiles())
        self.target.steps.update(zip(self.target.pooled.tolist(), found, strict=True))

    def _missing(self) -> Ranges:
        return self.destination.missing(self.target, self.target.whole_tensor & self._cutter.fits)

    @cached_property
    def _apart(self) -> np.ndarray:
        """True for tensors that do not go in batches, by row."""
        ranked = self.target.ranked & self._cutter.fits
        return self.target.whole_tensor & ~ranked | ~self.target.batched

    def _merge_batch(self, cargo: Cargo, chosen: np.ndarray) -> None:
        """Pieces of one kind, which need no statistics but those of the whole model, or else small
        tensors."""
        rows = cargo.pieces.row[chosen]
        step = self.target.steps[int(rows[0])]
        op = self._shared_op(int(self.target.kind[rows[0]]), step)
        trimmed = self._cuts if step.spec is not None and step.spec.whole_model else None
        batch = batch_of(self.target, cargo, op, chosen, trimmed)
        read = self.target.inputs[rows].tobytes()
        found = fuse_batch(self._backend, op, batch, self._shared.batches, read)
        for tile in sorted(found):
            step = self.target.steps[int(rows[tile])]
            check_findings(self._plan, self.target.checkpoints, step, found[tile])

    def _shared_op(self, kind: int, step: Step) -> FusedOp:
        """The op of a kind of steps, but for what a batch has in columns."""
        if kind not in self._ops:
            self._ops[kind] = fused_op(step)
        return self._ops[kind]

    @cached_property
    def _cuts(self) -> np.ndarray:
        assert self.destination.windows is not None
        return window_column(self.target, self.destination.windows)

    def _merge_pieces(self, cargo: Cargo, chosen: np.ndarray) -> None:
        """Pieces that do not go in batches: small ones side by side, the others one by one."""
        ordered = chosen[np.argsort(-cargo.pieces.numel[chosen], kind="stable")]
        beside = (cargo.pieces.numel <= ALONE) & ~self.target.threaded[cargo.pieces.row]
        merge = partial(self._merge_piece, cargo)
        self._pipeline.crew.each(merge, ordered.tolist(), beside.__getitem__)

    def _merge_piece(self, cargo: Cargo, backend: Backend, piece: int) -> None:
        row = int(cargo.pieces.row[piece])
        step, checkpoints = self.target.steps[row], self.target.checkpoints
        tile, out = cargo.tile(piece), cargo.out(piece)
        if step.action == "copy":
            check_copied(self._plan, checkpoints, step, tile)
            if address(out) != address(tile.experts[0]):
                out[:] = tile.experts[0]
            return
        if self.target.unified[row]:
            place = row, int(cargo.pieces.start[piece])
            found = self._unifier.merge(backend, self.target, place)
        elif not self.target.whole_tensor[row]:
            op = self._shared_op(int(self.target.kind[row]), step)
            found = backend.fuse(op, tile, out)
        elif self._op is not None and self._op[0] == row:  # one of many tiles
            op = self._op[1]
            found = backend.fuse(op, pruned(backend, op, tile), out)
        else:
            found = self._shared.fuse(backend, self.target, row, tile, out, self._known(step))
        check_findings(self._plan, checkpoints, step, found)

    def _known(self, step: Step) -> Windows | None:
        whole_model = step.spec is not None and step.spec.whole_model
        return self.destination.windows if whole_model else None

    def _write(self, flight: Flight, cargo: Cargo) -> None:
        for span in cargo.spans:
            for part in span.cut(CHUNK):
                data = cargo.bytes(part.begin, part.length)
                self._pipeline.write(flight, partial(self.destination.store, part, data))
