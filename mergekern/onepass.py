"""Trimmed merges of tensors in memory, in one pass over them and a few elements more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from mergekern.backends import Backend
from mergekern.fused import Findings, Tile
from mergekern.plan import Step
from mergekern.statistics import fused_op
from mergekern.tiles import Tensors
from mergekern.trimming import start_trial, windows_after


def merge_in_one_pass(
    backend: Backend,
    tensors: Tensors,
    outs: Mapping[str, torch.Tensor],
    room: int | None = None,
) -> dict[str, Findings]:
    """Merge tensors whose specs trim (and are ranked over all of them together) into `outs`.

    tensors: each in one tile. See trimming.merges_in_one_pass for the specs, Trial for `room`.
    """
    trial = start_trial(backend, tensors, room=room)
    assert trial is not None, "nothing to trim"
    found: dict[str, Findings] = {}
    tiles: list[tuple[Step, Tile]] = []
    for step, tile in tensors.tiles():
        op = fused_op(step, trial.windows(step))
        seen = backend.speculate(op, tile, trial.margins(step), outs[step.name])
        trial.add(step, tile, seen)
        found[step.name] = seen.findings
        tiles.append((step, tile))
    windows = windows_after(backend, tensors, trial)
    for doubt in () if trial.lost else trial.doubts:
        op = fused_op(doubt.step, windows[doubt.step.name])
        right = doubt.fuse(backend, op, outs[doubt.step.name])
        found[doubt.step.name] = _both(found[doubt.step.name], right)
    for step, tile in tiles:
        # Too large a result may have been an open element's, whose windows were wrong.
        if trial.lost or found[step.name].overflow:
            op = fused_op(step, windows[step.name])
            found[step.name] = backend.fuse(op, tile, outs[step.name])
    return found


def _both(first: Findings, second: Findings) -> Findings:
    return replace(first, overflow=first.overflow or second.overflow)
