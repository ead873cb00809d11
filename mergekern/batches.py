"""Pieces of a cargo that one call of the backend merges: those whose ops are of one kind."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import replace

import numpy as np

from mergekern.backends import Backend
from mergekern.cargo import Cargo
from mergekern.fused import KEEP_ALL, Batch, Findings, FusedOp, Window
from mergekern.plan import Step
from mergekern.table import Target
from mergekern.trimming import Windows, cut_ranks

Found = dict[Hashable, np.ndarray]


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
    batch = Batch(
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
    return ranked(batch, step) if target.ranked[row] else batch


def ranked(batch: Batch, step: Step) -> Batch:
    """The same whose windows are found by ranks, those of the steps' kind."""
    assert step.spec is not None, f"{step.name}: not a merge step"
    together = step.spec.whole_model
    numel = batch.numel.sum(keepdims=True) if together else batch.numel
    return replace(
        batch,
        windows=np.empty((len(batch), len(batch.experts), 4), np.int64),
        ranks=cut_ranks(step.spec, numel),
        by_index=step.spec.ties == "index",
        together=together,
    )


def fuse_batch(
    backend: Backend, op: FusedOp, batch: Batch, known: Found, read: Hashable
) -> dict[int, Findings]:
    """Run an op over a batch; known: windows that were found, by what was ranked, is looked into
    and added to.

    read: which tensors these are. Addresses do not tell: inputs that were copied (strided ones, and
    those from a GPU) lie where others lay before, once those are let go.
    """
    if batch.ranks is None or batch.windows is None:
        return backend.fuse_batch(op, batch)
    dtypes = (batch.base, batch.experts, op.work)
    key = (read, batch.ranks.tobytes(), batch.by_index, batch.together, dtypes)
    if key in known:
        return backend.fuse_batch(
            op, replace(batch, windows=known[key], ranks=None, together=False)
        )
    known[key] = batch.windows
    return backend.fuse_batch(op, batch)


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
