"""Fused passes whose scalars are given, against a pass over the same streams that does nothing."""

from __future__ import annotations

import torch
from data import base_and_experts
from floor import floor_pass
from gate import CHECKED, same_bits
from rows import Row, of_floor
from settings import DENSITY, EXPERTS, Settings
from timing import alternate

from mergekern.backends.cpu import CpuBackend
from mergekern.backends.reference import ReferenceBackend
from mergekern.fused import ExpertScalars, FusedOp, Tile, Window


def ties_op(tile: Tile) -> FusedOp:
    """Every expert trimmed at about the magnitude where DENSITY of it is left."""
    head = _head(tile)
    kept = int(DENSITY * head.numel)
    rows = []
    for index, expert in enumerate(head.experts):
        magnitudes = (expert.float() - head.base.float()).abs()
        cut = magnitudes.kthvalue(head.numel - kept + 1).values.view(torch.int32)
        rows.append(ExpertScalars(index, coef=1.0, window=Window(lo=int(cut))))
    return FusedOp("task_vector", tuple(rows), elect="mass", combine="mean")


def dare_op(experts: int, elect: str) -> FusedOp:
    coins = {"coef": 1 / DENSITY, "vote": 1 / DENSITY, "keep_below": int(DENSITY * 2**32)}
    rows = tuple(ExpertScalars(index, **coins) for index in range(experts))
    return FusedOp("task_vector", rows, elect=elect, combine="sum")


def fused_row(
    what: str, op: FusedOp, tile: Tile, threads: int, settings: Settings, wanted: float
) -> Row:
    backend = CpuBackend(threads)
    _check(what, backend, op, _head(tile))
    inputs, out = [tile.base, *tile.experts], torch.zeros_like(tile.base)
    runs = [lambda: floor_pass(inputs, out, threads), lambda: backend.fuse(op, tile, out)]
    floor, ours = alternate(runs, 2 * settings.repetitions)
    return of_floor(what, floor, ours, sum(x.nbytes for x in (*inputs, out)), wanted)


def run(settings: Settings) -> list[Row]:
    rows = []
    every = settings.threads
    for experts, limits in ((EXPERTS, ((1, 0.68), (every, 0.9))), (8, ((every, 0.8),))):
        base, tuned = base_and_experts(settings.numel, experts)
        tile = Tile("w", 0, base, tuple(tuned))
        op = ties_op(tile)
        for threads, wanted in limits:
            what = f"fused TIES, thresholds given, K = {experts}, {threads} thread(s)"
            rows.append(fused_row(what, op, tile, threads, settings, wanted))
    return rows


def _head(tile: Tile) -> Tile:
    return Tile("w", 0, tile.base[:CHECKED], tuple(x[:CHECKED] for x in tile.experts))


def _check(what: str, backend: CpuBackend, op: FusedOp, head: Tile) -> None:
    got, want = torch.empty_like(head.base), torch.empty_like(head.base)
    backend.fuse(op, head, got)
    ReferenceBackend().fuse(op, head, want)
    same_bits(what, got, want)
