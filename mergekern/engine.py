"""Runs plans inside a memory budget: read -> kernel -> write, overlapped.

    for unit in stream(units(plans)):
        for plan, part in unit: fuse(op of its step, its tile) -> its place in the plan's output
        write(unit)

A unit is a tile of a large tensor, a tensor held whole, or a bundle of small ones. Tensors whose
method needs statistics of all of them are held whole where they fit, and read several times where
not. What is written is recorded in a journal, so that the same call goes on where one was killed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mergekern import budget
from mergekern.backends import Backend
from mergekern.budget import MemoryEstimate
from mergekern.checkpoint.base import Checkpoint
from mergekern.errors import BudgetError
from mergekern.lock import input_files
from mergekern.output import is_finished
from mergekern.plan import Plan
from mergekern.progress import Progress
from mergekern.run import Run


@dataclass(frozen=True)
class RunSummary:
    """What a merge moved. resumed_bytes: of the output, found finished when it began."""

    bytes_read: int
    bytes_written: int
    seconds: float
    resumed_bytes: int

    @property
    def already_merged(self) -> bool:
        """True when the folder held this merge, finished, and nothing was done."""
        return self.bytes_read == 0 and self.bytes_written == 0 and self.resumed_bytes > 0


def memory_estimate(plans: Sequence[Plan], max_memory: int | None = None) -> MemoryEstimate:
    """What merge_to_folders() will hold in memory; BudgetError when max_memory is too little."""
    estimates = [estimate for _, estimate in _together(plans, max_memory, None)]
    return max(estimates, key=lambda estimate: estimate.total)


def is_merged(plan: Plan, checkpoints: Sequence[Checkpoint], output: Path) -> bool:
    """True when the folder holds this merge, finished. OutputError when it holds something else."""
    return is_finished(output, plan.digest if _known(checkpoints) else "", plan.shards)


def _known(checkpoints: Sequence[Checkpoint]) -> bool:
    """Models in memory have nothing by which a later call could know them again."""
    return all(checkpoint.fingerprint for checkpoint in checkpoints)


def merge_to_folders(
    plans: Sequence[Plan],
    checkpoints: Sequence[Sequence[Checkpoint]],
    outputs: Sequence[Path],
    *,
    backend: Backend,
    max_memory: int | None,
    progress: Progress,
    finishes: Sequence[Callable[[Path], None]],
) -> list[RunSummary]:
    """Merge into a folder each, going on where an interrupted run of the same plans stopped.

    The checkpoints of each plan are its own order of those that all share; what several plans need
    is read once for as many of them as the memory allows.
    finishes: write the side files and the lock file into a folder, when all its weights are there.
    A folder with `mergekern.lock.json` and no journal is finished; a finished merge of the same
    plan is left as it is. Raises BudgetError, OutputError, NonFiniteError, MismatchError and
    CheckpointError; then no unfinished folder looks finished, and all can be resumed once that is
    mended.
    """
    jobs = list(map(_Job, plans, checkpoints, outputs, finishes))
    summaries: dict[int, RunSummary] = {}
    left = []
    for number, job in enumerate(jobs):
        if is_merged(job.plan, job.checkpoints, job.output):
            summaries[number] = RunSummary(0, 0, 0.0, job.plan.output_bytes)
        else:
            left.append(number)
    # All are estimated before the first one begins.
    for chosen, estimate in _together([plans[n] for n in left], max_memory, backend):
        numbers = [left[place] for place in chosen]
        found = _run([jobs[number] for number in numbers], backend, progress, estimate)
        summaries.update(zip(numbers, found, strict=True))
    return [summaries[number] for number in range(len(jobs))]


@dataclass(frozen=True)
class _Job:
    plan: Plan
    checkpoints: Sequence[Checkpoint]
    output: Path
    finish: Callable[[Path], None]


def _together(
    plans: Sequence[Plan], max_memory: int | None, backend: Backend | None
) -> list[tuple[range, MemoryEstimate]]:
    """Runs of neighbours that the memory allows to be merged together, and what each will hold."""

    def split(places: range) -> list[tuple[range, MemoryEstimate]]:
        try:
            mine = [plans[place] for place in places]
            return [(places, budget.memory_estimate(mine, max_memory, backend))]
        except BudgetError:
            if len(places) == 1:
                raise
            middle = len(places) // 2
            return split(places[:middle]) + split(places[middle:])

    return split(range(len(plans))) if plans else []


def _run(
    jobs: Sequence[_Job], backend: Backend, progress: Progress, estimate: MemoryEstimate
) -> list[RunSummary]:
    began = time.monotonic()
    plans, checkpoints = [job.plan for job in jobs], [job.checkpoints for job in jobs]
    run = Run(plans, checkpoints, backend, progress, estimate)
    try:
        # Headers alone do not tell fine-tunes apart, hence size and time of change.
        states = [[input_files(each) for each in mine] for mine in checkpoints]
        inputs = [s if _known(mine) else None for s, mine in zip(states, checkpoints, strict=True)]
        resumed = run.open([job.output for job in jobs], inputs)
        written = run.merge()
        for checkpoint in {id(each): each for mine in checkpoints for each in mine}.values():
            checkpoint.verify_unchanged()
        run.finish([job.finish for job in jobs])
    finally:
        run.close()
    seconds = time.monotonic() - began
    moved = zip(run.bytes_read(), written, resumed, strict=True)
    return [RunSummary(read, wrote, seconds, before) for read, wrote, before in moved]
