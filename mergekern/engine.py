"""Runs a plan inside a memory budget: read -> kernel -> write, overlapped.

    for unit in stream(units(plan)):
        for part in unit: fuse(op of its step, its tile) -> its place in the output
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


def memory_estimate(plan: Plan, max_memory: int | None = None) -> MemoryEstimate:
    """What merge_to_folder will hold in memory; BudgetError when max_memory is too little."""
    return budget.memory_estimate(plan, max_memory)


def is_merged(plan: Plan, checkpoints: Sequence[Checkpoint], output: Path) -> bool:
    """True when the folder holds this merge, finished. OutputError when it holds something else."""
    return is_finished(output, plan.digest if _known(checkpoints) else "", plan.shards)


def _known(checkpoints: Sequence[Checkpoint]) -> bool:
    """Models in memory have nothing by which a later call could know them again."""
    return all(checkpoint.fingerprint for checkpoint in checkpoints)


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
    estimate = budget.memory_estimate(plan, max_memory, backend)
    if is_merged(plan, checkpoints, output):
        return RunSummary(0, 0, time.monotonic() - began, plan.output_bytes)
    run = Run(plan, checkpoints, backend, progress, estimate)
    try:
        # Headers alone do not tell fine-tunes apart, hence size and time of change.
        state = [input_files(checkpoint) for checkpoint in checkpoints]
        resumed = run.open(output, state if _known(checkpoints) else None)
        written = run.merge()
        for checkpoint in checkpoints:
            checkpoint.verify_unchanged()
        run.finish(finish)
    finally:
        run.close()
    return RunSummary(run.bytes_read, written, time.monotonic() - began, resumed)


def merge_many_to_folders(
    plans: Sequence[Plan],
    checkpoints: Sequence[Sequence[Checkpoint]],
    outputs: Sequence[Path],
    *,
    backend: Backend,
    max_memory: int | None,
    progress: Progress,
    finishes: Sequence[Callable[[Path], None]],
) -> list[RunSummary]:
    """merge_to_folder() for several plans, in order; the checkpoints of each are its own order of
    those that all share. Those before one that fails are finished, and found so by the next call.
    """
    for plan in plans:
        budget.memory_estimate(plan, max_memory, backend)
    return [
        merge_to_folder(
            plan,
            opened,
            output,
            backend=backend,
            max_memory=max_memory,
            progress=progress,
            finish=finish,
        )
        for plan, opened, output, finish in zip(plans, checkpoints, outputs, finishes, strict=True)
    ]
