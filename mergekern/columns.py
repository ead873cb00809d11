"""A plan's steps as columns, made once, so that no later work on them is Python per tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, repeat
from typing import TYPE_CHECKING

import numpy as np

from mergekern.checkpoint.layout import Shard

if TYPE_CHECKING:
    from mergekern.plan import Plan, Step


@dataclass(frozen=True)
class Columns:
    """An entry for every step, in their order.

    numel:  elements that are merged;  per: how many of them a record of the output stands for, 1
            where they are stored as they are;  itemsize: bytes of a record
    shard, offset: where the first byte of the output lies
    kind:   counted from 0, equal for steps that differ in nothing but their names and shapes
    read:   of each of the plan's models, the names of the tensors that any step reads
    inputs: [steps, 1 + experts]: places in `read`, one model's behind the other's; the base first,
            whether there is one or not; -1 where there is none
    """

    numel: np.ndarray
    per: np.ndarray
    itemsize: np.ndarray
    shard: np.ndarray
    offset: np.ndarray
    kind: np.ndarray
    read: Sequence[Sequence[str]]
    inputs: np.ndarray

    def examples(self) -> tuple[list[int], list[int]]:
        """Places of a step of each kind and size, and how many there are of it."""
        order = np.lexsort((self.numel, self.kind))
        kind, numel = self.kind[order], self.numel[order]
        new = np.ones(len(order), bool)
        new[1:] = (kind[1:] != kind[:-1]) | (numel[1:] != numel[:-1])
        first = np.flatnonzero(new)
        return order[first].tolist(), np.diff(first, append=len(order)).tolist()

    def of_kinds(self, steps: Sequence[Step]) -> list[Step]:
        """A step of each kind."""
        return [steps[place] for place in one_of_each(self.kind).tolist()]


def columns_of(steps: Sequence[Step], shards: Sequence[Shard], models: int) -> Columns:
    shard = chain.from_iterable(repeat(n, len(s.offsets)) for n, s in enumerate(shards))
    offsets: dict[str, int] = {}
    for found in shards:
        offsets.update(found.offsets)
    shard_of = dict(zip(offsets, shard, strict=True))
    names = [step.name for step in steps]
    kinds: dict[tuple[object, ...], int] = {}
    kind = [
        kinds.setdefault(
            (id(s.spec), s.expert_index, s.dtype, s.work, s.action, s.base is None), len(kinds)
        )
        for s in steps
    ]
    read, inputs = _inputs(steps, models)
    return Columns(
        numel=column([step.numel for step in steps]),
        per=column([step.record[0] for step in steps]),
        itemsize=column([step.record[1] for step in steps]),
        shard=column([shard_of[name] for name in names]),
        offset=column([offsets[name] for name in names]),
        kind=column(kind),
        read=read,
        inputs=inputs,
    )


def _inputs(steps: Sequence[Step], models: int) -> tuple[list[list[str]], np.ndarray]:
    known: list[dict[str, int]] = [{} for _ in range(models)]
    flat = [
        (model, known[model].setdefault(name, len(known[model])))
        for step in steps
        for model, name in step.inputs
    ]
    experts = column([len(step.experts) for step in steps])
    based = column([step.base is not None for step in steps])
    row = np.repeat(np.arange(len(steps)), experts + based)
    before = np.cumsum(experts + based) - experts - based
    # Without a base, the experts begin in the second column nevertheless.
    place = np.arange(len(flat)) - (before + based - 1)[row]
    found = np.full((len(steps), 1 + int(experts.max(initial=0))), -1, np.int64)
    model, name = np.array(flat, np.int64).reshape(-1, 2).T
    found[row, place] = np.array([*accumulate(map(len, known), initial=0)])[model] + name
    return [list(names) for names in known], found


def rows_of(plans: Sequence[Plan]) -> tuple[list[str], np.ndarray, list[np.ndarray]]:
    """Names and sizes of the output tensors that any of the plans makes, and which of them those of
    each plan are, in the order of its steps."""
    keys = [[(step.name, step.numel) for step in plan.steps] for plan in plans]
    rows = {key: row for row, key in enumerate(dict.fromkeys(chain.from_iterable(keys)))}
    found = [column([rows[key] for key in mine]) for mine in keys]
    return [name for name, _ in rows], column([numel for _, numel in rows]), found


def each_once(
    count: int, given: Sequence[tuple[np.ndarray, np.ndarray]]
) -> tuple[np.ndarray, list[np.ndarray]]:
    """The inputs of every row, each in one column however many of the given name it, and where in
    these columns those given are."""
    held = np.full((count, 1), -1, np.int64)
    filled = np.zeros(count, np.int64)
    slots = []
    for row, places in given:
        mine = np.full((count, places.shape[1]), -1, np.int64)
        for own, place in enumerate(places.T):
            at, wanted = row[place >= 0], place[place >= 0]
            same = held[at] == wanted[:, None]
            slot = np.where(same.any(axis=1), same.argmax(axis=1), filled[at])
            if slot.max(initial=0) == held.shape[1]:
                held = np.pad(held, ((0, 0), (0, 1)), constant_values=-1)
            held[at, slot] = wanted
            filled[at] = np.maximum(filled[at], slot + 1)
            mine[at, own] = slot
        slots.append(mine)
    return held, slots


def one_of_each(kind: np.ndarray) -> np.ndarray:
    """A place where each of the kinds is, which are counted from 0."""
    place = np.zeros(int(kind.max(initial=-1)) + 1, np.int64)
    place[kind] = np.arange(len(kind))
    return place


def column(values: Sequence[int]) -> np.ndarray:
    return np.array(values, np.int64).reshape(len(values))


def distinct(values: np.ndarray) -> np.ndarray:
    """Sorted, each once: by sorting, which for numbers in some order beats np.unique's hashing."""
    ordered = np.sort(values)
    new = np.ones(len(ordered), bool)
    new[1:] = ordered[1:] != ordered[:-1]
    return ordered[new]
