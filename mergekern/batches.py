"""Pieces of a cargo that one call of the backend merges: those whose ops are of one kind."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mergekern.cargo import Cargo
from mergekern.fused import KEEP_ALL, Batch, FusedOp, Window
from mergekern.table import Target
from mergekern.trimming import Windows


def by_kind(target: Target, rows: np.ndarray, chosen: np.ndarray) -> Iterator[np.ndarray]:
    """The chosen of these rows, apart by the kind of their steps, in order within each."""
    kind = target.kind[rows[chosen]]
    order = np.argsort(kind, kind="stable")
    cuts = np.flatnonzero(np.diff(kind[order])) + 1
    for group in np.split(chosen[order], cuts):
        if len(group):
            yield group


def batch_of(
    target: Target, cargo: Cargo, op: FusedOp, chosen: np.ndarray, windows: np.ndarray | None
) -> Batch:
    """Some pieces of a cargo, all of one kind; windows: of every step, by window_column()."""
    pieces = cargo.pieces[chosen]
    row = int(pieces.row[0])
    step = target.steps[row]
    base = None if step.base is None else target.source(row, 0)[1].dtype
    experts = tuple(target.source(row, 1 + place)[1].dtype for place in range(len(step.experts)))
    inputs = cargo.inputs(chosen)[:, : 1 + len(experts)]
    drops = any(expert.keep_below < KEEP_ALL for expert in op.experts)
    hashes = target.name_hash[pieces.row] if drops else np.zeros(len(pieces), np.uint32)
    trimmed = None if windows is None else windows[pieces.row, : len(experts)]
    return Batch(
        base=base,
        experts=experts,
        out=step.dtype,
        inputs=np.ascontiguousarray(inputs, np.uint64),
        outs=cargo.outs(chosen).astype(np.uint64),
        offset=pieces.start,
        numel=pieces.numel,
        name_hash=hashes,
        windows=None if trimmed is None else np.ascontiguousarray(trimmed),
    )


def window_column(target: Target, windows: Windows) -> np.ndarray:
    """int64 [rows, experts, 4]: the windows of the whole model; open ones for all other steps."""
    column = np.empty((len(target.kind), target.file.shape[1] - 1, 4), np.int64)
    column[:] = _cuts([Window()])[0]
    found = [windows[target.steps[row].name] for row in target.whole_model.tolist()]
    counts = [len(row) for row in found]
    row = np.repeat(target.whole_model, counts)
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
