"""A plan's steps as columns, built once, so that no later work on them is Python per tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter

import numpy as np
import torch

from mergekern.checkpoint.base import Checkpoint, TensorInfo
from mergekern.checkpoint.files import WeightFile
from mergekern.fused import name_hash
from mergekern.plan import Input, Plan, Step

NONE, MEMORY, READ = -3, -2, -1  # in place of a file: no such input, views, read() into a buffer


@dataclass(frozen=True)
class Table:
    """One row per step; inputs have one column ("slot") each, the base first, then the experts.

    numel, itemsize: of the output;  shard, offset: where its first byte lies
    file:   of each input, a place in `files`, or NONE, MEMORY or READ
    begin:  the first byte of each input in its file
    width:  bytes of an element of each input, 0 where there is none
    kind:   counted from 0, equal for steps whose ops differ in nothing but thresholds and name: the
            same spec object, the same experts, the same types
    """

    steps: Sequence[Step]
    checkpoints: Sequence[Checkpoint]
    files: Sequence[WeightFile]
    numel: np.ndarray
    itemsize: np.ndarray
    shard: np.ndarray
    offset: np.ndarray
    file: np.ndarray
    begin: np.ndarray
    width: np.ndarray
    kind: np.ndarray

    @cached_property
    def traffic(self) -> np.ndarray:
        """Bytes read and written per element."""
        found: np.ndarray = self.width.sum(axis=1) + self.itemsize
        return found

    @cached_property
    def whole_tensor(self) -> np.ndarray:
        """True for steps whose method needs numbers of the whole tensor first."""
        specs = [step.spec for step in self._of_kinds]
        return np.array([spec is not None and spec.whole_tensor for spec in specs], bool)[self.kind]

    @cached_property
    def whole_model(self) -> np.ndarray:
        """Rows that need a number of the whole model, in order."""
        specs = [step.spec for step in self._of_kinds]
        whole = np.array([spec is not None and spec.whole_model for spec in specs], bool)
        return np.flatnonzero(whole[self.kind] & (self.numel > 0))

    @cached_property
    def copied(self) -> np.ndarray:
        return np.array([step.action == "copy" for step in self._of_kinds], bool)[self.kind]

    @cached_property
    def name_hash(self) -> np.ndarray:
        return np.array([name_hash(step.name) for step in self.steps], np.uint32)

    def source(self, row: int, slot: int) -> tuple[Checkpoint, TensorInfo]:
        """Whose tensor an input is, and which."""
        step = self.steps[row]
        source = step.base if slot == 0 else step.experts[slot - 1]
        assert source is not None
        checkpoint = self.checkpoints[source.model]
        return checkpoint, checkpoint.tensors[source.name]

    @cached_property
    def _of_kinds(self) -> list[Step]:
        """A step of each kind."""
        row = np.zeros(int(self.kind.max(initial=-1)) + 1, np.int64)
        row[self.kind] = np.arange(len(self.kind))
        return [self.steps[at] for at in row.tolist()]


def tabulate(plan: Plan, checkpoints: Sequence[Checkpoint]) -> Table:
    """The columns of a plan over its checkpoints."""
    steps = plan.steps
    inputs = _Inputs(steps, checkpoints)
    where: dict[str, int] = {}
    shard: dict[str, int] = {}
    for number, found in enumerate(plan.shards):
        where.update(found.offsets)
        shard.update(dict.fromkeys(found.offsets, number))
    names = [step.name for step in steps]
    dtype, width = inputs.dtypes()
    return Table(
        steps=steps,
        checkpoints=checkpoints,
        files=[file for checkpoint in checkpoints for file in checkpoint.files.values()],
        numel=_column([step.numel for step in steps]),
        itemsize=_column([step.dtype.itemsize for step in steps]),
        shard=_column([shard[name] for name in names]),
        offset=_column([where[name] for name in names]),
        file=inputs.files(),
        begin=inputs.spread(list(map(attrgetter("offset"), inputs.infos)), 0),
        width=width,
        kind=_kinds(steps, dtype),
    )


class _Inputs:
    """Every input of every step in one list, and where each belongs in a column per slot."""

    def __init__(self, steps: Sequence[Step], checkpoints: Sequence[Checkpoint]) -> None:
        self._checkpoints = checkpoints
        self._given: list[Input] = [source for step in steps for source in step.inputs]
        tensors = [checkpoint.tensors for checkpoint in checkpoints]
        self.infos = [tensors[source.model][source.name] for source in self._given]
        experts = _column([len(step.experts) for step in steps])
        based = _column([step.base is not None for step in steps])
        self._rows = np.repeat(np.arange(len(steps)), experts + based)
        before = np.cumsum(experts + based) - experts - based
        # Without a base, the experts begin in the second column nevertheless.
        self._slots = np.arange(len(self._given)) - (before + based - 1)[self._rows]
        self._shape = (len(steps), 1 + int(experts.max(initial=0)))

    def spread(self, values: Sequence[int] | np.ndarray, empty: int) -> np.ndarray:
        column = np.full(self._shape, empty, np.int64)
        column[self._rows, self._slots] = values
        return column

    def files(self) -> np.ndarray:
        numbers: list[dict[str, int]] = []
        others = [READ if checkpoint.on_disk else MEMORY for checkpoint in self._checkpoints]
        count = 0
        for checkpoint in self._checkpoints:
            numbers.append({name: count + at for at, name in enumerate(checkpoint.files)})
            count += len(checkpoint.files)
        pairs = zip(self._given, self.infos, strict=True)
        return self.spread([numbers[s.model].get(i.file, others[s.model]) for s, i in pairs], NONE)

    def dtypes(self) -> tuple[np.ndarray, np.ndarray]:
        """A number for each input's dtype, and the bytes of its elements."""
        codes: dict[torch.dtype | None, int] = {None: 0}
        found = [
            codes.setdefault(dtype, len(codes)) for dtype in map(attrgetter("dtype"), self.infos)
        ]
        dtype = self.spread(found, 0)
        widths = np.array([0 if code is None else code.itemsize for code in codes])
        return dtype, widths[dtype]


def _kinds(steps: Sequence[Step], dtype: np.ndarray) -> np.ndarray:
    codes: dict[tuple[object, ...], int] = {}
    kind = _column(
        [
            codes.setdefault((id(s.spec), s.expert_index, s.dtype, s.work, s.action), len(codes))
            for s in steps
        ]
    )
    for column in dtype.T:
        if column.size and (column != column[0]).any():
            together = (kind * (int(column.max()) + 1) + column).tolist()
            numbers = {code: number for number, code in enumerate(dict.fromkeys(together))}
            kind = _column([numbers[code] for code in together])
    return kind


def _column(values: Sequence[int]) -> np.ndarray:
    return np.array(values, np.int64).reshape(len(values))
