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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from mergekern import budget, huge
from mergekern.backends import Backend
from mergekern.budget import MemoryEstimate
from mergekern.checkpoint.base import Checkpoint
from mergekern.findings import check_copied, check_findings
from mergekern.fused import Tile
from mergekern.lock import input_files
from mergekern.onepass import merge_in_one_pass
from mergekern.output import is_finished
from mergekern.plan import Plan, Step
from mergekern.progress import Progress
from mergekern.run import Run
from mergekern.sources import Resident
from mergekern.statistics import resolve
from mergekern.trimming import exact_windows, merges_in_one_pass


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


def merge_in_memory(
    plan: Plan, checkpoints: Sequence[Checkpoint], *, backend: Backend
) -> dict[str, torch.Tensor]:
    """The merged tensors by name; aliases share storage. Inputs in memory are not copied."""
    outs = {step.name: huge.empty(step.numel, step.dtype) for step in plan.steps}
    for group in _groups(plan.steps):
        tensors = Resident((step, _whole_tile(step, checkpoints)) for step in group)
        _merge_group(plan, checkpoints, tensors, outs, backend)
    result = {step.name: outs[step.name].view(step.shape) for step in plan.steps}
    return result | {alias: result[name] for alias, name in plan.aliases.items()}


def _groups(steps: Sequence[Step]) -> Iterator[list[Step]]:
    """Steps that have to be merged together: those whose thresholds range over the whole model."""
    together = [s for s in steps if s.spec is not None and s.spec.whole_model and s.numel]
    if together:
        yield together
    known = set(map(id, together))
    yield from ([step] for step in steps if id(step) not in known)


def _merge_group(
    plan: Plan,
    checkpoints: Sequence[Checkpoint],
    tensors: Resident,
    outs: Mapping[str, torch.Tensor],
    backend: Backend,
) -> None:
    specs = [step.spec for step in tensors.steps if step.spec is not None and step.numel]
    if specs and all(map(merges_in_one_pass, specs)):
        found = merge_in_one_pass(backend, tensors, outs)
        for step in tensors.steps:
            check_findings(plan, checkpoints, step, found[step.name])
        return
    windows = exact_windows(backend, tensors) if specs else None
    for step, tile in tensors.tiles():
        if step.action == "copy":
            check_copied(plan, checkpoints, step, tile)
            outs[step.name].copy_(tile.experts[0])
        elif step.numel:
            op = resolve(backend, Resident([(step, tile)]), windows)
            check_findings(plan, checkpoints, step, backend.fuse(op, tile, outs[step.name]))


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


def _whole_tile(step: Step, checkpoints: Sequence[Checkpoint]) -> Tile:
    inputs = [checkpoints[i.model].read(i.name, 0, step.numel, None) for i in step.inputs]
    base = None if step.base is None else inputs.pop(0)
    return Tile(step.name, 0, base, tuple(inputs))
