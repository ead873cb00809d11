"""Merges of tensors in memory, any number of them from one walk over their inputs.

    for tensor: for piece that stays in cache: for merge: fuse(its op, the piece) -> its output

Merges that need the same numbers of the same tensors (thresholds, sums) share them: a grid over
lambda, weights or elections looks for its thresholds once.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

from mergekern import huge
from mergekern.arrays import HOST, Array, copy, flat
from mergekern.backends import Backend
from mergekern.batches import Found
from mergekern.checkpoint.base import Checkpoint
from mergekern.crew import ALONE, Crew
from mergekern.dtypes import to_torch
from mergekern.findings import check_copied, check_findings
from mergekern.fused import FusedOp, Tile
from mergekern.into import outputs_in
from mergekern.lazily import torch
from mergekern.onepass import Merging, OnePass
from mergekern.plan import Plan, Step
from mergekern.pools import weighed
from mergekern.small import merge_small
from mergekern.sources import Resident
from mergekern.statistics import Numbers, fused_op, kept_by, numbers_of, pruned
from mergekern.tiles import TILE_ALIGN, cut
from mergekern.trimming import Windows, exact_windows

PIECE = 8 * TILE_ALIGN  # elements that stay in cache while every merge reads them


@dataclass(frozen=True)
class Job:
    """One plan, its checkpoints in its order, and its outputs by name."""

    plan: Plan
    checkpoints: Sequence[Checkpoint]
    outs: dict[str, torch.Tensor]

    def flat(self, steps: Sequence[Step]) -> dict[str, Array]:
        """The outputs of some steps, as kernels write them."""
        return {step.name: flat(self.outs[step.name]) for step in steps}

    def result(self) -> dict[str, torch.Tensor]:
        """The merged tensors by name; aliases share storage."""
        return self.outs | {alias: self.outs[name] for alias, name in self.plan.aliases.items()}


Part = tuple[Job, list[Step]]  # steps of one plan that have to be merged together


def merge_in_memory(
    plans: Sequence[Plan],
    checkpoints: Sequence[Sequence[Checkpoint]],
    *,
    backend: Backend,
    into: Mapping[str, torch.Tensor] | None = None,
) -> list[dict[str, torch.Tensor]]:
    """The merged tensors of every plan by name, where the inputs lie, which are not copied.

    into: of the one plan there is, where its tensors go; see into.outputs_in()
    """
    jobs = []
    plans = [_weighed(backend, *each) for each in zip(plans, checkpoints, strict=True)]
    for plan, opened in zip(plans, checkpoints, strict=True):
        if into is None:
            device = opened[0].device
            outs = {step.name: _fresh(step, device) for step in plan.steps}
        else:
            outs = outputs_in(into, plan, opened)
        jobs.append(Job(plan, opened, outs))
    walks: dict[tuple[str, ...], list[Part]] = {}
    known: Found = {}
    for job in jobs:
        left = merge_small(backend, job.plan, job.checkpoints, job.outs, known)
        for steps in _groups(left):
            walks.setdefault(tuple(step.name for step in steps), []).append((job, steps))
    with closing(Crew(backend)) as crew:
        crew.each(_walk, list(walks.values()), _goes_beside)
    return [job.result() for job in jobs]


def _weighed(backend: Backend, plan: Plan, checkpoints: Sequence[Checkpoint]) -> Plan:
    """The plan with the weights of its pools."""
    pooled = [step for step in plan.steps if step.spec is not None and step.spec.pool]
    if not pooled:
        return plan
    tiles = ((step, _whole_tile(step, checkpoints)) for step in pooled)
    found = {step.name: step for step in weighed(backend, pooled, tiles)}
    return replace(plan, steps=tuple(found.get(step.name, step) for step in plan.steps))


def _fresh(step: Step, device: str) -> torch.Tensor:
    tensor = torch.empty(step.shape, dtype=to_torch(step.dtype), device=device)
    if device == HOST:
        huge.advise(tensor.data_ptr(), tensor.nbytes)
    return tensor


def _groups(steps: Sequence[Step]) -> Iterator[list[Step]]:
    """Steps that have to be merged together: those whose thresholds range over the whole model."""
    together = [s for s in steps if s.spec is not None and s.spec.whole_model and s.numel]
    if together:
        yield together
    known = set(map(id, together))
    yield from ([step] for step in steps if id(step) not in known)


def _goes_beside(parts: Sequence[Part]) -> bool:
    """Whether others may be merged meanwhile: not beside what brings threads of its own."""
    return all(
        len(steps) == 1
        and steps[0].numel <= ALONE
        and steps[0].spec is not None
        and steps[0].spec.function is None
        for _, steps in parts
    )


def _walk(backend: Backend, parts: Sequence[Part]) -> None:
    """One walk over tensors of the same names, which are the same tensors where merges share
    them."""
    batches = [_Batch(backend, alike) for alike in _alike(parts)]
    for place in range(len(parts[0][1])):
        numel = max(steps[place].numel for _, steps in parts)
        length = PIECE if len(parts) > 1 else max(numel, 1)
        for start in range(0, numel, length):
            for batch in batches:
                batch.take(place, start, start + length)
    for batch in batches:
        batch.finish()


def _alike(parts: Sequence[Part]) -> list[Sequence[Part]]:
    """Those together that share what they need to know of the tensors."""
    if len(parts) == 1:
        return [parts]
    groups: dict[Hashable, list[Part]] = {}
    for job, steps in parts:
        groups.setdefault(_what_is_shared(job, steps), []).append((job, steps))
    return list(groups.values())


def _what_is_shared(job: Job, steps: Sequence[Step]) -> Hashable:
    """Equal for steps that read the same tensors and ask the same statistics of them."""
    return tuple(
        (
            step.action,
            step.work,
            step.shape,
            step.expert_index,
            tuple((id(job.checkpoints[read.model]), read.name) for read in step.inputs),
            step.base is None,
            None if step.spec is None else (step.spec.trimming, step.spec.one_pass),
        )
        for step in steps
    )


class _Batch:
    """Merges of the same tensors that share what they need to know of them."""

    def __init__(self, backend: Backend, parts: Sequence[Part]) -> None:
        first, self._steps = parts[0]
        self._tiles = [_whole_tile(step, first.checkpoints) for step in self._steps]
        self._backend = backend
        self._parts = parts
        self._merges = [
            Merging({step.name: step for step in steps}, job.flat(steps), {})
            for job, steps in parts
        ]
        self._ops: tuple[int, list[tuple[FusedOp, Tile]]] = (-1, [])
        self._windows: Windows = {}
        self._one_pass: OnePass | None = None
        tensors = Resident(zip(self._steps, self._tiles, strict=True))
        specs = [step.spec for step in self._steps if step.spec is not None and step.numel]
        if specs and all(spec.one_pass for spec in specs):
            self._one_pass = OnePass(backend, tensors, self._merges)
        elif any(spec.trims for spec in specs):
            self._windows = exact_windows(backend, tensors)

    def take(self, place: int, start: int, stop: int) -> None:
        """Merge elements [start, stop) of a tensor, as far as it has them."""
        step, whole = self._steps[place], self._tiles[place]
        stop = min(stop, step.numel)
        if start >= stop:
            return
        entire = stop - start == step.numel
        tile = whole if entire else cut(whole, start, stop)
        if step.action == "copy":
            self._copy(step, tile)
        elif self._one_pass is not None:
            self._one_pass.take(step, whole, tile)
        else:
            for merge, (op, masked) in zip(self._merges, self._ops_of(place), strict=True):
                out = merge.outs[step.name][start:stop]
                piece = masked if entire else cut(masked, start, stop)
                merge.note(step.name, self._backend.fuse(op, piece, out))

    def finish(self) -> None:
        """Set right what is left open; raise for what must not be merged."""
        if self._one_pass is not None:
            self._one_pass.finish()
        for (job, _), merge in zip(self._parts, self._merges, strict=True):
            for name, found in merge.found.items():
                check_findings(job.plan, job.checkpoints, merge.steps[name], found)

    def _copy(self, step: Step, tile: Tile) -> None:
        job, _ = self._parts[0]
        check_copied(job.plan, job.checkpoints, step, tile)
        for merge in self._merges:
            copy(tile.experts[0], merge.outs[step.name][tile.offset : tile.offset + tile.numel])

    def _ops_of(self, place: int) -> list[tuple[FusedOp, Tile]]:
        """The op of each merge, and the whole tensor with its masks. The pieces of a tensor follow
        each other, and share them."""
        if self._ops[0] != place:
            self._ops = (place, self._make_ops(place))
        return self._ops[1]

    def _make_ops(self, place: int) -> list[tuple[FusedOp, Tile]]:
        name, whole = self._steps[place].name, self._tiles[place]
        windows = self._windows.get(name)
        known: dict[Hashable, Numbers] = {}
        ops = []
        for merge in self._merges:
            step = merge.steps[name]
            assert step.spec is not None, f"{name}: not a merge step"
            asks = step.spec.asks
            if asks not in known:
                tensor = Resident([(step, whole)])
                known[asks] = numbers_of(self._backend, tensor, windows)
            masks = known[asks].masks
            op = kept_by(fused_op(step, windows, known[asks]), masks)
            masked = replace(whole, masks=masks)
            ops.append((op, pruned(self._backend, op, masked)))
        return ops


def _whole_tile(step: Step, checkpoints: Sequence[Checkpoint]) -> Tile:
    inputs = [checkpoints[i.model].read(i.name, 0, step.numel, None) for i in step.inputs]
    base = None if step.base is None else inputs.pop(0)
    return Tile(step.name, 0, base, tuple(inputs))
