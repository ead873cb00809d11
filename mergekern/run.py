"""One merge into a folder: what it holds open, what is done, and the order of what is not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from xxhash import xxh3_64_hexdigest

from mergekern.backends import Backend
from mergekern.budget import MemoryEstimate
from mergekern.checkpoint.base import Checkpoint
from mergekern.errors import OutputError
from mergekern.findings import check_copied, check_findings
from mergekern.fused import FusedOp, Tile
from mergekern.journal import Journal, Range
from mergekern.output import OutputFolder
from mergekern.plan import Plan, Step
from mergekern.progress import Progress
from mergekern.sources import Reel, Resident
from mergekern.statistics import fused_op, resolve
from mergekern.stream import Arena, Flight, Pipeline
from mergekern.tiles import Part
from mergekern.trimming import Windows, exact_windows
from mergekern.units import Cutter, Interval

CHUNK = 16 << 20  # bytes written and recorded by one task
RESUME, THRESHOLDS, MERGE = "resume", "thresholds", "merge"  # phases, as progress shows them

Todo = list[tuple[Step, list[Interval]]]  # every step, and the elements that it lacks


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
        self._pipeline = Pipeline(checkpoints, Arena(estimate.buffers))
        self._cutter = Cutter(plan, checkpoints, estimate.buffers, estimate.tile)
        self._journal: Journal | None = None
        self._windows: Windows | None = None
        self._ops: dict[str, FusedOp] = {}

    @property
    def bytes_read(self) -> int:
        return self._pipeline.bytes_read

    def open(self, output: Path, inputs: list[Any] | None) -> int:
        """Take the folder, with what a run before this one left in it. Returns its bytes.

        inputs: the state of the input files; None when they cannot be known to be the same.
        """
        made = not output.exists()
        try:
            output.mkdir(parents=True, exist_ok=True)
            self._journal = journal = Journal(output)
        except OSError as error:
            raise OutputError(f"{output}: cannot be written: {error.strerror}") from error
        self._folder = OutputFolder(output, self._plan.shards)
        digest = journal.records.digest
        if digest is not None and inputs is not None:
            _check_same(output, digest == self._plan.digest, journal.records.inputs == inputs)
        else:
            journal.begin(self._plan.digest, inputs)
        try:
            self._folder.prepare()
        except OutputError:
            if not journal.records.ranges:
                self._abandon(made)
            raise
        buffer = self._pipeline.arena.bytes
        ranges = journal.records.ranges
        self._covered = self._folder.verify(ranges, buffer, self._pipeline.readers)
        self._windows = journal.records.windows
        return self._covered.nbytes

    def merge(self) -> int:
        """Everything that is not there yet. Returns the bytes written."""
        todo = [(step, self._missing(step)) for step in self._plan.steps]
        written = self._expect(todo)
        if self._plan.whole_model and self._windows is None and written:
            self._find_windows()
        apart = {step.name for step, missing in todo if missing and self._must_stream(step)}
        together = (item for item in todo if item[0].name not in apart)
        self._merge_parts(part for item in together for part in self._parts(*item))
        for step, missing in todo:
            if step.name in apart:
                self._merge_streamed(step, missing)
        self._pipeline.drain()
        return written

    def finish(self, finish: Callable[[Path], None]) -> None:
        """Index and side files; the journal goes last."""
        assert self._journal is not None
        self._folder.write_index()
        try:
            finish(self._folder.folder)
            self._folder.sync()
        except OSError as error:
            raise self._folder.failure(error, str(error.filename or "a side file")) from error
        self._journal.remove()

    def close(self) -> None:
        """Stop the threads and let go of files and buffers; what is recorded stays."""
        self._pipeline.close()
        if self._showing:
            self._progress.stop()
        if self._journal is not None:
            self._folder.close()
            self._journal.close()

    def _abandon(self, made: bool) -> None:
        """Leave nothing behind where nothing was merged yet."""
        assert self._journal is not None
        self._folder.discard()
        self._journal.remove()
        if made:
            self._folder.folder.rmdir()

    def _missing(self, step: Step) -> list[Interval]:
        """The elements that still have to be merged."""
        number, offset = self._cutter.where(step)
        file = self._plan.shards[number].file
        missing = self._covered.missing(file, offset, offset + step.nbytes)
        if missing and _whole_tensor(step) and self._cutter.fits(step):
            return [(0, step.numel)]  # it is read whole in any case
        return self._cutter.intervals(step, missing)

    def _expect(self, todo: Todo) -> int:
        """Say what is to come, to the folder and to whom it is shown. Returns bytes to write."""
        left: dict[int, int] = {}
        total = resumed = done = 0
        for step, missing in todo:
            elements = sum(stop - start for start, stop in missing)
            number, _ = self._cutter.where(step)
            left[number] = left.get(number, 0) + elements * step.dtype.itemsize
            total += self._traffic(step, step.numel)
            resumed += self._traffic(step, step.numel - elements)
            done += not missing
        self._folder.expect(left)
        written = sum(left.values())
        self._unseen = 0
        if self._plan.whole_model and self._windows is None and written:
            passes = self._plan.passes - 1
            self._unseen = passes * sum(self._traffic(s, s.numel) for s in self._model_steps())
        self._progress.start(total + self._unseen, len(todo))
        self._showing = True
        if done:
            self._progress.advance(resumed, done, RESUME)
        return written

    def _traffic(self, step: Step, elements: int) -> int:
        """Bytes read and written for some elements of a step."""
        itemsizes = (self._cutter.info(source).dtype.itemsize for source in step.inputs)
        return elements * (sum(itemsizes) + step.dtype.itemsize)

    def _model_steps(self) -> list[Step]:
        steps = self._plan.steps
        return [s for s in steps if s.spec is not None and s.spec.whole_model and s.numel]

    def _find_windows(self) -> None:
        """The first pass of methods that need a number of the whole model."""
        steps = self._model_steps()
        reel = Reel(self._pipeline, self._cutter, steps, self._show_thresholds)
        self._windows = exact_windows(self._backend, reel)
        self._show_thresholds(self._unseen)
        assert self._journal is not None
        self._journal.add_windows(self._windows)

    def _show_thresholds(self, nbytes: int) -> None:
        """How often is read is only known afterwards: show no more than was announced."""
        nbytes = min(nbytes, self._unseen)
        self._unseen -= nbytes
        self._progress.advance(nbytes, 0, THRESHOLDS)

    def _must_stream(self, step: Step) -> bool:
        return _whole_tensor(step) and not self._cutter.fits(step)

    def _parts(self, step: Step, missing: list[Interval]) -> Iterator[Part]:
        if missing and _whole_tensor(step):
            return iter([Part(step, 0, step.numel)])
        return self._cutter.tiles(step, missing)

    def _merge_streamed(self, step: Step, missing: list[Interval]) -> None:
        """A tensor that needs statistics of all of it, and is larger than the buffers."""
        reel = Reel(self._pipeline, self._cutter, [step])
        self._ops = {step.name: resolve(self._backend, reel, self._known(step))}
        self._merge_parts(self._cutter.tiles(step, missing))

    def _merge_parts(self, parts: Iterable[Part]) -> None:
        last: Step | None = None
        for flight in self._pipeline.stream(self._cutter.units(parts, output=True)):
            moved = done = 0
            for number, part in enumerate(flight.unit.parts):
                done += last is not None and part.step is not last
                last = part.step
                self._merge_part(flight, number)
                moved += self._traffic(part.step, part.numel)
            self._write(flight)
            self._progress.advance(moved, done, MERGE)
        if last is not None:
            self._progress.advance(0, 1, MERGE)

    def _merge_part(self, flight: Flight, number: int) -> None:
        step = flight.unit.parts[number].step
        tile, out = flight.tile(number), flight.out(number)
        if step.action == "copy":
            check_copied(self._plan, self._checkpoints, step, tile)
            if out.data_ptr() != tile.experts[0].data_ptr():
                out.copy_(tile.experts[0])
            return
        found = self._backend.fuse(self._op(step, tile), tile, out)
        check_findings(self._plan, self._checkpoints, step, found)

    def _op(self, step: Step, tile: Tile) -> FusedOp:
        """The tiles of one tensor follow each other, and share its op."""
        if step.name not in self._ops:
            known = self._known(step)
            if _whole_tensor(step):
                op = resolve(self._backend, Resident([(step, tile)]), known)
            else:
                op = fused_op(step, known[step.name] if known else None)
            self._ops = {step.name: op}
        return self._ops[step.name]

    def _known(self, step: Step) -> Windows | None:
        return self._windows if step.spec is not None and step.spec.whole_model else None

    def _write(self, flight: Flight) -> None:
        for run in flight.unit.runs:
            for at in range(0, run.length, CHUNK):
                data = flight.bytes(run.begin + at, min(CHUNK, run.length - at))
                job = partial(self._store, run.shard, run.offset + at, data)
                self._pipeline.write(flight, job)

    def _store(self, shard: int, offset: int, data: memoryview) -> None:
        """Runs on a writer thread: bytes first, then the record that they are there."""
        assert self._journal is not None
        self._folder.write(shard, offset, data)
        file = self._plan.shards[shard].file
        self._journal.add_range(Range(file, offset, len(data), xxh3_64_hexdigest(data)))
        self._folder.written(shard, len(data))


def _whole_tensor(step: Step) -> bool:
    return step.spec is not None and step.spec.whole_tensor


def _check_same(output: Path, same_plan: bool, same_inputs: bool) -> None:
    if same_plan and same_inputs:
        return
    what = (
        "inputs whose files were changed since"
        if same_plan
        else ("another recipe, other inputs or other settings")
    )
    raise OutputError(
        f"{output}: holds an unfinished merge of {what}, which this one cannot go on with; remove "
        f"the folder or choose another"
    )
