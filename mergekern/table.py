"""Plans' steps as columns, built once, so that no later work on them is Python per tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from mergekern.backends import CHUNK
from mergekern.checkpoint.base import Checkpoint, TensorInfo
from mergekern.checkpoint.files import WeightFile
from mergekern.fused import name_hash
from mergekern.plan import Plan, Step

NONE, MEMORY, READ = -3, -2, -1  # in place of a file: no such input, views, read() into a buffer

Source = tuple[Checkpoint, TensorInfo]  # whose tensor, and which


@dataclass(frozen=True)
class Target:
    """What one of the plans that run together makes of a table's rows: its outputs, in a column
    each, and its inputs, with a column for the base and one for every expert.

    number: its place among the table's targets
    steps:  by row; a plan may have none for some rows
    slots:  where in the table's columns, `width` of them, its own are; -1 where it has none
    inputs: places in the table's sources, -1 where there is none;  file: as in the table
    element: bytes of an element of all inputs
    numel, itemsize: of the output, 0 where there is none;  shard, offset: where its first byte lies
    kind:   counted from 0, equal for steps whose ops differ in nothing but thresholds and name: the
            same spec object, the same experts, the same types; -1 where there is none
    """

    number: int
    plan: Plan
    checkpoints: Sequence[Checkpoint]
    sources: Sequence[Source]
    steps: dict[int, Step]
    width: int
    slots: np.ndarray
    inputs: np.ndarray
    file: np.ndarray
    element: np.ndarray
    numel: np.ndarray
    itemsize: np.ndarray
    shard: np.ndarray
    offset: np.ndarray
    kind: np.ndarray

    @cached_property
    def whole_tensor(self) -> np.ndarray:
        """True for steps whose method needs numbers of the whole tensor first."""
        return self._by_kind([s.spec is not None and s.spec.whole_tensor for s in self._of_kinds])

    @cached_property
    def ranked(self) -> np.ndarray:
        """True for tensors whose thresholds a batch can find; see fused.Batch."""
        ranked = [step.spec is not None and step.spec.ranked for step in self._of_kinds]
        return self._by_kind(ranked) & (self.numel <= CHUNK)

    @cached_property
    def whole_model(self) -> np.ndarray:
        """Rows that need a number of the whole model, in the order of the plan."""
        specs = [step.spec for step in self._of_kinds]
        whole = self._by_kind([spec is not None and spec.whole_model for spec in specs])
        rows = np.fromiter(self.steps, np.int64)
        return rows[(whole & (self.numel > 0))[rows]]

    @cached_property
    def copied(self) -> np.ndarray:
        return self._by_kind([step.action == "copy" for step in self._of_kinds])

    @cached_property
    def needs(self) -> np.ndarray:
        """True for the table's columns that it reads."""
        found = np.zeros((len(self.kind), self.width), bool)
        row, column = np.nonzero(self.slots >= 0)
        found[row, self.slots[row, column]] = True
        return found

    @cached_property
    def name_hash(self) -> np.ndarray:
        found = np.zeros(len(self.kind), np.uint32)
        found[list(self.steps)] = [name_hash(step.name) for step in self.steps.values()]
        return found

    def source(self, row: int, place: int) -> Source:
        """One of its inputs, the base being the first."""
        return self.sources[int(self.inputs[row, place])]

    def dtypes(self, step: Step) -> list[torch.dtype]:
        """Of a step's inputs, the base being the first."""
        opened = self.checkpoints
        return [opened[read.model].tensors[read.name].dtype for read in step.inputs]

    def _by_kind(self, values: list[bool]) -> np.ndarray:
        return np.array([*values, False], bool)[self.kind]

    @cached_property
    def _of_kinds(self) -> list[Step]:
        """A step of each kind."""
        rows = np.fromiter(self.steps, np.int64)
        row = np.zeros(int(self.kind.max(initial=-1)) + 1, np.int64)
        row[self.kind[rows]] = rows
        return [self.steps[at] for at in row.tolist()]


@dataclass(frozen=True)
class Table:
    """What plans that run together read: a row for every output tensor that any of them makes, and
    a column ("slot") for every input that any of them needs for it.

    names, numel: of the output tensors
    sources: every input;  inputs: of each row and slot, a place in it, -1 where there is none
    file:    of each input, a place in `files`, or NONE, MEMORY or READ
    begin:   the first byte of each input in its file
    width:   bytes of an element of each input, 0 where there is none
    """

    names: Sequence[str]
    numel: np.ndarray
    sources: Sequence[Source]
    inputs: np.ndarray
    files: Sequence[WeightFile]
    file: np.ndarray
    begin: np.ndarray
    width: np.ndarray
    targets: Sequence[Target]

    @cached_property
    def itemsizes(self) -> np.ndarray:
        """Bytes written for an element, a column per target."""
        return np.stack([target.itemsize for target in self.targets], axis=1)

    def source(self, row: int, slot: int) -> Source:
        return self.sources[int(self.inputs[row, slot])]


def tabulate(plans: Sequence[Plan], checkpoints: Sequence[Sequence[Checkpoint]]) -> Table:
    """The columns of plans, each over its checkpoints."""
    rows: dict[tuple[str, int], int] = {}
    inputs = _Inputs()
    for plan in plans:
        for step in plan.steps:
            rows.setdefault((step.name, step.numel), len(rows))
    given = []
    for plan, opened in zip(plans, checkpoints, strict=True):
        row = _column([rows[step.name, step.numel] for step in plan.steps])
        given.append((row, inputs.places(plan.steps, opened)))
    files, file, begin, dtype, width = inputs.columns()
    distinct, slots = _distinct(len(rows), given)
    targets = []
    for number, (plan, opened) in enumerate(zip(plans, checkpoints, strict=True)):
        row, places = given[number]
        spread = _spread(places, row, (len(rows), places.shape[1]), -1)
        outputs = _outputs(plan, row, len(rows), dtype[places])
        steps = dict(zip(row.tolist(), plan.steps, strict=True))
        made = (number, plan, opened, inputs.sources, steps, distinct.shape[1])
        targets.append(
            Target(*made, slots[number], spread, file[spread], width[spread].sum(axis=1), *outputs)
        )
    return Table(
        names=[name for name, _ in rows],
        numel=_column([numel for _, numel in rows]),
        sources=inputs.sources,
        inputs=distinct,
        files=files,
        file=file[distinct],
        begin=begin[distinct],
        width=width[distinct],
        targets=targets,
    )


def _outputs(plan: Plan, row: np.ndarray, count: int, dtype: np.ndarray) -> tuple[np.ndarray, ...]:
    """numel, itemsize, shard, offset and kind of a plan's steps, in rows of a table."""
    where: dict[str, int] = {}
    shard: dict[str, int] = {}
    for number, found in enumerate(plan.shards):
        where.update(found.offsets)
        shard.update(dict.fromkeys(found.offsets, number))
    columns = (
        [step.numel for step in plan.steps],
        [step.dtype.itemsize for step in plan.steps],
        [shard[step.name] for step in plan.steps],
        [where[step.name] for step in plan.steps],
    )
    found_ = tuple(_spread(_column(column), row, (count,), 0) for column in columns)
    return *found_, _spread(_kinds(plan.steps, dtype), row, (count,), -1)


class _Inputs:
    """Every tensor that is read, once however many steps and plans name it."""

    def __init__(self) -> None:
        self.sources: list[Source] = []
        self._places: dict[tuple[int, str], int] = {}

    def places(self, steps: Sequence[Step], checkpoints: Sequence[Checkpoint]) -> np.ndarray:
        """Of each step, a column for the base and one for every expert: places in `sources`."""
        known = self._places
        identity = [id(checkpoint) for checkpoint in checkpoints]
        flat = []
        for model, name in (given for step in steps for given in step.inputs):
            place = known.setdefault((identity[model], name), len(known))
            if place == len(self.sources):
                self.sources.append((checkpoints[model], checkpoints[model].tensors[name]))
            flat.append(place)
        experts = _column([len(step.experts) for step in steps])
        based = _column([step.base is not None for step in steps])
        row = np.repeat(np.arange(len(steps)), experts + based)
        before = np.cumsum(experts + based) - experts - based
        # Without a base, the experts begin in the second column nevertheless.
        column = np.arange(len(flat)) - (before + based - 1)[row]
        found = np.full((len(steps), 1 + int(experts.max(initial=0))), -1, np.int64)
        found[row, column] = flat
        return found

    def columns(self) -> tuple[list[WeightFile], np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The files, and of each source its file, first byte, a number for its dtype, and the bytes
        of an element; one more, the last, is what stands for no source."""
        files: list[WeightFile] = []
        numbers: dict[int, dict[str, int]] = {}
        dtypes: dict[torch.dtype | None, int] = {None: 0}
        file, dtype = [], []
        for checkpoint, info in self.sources:
            mine = numbers.get(id(checkpoint))
            if mine is None:
                places = range(len(files), len(files) + len(checkpoint.files))
                mine = numbers[id(checkpoint)] = dict(zip(checkpoint.files, places, strict=True))
                files += checkpoint.files.values()
            other = READ if checkpoint.on_disk else MEMORY
            file.append(mine.get(info.file, other))
            dtype.append(dtypes.setdefault(info.dtype, len(dtypes)))
        begin = _column([info.offset for _, info in self.sources] + [0])
        widths = _column([0 if known is None else known.itemsize for known in dtypes])
        code = _column([*dtype, 0])
        return files, _column([*file, NONE]), begin, code, widths[code]


def _distinct(
    count: int, given: Sequence[tuple[np.ndarray, np.ndarray]]
) -> tuple[np.ndarray, list[np.ndarray]]:
    """The inputs of every row, each in one column however many of the given name it, and where in
    these columns those given are."""
    distinct = np.full((count, 1), -1, np.int64)
    filled = np.zeros(count, np.int64)
    slots = []
    for row, places in given:
        mine = np.full((count, places.shape[1]), -1, np.int64)
        for column, place in enumerate(places.T):
            at, wanted = row[place >= 0], place[place >= 0]
            same = distinct[at] == wanted[:, None]
            slot = np.where(same.any(axis=1), same.argmax(axis=1), filled[at])
            if slot.max(initial=0) == distinct.shape[1]:
                distinct = np.pad(distinct, ((0, 0), (0, 1)), constant_values=-1)
            distinct[at, slot] = wanted
            filled[at] = np.maximum(filled[at], slot + 1)
            mine[at, column] = slot
        slots.append(mine)
    return distinct, slots


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


def _spread(values: np.ndarray, row: np.ndarray, shape: tuple[int, ...], empty: int) -> np.ndarray:
    found = np.full(shape, empty, np.int64)
    found[row] = values
    return found


def _column(values: Sequence[int]) -> np.ndarray:
    return np.array(values, np.int64).reshape(len(values))
