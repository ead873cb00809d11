"""Runs a plan inside a memory budget: read -> kernel -> write, overlapped.

    for unit in stream(units(plan)):
        for part in unit: fuse(op of its step, its tile) -> its place in the output
        write(unit)

A unit is a tile of a large tensor, a tensor held whole, or a bundle of small ones. Tensors whose
method needs statistics of all of them are held whole where they fit, and read several times where
not. What is written is recorded in a journal, so that the same call goes on where one was killed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from xxhash import xxh3_64_hexdigest

from mergekern import budget
from mergekern.backends import Backend
from mergekern.budget import MemoryEstimate
from mergekern.checkpoint.base import Checkpoint
from mergekern.errors import OutputError
from mergekern.findings import check_equal, check_findings
from mergekern.fused import FusedOp, Tile
from mergekern.journal import Journal, Range
from mergekern.output import OutputFolder, is_finished
from mergekern.plan import Plan, Step
from mergekern.progress import Progress
from mergekern.sources import Reel, Resident
from mergekern.statistics import ModelWindows, TileSource, model_windows, resolve
from mergekern.stream import Arena, Flight, Pipeline
from mergekern.units import Coverage, Cutter, Interval, Part

CHUNK = 16 << 20  # bytes written and recorded by one task
THRESHOLDS = "thresholds"  # phases, as the progress bar names them
RESUME = "resume"
MERGE = "merge"


@dataclass(frozen=True)
class RunSummary:
    """What a merge moved. resumed_bytes: found finished, from a run before this one."""

    bytes_read: int
    bytes_written: int
    seconds: float
    resumed_bytes: int


def memory_estimate(plan: Plan, max_memory: int | None = None) -> MemoryEstimate:
    """What merge_to_folder will hold in memory; BudgetError when max_memory is too little."""
    return budget.memory_estimate(plan, max_memory)


def merge_in_memory(
    plan: Plan, checkpoints: Sequence[Checkpoint], *, backend: Backend
) -> dict[str, torch.Tensor]:
    """The merged tensors by name; aliases share storage. Inputs in memory are not copied."""
    steps = [step for step in plan.steps if step.numel]
    whole = {step.name: _whole_tile(step, checkpoints) for step in steps if plan.whole_model}
    windows = None
    if plan.whole_model:
        merged = [step for step in steps if step.spec is not None and step.spec.whole_model]
        windows = model_windows(backend, [Resident(step, whole[step.name]) for step in merged])
    result = {}
    for step in plan.steps:
        out = torch.empty(step.numel, dtype=step.dtype)
        if step.numel:
            tile = whole.pop(step.name, None) or _whole_tile(step, checkpoints)
            _compute(plan, checkpoints, backend, windows, step, tile, out)
        result[step.name] = out.view(step.shape)
    return result | {alias: result[name] for alias, name in plan.aliases.items()}


def _whole_tile(step: Step, checkpoints: Sequence[Checkpoint]) -> Tile:
    inputs = [checkpoints[i.model].read(i.name, 0, step.numel, None) for i in step.inputs]
    base = None if step.base is None else inputs.pop(0)
    return Tile(step.name, 0, base, tuple(inputs))


def _compute(
    plan: Plan,
    checkpoints: Sequence[Checkpoint],
    backend: Backend,
    windows: ModelWindows | None,
    step: Step,
    tile: Tile,
    out: torch.Tensor,
) -> None:
    """One tensor that is held whole."""
    if step.action == "copy":
        check_equal(plan, step, tile)
        out.copy_(tile.experts[0])
        return
    op = resolve(backend, Resident(step, tile), windows)
    check_findings(plan, checkpoints, step, backend.fuse(op, tile, out))


def merge_to_folder(
    plan: Plan,
    checkpoints: Sequence[Checkpoint],
    output: Path,
    *,
    backend: Backend,
    max_memory: int | None,
    progress: Progress,
    finish: Callable[[Path], None],
) -> RunSummary:
    """Merge into a folder, going on where an interrupted run of the same plan stopped.

    finish: writes the side files and the lock file into the folder, when all weights are there.
    A folder with `mergekern.lock.json` and no journal is finished; a finished merge of the same
    plan is left as it is. Raises BudgetError, OutputError, NonFiniteError, MismatchError and
    CheckpointError; then the folder never looks finished, and can be resumed once that is mended.
    """
    began = time.monotonic()
    estimate = budget.memory_estimate(plan, max_memory, backend.name)
    known = all(checkpoint.fingerprint for checkpoint in checkpoints)
    if is_finished(output, plan.digest if known else "", plan.shards):
        return RunSummary(0, 0, time.monotonic() - began, plan.output_bytes)
    run = _Run(plan, checkpoints, backend, progress, estimate)
    try:
        resumed = run.open(output, _input_state(checkpoints) if known else None)
        written = run.merge()
        for checkpoint in checkpoints:
            checkpoint.verify_unchanged()
        run.finish(finish)
    finally:
        run.close()
    return RunSummary(run.bytes_read, written, time.monotonic() - began, resumed)


def _input_state(checkpoints: Sequence[Checkpoint]) -> dict[str, Any]:
    """Size and time of change of every input file: headers alone do not tell fine-tunes apart."""
    found: dict[str, Any] = {}
    for number, checkpoint in enumerate(checkpoints):
        folder = checkpoint.folder or Path(checkpoint.label).parent
        for file in checkpoint.fingerprint:
            if (folder / file).exists():
                state = os.stat(folder / file)
                found[f"{number}:{file}"] = [state.st_size, state.st_mtime_ns]
    return found


class _Run:
    """One call of merge_to_folder: what it holds open, and how far it is."""

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
        self._pipeline = Pipeline(checkpoints, Arena(estimate.buffers))
        self._cutter = Cutter(plan, checkpoints, estimate.buffers, estimate.tile)
        self._journal: Journal | None = None
        self._windows: ModelWindows | None = None
        self._ops: dict[str, FusedOp] = {}
        self._showing = False
        self.bytes_read = 0

    def open(self, output: Path, inputs: dict[str, Any] | None) -> int:
        """Take the folder, and what a run before this one left in it. Returns its bytes.

        inputs: the state of the input files; None when they cannot be known to be the same.
        """
        made = not output.exists()
        output.mkdir(parents=True, exist_ok=True)
        self._journal = journal = Journal(output)
        self._folder = OutputFolder(output, self._plan.shards)
        records = journal.records
        if records.digest is not None and inputs is not None:
            _check_same(output, records.digest, self._plan.digest, records.inputs, inputs)
        if records.digest is None or inputs is None:
            journal.begin(self._plan.digest, inputs or {})
            records = journal.records
        try:
            self._folder.prepare()
        except OutputError:
            if not records.ranges:
                self._abandon(made)
            raise
        view = self._pipeline.arena.bytes
        self._covered = self._folder.verify(records.ranges, view, self._pipeline.readers)
        self._windows = records.windows
        return self._covered.nbytes

    def _abandon(self, made: bool) -> None:
        """Leave nothing behind where nothing was merged yet."""
        assert self._journal is not None
        self._folder.discard()
        self._journal.remove()
        if made:
            self._folder.folder.rmdir()

    def merge(self) -> int:
        """Everything that is not there yet. Returns the bytes written."""
        todo = [(step, self._missing(step)) for step in self._plan.steps]
        self._expect(todo)
        if self._plan.whole_model and self._windows is None and any(m for _, m in todo):
            self._find_windows()
        streamed = [(step, missing) for step, missing in todo if missing and self._must_stream(step)]
        apart = {step.name for step, _ in streamed}
        self._merge_parts(
            part
            for step, missing in todo
            if step.name not in apart
            for part in self._parts(step, missing)
        )
        for step, missing in streamed:
            reel = Reel(self._pipeline, self._cutter, [step])
            self._ops[step.name] = resolve(self._backend, reel.sources[0], self._windows)
            reel.stop()
            self._merge_parts(self._cutter.tiles(step, missing))
        self._pipeline.drain()
        self.bytes_read = self._pipeline.bytes_read
        return self._written

    def finish(self, finish: Callable[[Path], None]) -> None:
        """Index and side files; the journal goes last."""
        assert self._journal is not None
        self._folder.write_index()
        finish(self._folder.folder)
        self._folder.sync()
        self._journal.remove()

    def close(self) -> None:
        """Stop the threads and let go of files and buffers; what is recorded stays."""
        self._pipeline.close()
        if self._showing:
            self._progress.stop()
        if self._journal is not None:
            self._folder.close()
            self._journal.close()

    def _missing(self, step: Step) -> list[Interval]:
        """The elements that still have to be merged."""
        number, offset = self._cutter.where(step)
        file = self._plan.shards[number].file
        missing = self._covered.missing(file, offset, offset + step.nbytes)
        if missing and _whole_tensor(step) and self._cutter.fits(step):
            return [(0, step.numel)]  # it is read whole in any case
        return self._cutter.intervals(step, missing)

    def _expect(self, todo: Sequence[tuple[Step, list[Interval]]]) -> None:
        """Say what is to come: to the folder for its shards, and to whom it is shown."""
        left: dict[int, int] = {}
        total = moved = done = 0
        for step, missing in todo:
            elements = sum(stop - start for start, stop in missing)
            number, _ = self._cutter.where(step)
            left[number] = left.get(number, 0) + elements * step.dtype.itemsize
            total += self._traffic(step, step.numel)
            moved += self._traffic(step, step.numel - elements)
            done += not missing
        self._written = sum(left.values())
        self._thresholds = 0
        if self._plan.whole_model and self._windows is None and self._written:
            self._thresholds = (self._plan.passes - 1) * sum(
                self._traffic(step, step.numel) - step.nbytes for step in self._model_steps()
            )
        self._folder.expect(left)
        self._progress.start(total + self._thresholds, len(todo))
        self._showing = True
        if moved or done:
            self._progress.advance(moved, done, RESUME)

    def _traffic(self, step: Step, elements: int) -> int:
        """Bytes read and written for some elements of a step."""
        itemsizes = (self._cutter.info(source).dtype.itemsize for source in step.inputs)
        return elements * (sum(itemsizes) + step.dtype.itemsize)

    def _model_steps(self) -> list[Step]:
        return [s for s in self._plan.steps if s.spec is not None and s.spec.whole_model and s.numel]

    def _find_windows(self) -> None:
        """The first pass of methods that need a number of the whole model."""
        reel = Reel(self._pipeline, self._cutter, self._model_steps())
        reel.on_read = self._show_thresholds
        sources: list[TileSource] = list(reel.sources)
        self._windows = model_windows(self._backend, sources)
        reel.stop()
        self._show_thresholds(self._thresholds)
        assert self._journal is not None
        self._journal.add_windows(self._windows)

    def _show_thresholds(self, nbytes: int) -> None:
        """The number of reads is only known afterwards: show no more than was announced."""
        nbytes = min(nbytes, self._thresholds)
        self._thresholds -= nbytes
        self._progress.advance(nbytes, 0, THRESHOLDS)

    def _must_stream(self, step: Step) -> bool:
        return _whole_tensor(step) and not self._cutter.fits(step)

    def _parts(self, step: Step, missing: list[Interval]) -> Iterator[Part]:
        if missing and _whole_tensor(step):
            return iter([Part(step, 0, step.numel)])
        return self._cutter.tiles(step, missing)

    def _merge_parts(self, parts: Iterable[Part]) -> None:
        last = None
        for flight in self._pipeline.stream(self._cutter.units(parts, output=True)):
            moved = done = 0
            for number, part in enumerate(flight.unit.parts):
                if last is not None and part.step is not last:
                    done += 1
                last = part.step
                self._merge_part(flight, number)
                moved += self._traffic(part.step, part.numel)
            self._write(flight)
            self._progress.advance(moved, done, MERGE)
        self._progress.advance(0, last is not None, MERGE)

    def _merge_part(self, flight: Flight, number: int) -> None:
        step = flight.unit.parts[number].step
        tile, out = flight.tile(number), flight.out(number)
        if step.action == "copy":
            check_equal(self._plan, step, tile)
            if out.data_ptr() != tile.experts[0].data_ptr():
                out.copy_(tile.experts[0])
            return
        op = self._op(step, tile)
        found = self._backend.fuse(op, tile, out)
        check_findings(self._plan, self._checkpoints, step, found)

    def _op(self, step: Step, tile: Tile) -> FusedOp:
        if step.name in self._ops:
            return self._ops[step.name]
        op = resolve(self._backend, Resident(step, tile), self._windows)
        self._ops = {step.name: op}  # the tiles of one tensor follow each other
        return op

    def _write(self, flight: Flight) -> None:
        for run in flight.unit.runs:
            for at in range(0, run.length, CHUNK):
                length = min(CHUNK, run.length - at)
                data = flight.bytes(run.begin + at, length)
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


def _check_same(
    output: Path, found: str, wanted: str, found_inputs: object, wanted_inputs: object
) -> None:
    what = "another recipe, other inputs or other settings" if found != wanted else None
    if what is None and found_inputs != wanted_inputs:
        what = "inputs whose files were changed since"
    if what is not None:
        raise OutputError(
            f"{output}: holds an unfinished merge of {what}, which this one cannot go on with; "
            f"remove the folder or choose another"
        )
