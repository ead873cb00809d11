"""Unified task vectors: one pass over a piece writes what all merges that run together want of it.

for merge: for piece that nobody has written for it:
    unify(piece) -> the outputs of all whose steps are of the same vector
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mergekern.arrays import Array
from mergekern.backends import Backend
from mergekern.cargo import Cargo
from mergekern.dtypes import parse_dtype
from mergekern.fused import Findings, Unified
from mergekern.plan import Step
from mergekern.stream import Flight
from mergekern.table import Table, Target

Slot = tuple[str, int]  # what is emitted, and of masks whose it is
Place = tuple[int, int]  # row and first element


class Unifier:
    """Of one flight after the other: forget() between them. Threads may take different pieces."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._done: set[tuple[int, Place]] = set()
        self._cargos: dict[int, tuple[Cargo, dict[Place, int]]] = {}

    def forget(self) -> None:
        """Another flight comes now."""
        self._done, self._cargos = set(), {}

    def board(self, flight: Flight) -> None:
        """Learn what a flight carries for whom, before any piece of it is merged."""
        if self._cargos:
            return
        for number in flight.unit.shares:
            cargo = flight.cargo(self._table.targets[number])
            rows, starts = cargo.pieces.row.tolist(), cargo.pieces.start.tolist()
            pieces = {place: piece for piece, place in enumerate(zip(rows, starts, strict=True))}
            self._cargos[number] = cargo, pieces

    def merge(self, backend: Backend, target: Target, place: Place) -> Findings:
        """Write a piece for one of the targets, and for all others that have it unified alike."""
        if (target.number, place) in self._done:
            return Findings()
        row = place[0]
        step = target.steps[row]
        assert step.spec is not None and step.spec.unify is not None, f"{step.name}: not unified"
        outs: dict[Slot, Array] = {}
        for number, slot, out in self._outputs(target, step, place):
            if slot not in outs:
                outs[slot] = out
                self._done.add((number, place))
        cargo, pieces = self._cargos[target.number]
        into = Unified(
            stored=parse_dtype(step.spec.unify.stored),
            out=outs.get(("vector", 0)),
            masks=tuple(outs.get(("mask", k)) for k in range(len(step.experts))),
            sums=outs.get(("sums", 0)),
        )
        return backend.unify(cargo.tile(pieces[place]), step.work, into)

    def _outputs(
        self, target: Target, step: Step, place: Place
    ) -> Iterator[tuple[int, Slot, np.ndarray]]:
        """Who writes what of a piece, the one first that is asked."""
        for number in sorted(self._cargos, key=lambda number: number != target.number):
            other = self._table.targets[number]
            cargo, pieces = self._cargos[number]
            spec = None if place not in pieces else other.steps[place[0]].spec
            if spec is None or spec.unify is None or (number, place) in self._done:
                continue
            if self._alike(target, other, place[0]):
                yield number, (spec.unify.emits, spec.unify.expert), cargo.out(pieces[place])

    def _alike(self, one: Target, other: Target, row: int) -> bool:
        """Whether two steps are of the same vector."""
        mine, its = one.steps[row], other.steps[row]
        assert mine.spec is not None and its.spec is not None
        assert mine.spec.unify is not None and its.spec.unify is not None
        same = np.array_equal(one.inputs[row], other.inputs[row])
        return same and mine.work == its.work and mine.spec.unify.stored == its.spec.unify.stored
