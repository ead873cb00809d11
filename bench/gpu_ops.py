"""The ops that are checked and measured on a GPU."""

from __future__ import annotations

from parts.fused import ties_op

import mergekern
from mergekern.fused import ExpertScalars, FusedOp, Tile
from mergekern.sources import Resident


def linear_op(experts: int) -> FusedOp:
    rows = tuple(ExpertScalars(k, 1 / experts) for k in range(experts))
    return FusedOp("linear_combination", rows)


def sum_op(experts: int) -> FusedOp:
    return FusedOp("task_vector", tuple(ExpertScalars(k, 0.5) for k in range(experts)), scale=0.3)


def given_thresholds(tile: Tile) -> FusedOp:
    """Thresholds from the head of the tile, as bench/limits.py takes them."""
    assert tile.base is not None
    n = min(tile.numel, 1 << 19)
    head = Tile("w", 0, tile.base[:n].cpu(), tuple(x[:n].cpu() for x in tile.experts))
    return ties_op(head)


def resident(tile: Tile) -> Resident:
    """The tile as a tensor that is trimmed on its own."""
    assert tile.base is not None
    state = {"w": tile.base}
    experts = [{"w": x} for x in tile.experts]
    plan = mergekern.plan("ties", base=state, models=experts, density=0.2)
    return Resident([(plan.steps[0], tile)])
