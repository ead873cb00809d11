"""Plans' steps as columns, built once, so that no later work on them is Python per tensor."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, count

import numpy as np

from mergekern.arrays import HOST
from mergekern.backends import CHUNK
from mergekern.checkpoint.base import Checkpoint, TensorInfo
from mergekern.checkpoint.files import WeightFile
from mergekern.columns import column, each_once, one_of_each, rows_of
from mergekern.dtypes import DType
from mergekern.fused import name_hash
from mergekern.plan import Plan, Step
from mergekern.tiles import alignments

# In place of a file: no such input, views of the host's memory, read() into a buffer.
NONE, MEMORY, READ = -3, -2, -1

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
    numel, per, itemsize, shard, offset: as in Columns; 0 where there is no output, but for per
    align:  tiles start at multiples of it, whoever of all targets merges them
    kind:   counted from 0, equal for steps whose ops differ in nothing but thresholds and name: the
            same spec object, the same experts, the same types; -1 where there is none
    """

    number: int
    plan: Plan
    checkpoints: Sequence[Checkpoint]
    sources: Sources
    steps: dict[int, Step]
    width: int
    slots: np.ndarray
    inputs: np.ndarray
    file: np.ndarray
    element: np.ndarray
    numel: np.ndarray
    per: np.ndarray
    itemsize: np.ndarray
    shard: np.ndarray
    offset: np.ndarray
    align: np.ndarray
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
    def pooled(self) -> np.ndarray:
        """Rows that have weights in common with others, in the order of the plan."""
        found = self._by_kind([s.spec is not None and bool(s.spec.pool) for s in self._of_kinds])
        rows = np.fromiter(self.steps, np.int64)
        return rows[found[rows]]

    @cached_property
    def batched(self) -> np.ndarray:
        """True for tensors that may be merged together with others, by one call."""
        return self._by_kind([s.spec is not None and s.spec.batched for s in self._of_kinds])

    @cached_property
    def unified(self) -> np.ndarray:
        """True for what is written of task vectors that stand for several."""
        return self._by_kind(
            [s.spec is not None and s.spec.unify is not None for s in self._of_kinds]
        )

    @cached_property
    def threaded(self) -> np.ndarray:
        """True for steps that bring threads of their own."""
        specs = [step.spec for step in self._of_kinds]
        return self._by_kind([spec is not None and spec.function is not None for spec in specs])

    @cached_property
    def copied(self) -> np.ndarray:
        return self._by_kind([step.action == "copy" for step in self._of_kinds])

    @cached_property
    def needs(self) -> np.ndarray:
        """True for the table's columns that it reads."""
        found = np.zeros((len(self.kind), self.width), bool)
        row, place = np.nonzero(self.slots >= 0)
        found[row, self.slots[row, place]] = True
        return found

    @cached_property
    def name_hash(self) -> np.ndarray:
        found = np.zeros(len(self.kind), np.uint32)
        found[list(self.steps)] = [name_hash(step.name) for step in self.steps.values()]
        return found

    def places(
        self, row: np.ndarray, start: np.ndarray, stop: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The first byte of some elements in their shards, and that behind the last."""
        per, itemsize, offset = self.per[row], self.itemsize[row], self.offset[row]
        return offset + start // per * itemsize, offset + -(-stop // per) * itemsize

    def source(self, row: int, place: int) -> Source:
        """One of its inputs, the base being the first."""
        return self.sources[int(self.inputs[row, place])]

    def dtypes(self, step: Step) -> list[DType]:
        """Of a step's inputs, the base being the first."""
        opened = self.checkpoints
        return [opened[read.model].tensors[read.name].dtype for read in step.inputs]

    def _by_kind(self, values: list[bool]) -> np.ndarray:
        return np.array([*values, False], bool)[self.kind]

    @cached_property
    def _of_kinds(self) -> list[Step]:
        """A step of each kind."""
        rows = np.fromiter(self.steps, np.int64)
        return [self.steps[at] for at in rows[one_of_each(self.kind[rows])].tolist()]


@dataclass(frozen=True)
class Table:
    """What plans that run together read: a row for every output tensor that any of them makes, and
    a column ("slot") for every input that any of them needs for it.

    names, numel: of the output tensors;  align: where their tiles start, see tiles.alignment()
    sources: every input;  inputs: of each row and slot, a place in it, -1 where there is none
    file:    of each input, a place in `files`, or NONE, MEMORY or READ
    begin:   the first byte of each input in its file
    width:   bytes of an element of each input, 0 where there is none
    """

    names: Sequence[str]
    numel: np.ndarray
    align: np.ndarray
    sources: Sources
    inputs: np.ndarray
    files: Sequence[WeightFile]
    file: np.ndarray
    begin: np.ndarray
    width: np.ndarray
    targets: Sequence[Target]

    @cached_property
    def written(self) -> np.ndarray:
        """fp64: bytes written for an element, a column per target."""
        return np.stack([target.itemsize / target.per for target in self.targets], axis=1)

    def source(self, row: int, slot: int) -> Source:
        return self.sources[int(self.inputs[row, slot])]


def tabulate(plans: Sequence[Plan], checkpoints: Sequence[Sequence[Checkpoint]]) -> Table:
    """The columns of plans, each over its checkpoints."""
    names, numel, rows = rows_of(plans)
    sources = Sources([each for mine in checkpoints for each in mine])
    files, file, begin, dtype, width = sources.columns()
    places = [sources.of(plan, opened) for plan, opened in zip(plans, checkpoints, strict=True)]
    distinct, slots = each_once(len(names), list(zip(rows, places, strict=True)))
    align = alignments(plans, rows, len(names))
    targets = []
    for number, (plan, opened) in enumerate(zip(plans, checkpoints, strict=True)):
        row, mine, given = rows[number], plan.columns, places[number]
        made = np.zeros((5, len(names)), np.int64)
        made[4] = 1
        made[:, row] = mine.numel, mine.itemsize, mine.shard, mine.offset, mine.per
        kind, inputs = np.full(len(names), -1), np.full((len(names), given.shape[1]), -1)
        kind[row], inputs[row] = _kinds(mine.kind, dtype[given]), given
        steps = dict(zip(row.tolist(), plan.steps, strict=True))
        targets.append(
            Target(
                number=number,
                plan=plan,
                checkpoints=opened,
                sources=sources,
                steps=steps,
                width=distinct.shape[1],
                slots=slots[number],
                inputs=inputs,
                file=file[inputs],
                element=width[inputs].sum(axis=1),
                numel=made[0],
                itemsize=made[1],
                shard=made[2],
                offset=made[3],
                per=made[4],
                align=align,
                kind=kind,
            )
        )
    return Table(
        names=names,
        numel=numel,
        align=align,
        sources=sources,
        inputs=distinct,
        files=files,
        file=file[distinct],
        begin=begin[distinct],
        width=width[distinct],
        targets=targets,
    )


class Sources:
    """Every tensor of the checkpoints that are read, each once however many plans name it."""

    def __init__(self, checkpoints: Sequence[Checkpoint]) -> None:
        self._opened = list({id(each): each for each in checkpoints}.values())
        sizes = [len(checkpoint.tensors) for checkpoint in self._opened]
        self._begins = list(accumulate(sizes, initial=0))

    def __getitem__(self, place: int) -> Source:
        number = bisect_right(self._begins, place) - 1
        checkpoint = self._opened[number]
        return checkpoint, checkpoint.tensors.infos[place - self._begins[number]]

    def of(self, plan: Plan, checkpoints: Sequence[Checkpoint]) -> np.ndarray:
        """Of each step, a column for the base and one for every expert: places in here."""
        begin = dict(zip(map(id, self._opened), self._begins, strict=False))
        places = [
            np.fromiter(map(opened.tensors.place.__getitem__, names), np.int64) + begin[id(opened)]
            for opened, names in zip(checkpoints, plan.columns.read, strict=True)
        ]
        return np.concatenate([*places, [-1]])[plan.columns.inputs]

    def columns(self) -> tuple[list[WeightFile], np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The files, and of each source its file, first byte, a number for its dtype, and the bytes
        of an element; one more, the last, is what stands for no source."""
        files: list[WeightFile] = []
        dtypes: dict[DType | None, int] = {None: 0}
        file, begin, dtype = [], [], []
        for checkpoint in self._opened:
            known = dict(zip(checkpoint.files, count(len(files)), strict=False))
            files += checkpoint.files.values()
            held = checkpoint.tensors
            apart = checkpoint.on_disk or checkpoint.device != HOST
            other = READ if apart else MEMORY
            file.append(column([known.get(name, other) for name in held.files])[held.file])
            begin.append(held.begin)
            codes = [dtypes.setdefault(each, len(dtypes)) for each in held.dtypes]
            dtype.append(column(codes)[held.dtype])
        widths = column([0 if known is None else known.itemsize for known in dtypes])
        code = np.concatenate([*dtype, [0]])
        return (
            files,
            np.concatenate([*file, [NONE]]),
            np.concatenate([*begin, [0]]),
            code,
            widths[code],
        )


def _kinds(kind: np.ndarray, dtype: np.ndarray) -> np.ndarray:
    """Kinds of steps, told apart by the dtypes of their inputs, too."""
    for each in dtype.T:
        if each.size and (each != each[0]).any():
            together = kind * (int(each.max()) + 1) + each
            kind = np.unique(together, return_inverse=True)[1].astype(np.int64)
    return kind
