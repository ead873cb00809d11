"""Pieces of a flight that one call of the backend merges: those whose ops are of one kind."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mergekern.fused import KEEP_ALL, Batch, FusedOp, Window
from mergekern.stream import Flight
from mergekern.table import Table
from mergekern.trimming import Windows


def by_kind(table: Table, rows: np.ndarray, chosen: np.ndarray) -> Iterator[np.ndarray]:
    """The chosen of these rows, apart by the kind of their steps, in order within each."""
    kind = table.kind[rows[chosen]]
    order = np.argsort(kind, kind="stable")
    cuts = np.flatnonzero(np.diff(kind[order])) + 1
    for group in np.split(chosen[order], cuts):
        if len(group):
            yield group


def batch_of(
    table: Table, flight: Flight, op: FusedOp, chosen: np.ndarray, windows: np.ndarray | None
) -> Batch:
    """Some pieces of a flight, all of one kind; windows: of every step, by window_column()."""
    pieces = flight.unit.pieces[chosen]
    row = int(pieces.row[0])
    step = table.steps[row]
    base = None if step.base is None else table.source(row, 0)[1].dtype
    experts = tuple(table.source(row, 1 + place)[1].dtype for place in range(len(step.experts)))
    inputs = flight.inputs(chosen)[:, : 1 + len(experts)]
    drops = any(expert.keep_below < KEEP_ALL for expert in op.experts)
    hashes = table.name_hash[pieces.row] if drops else np.zeros(len(pieces), np.uint32)
    trimmed = None if windows is None else windows[pieces.row, : len(experts)]
    return Batch(
        base=base,
        experts=experts,
        out=step.dtype,
        inputs=np.ascontiguousarray(inputs, np.uint64),
        outs=flight.outs(chosen).astype(np.uint64),
        offset=pieces.start,
        numel=pieces.numel,
        name_hash=hashes,
        windows=None if trimmed is None else np.ascontiguousarray(trimmed),
    )


def window_column(table: Table, windows: Windows) -> np.ndarray:
    """int64 [steps, experts, 4]: the windows of the whole model; open ones for all other steps."""
    column = np.empty((len(table.steps), table.file.shape[1] - 1, 4), np.int64)
    column[:] = _cuts([Window()])[0]
    found = [windows[table.steps[row].name] for row in table.whole_model.tolist()]
    counts = [len(row) for row in found]
    row = np.repeat(table.whole_model, counts)
    before = np.cumsum(counts) - counts
    place = np.arange(len(row)) - np.repeat(before, counts)
    column[row, place] = _cuts([window for row in found for window in row])
    return column


def _cuts(windows: list[Window]) -> np.ndarray:
    columns = (
        [w.lo for w in windows],
        [w.lo_last for w in windows],
        [w.hi for w in windows],
        [w.hi_last for w in windows],
    )
    return np.array(columns, np.int64).T
