"""Trimmed merges of tensors in memory, in one pass over them and a few elements more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from mergekern.backends import Backend
from mergekern.fused import Findings, Tile
from mergekern.statistics import fused_op
from mergekern.tiles import Tensors, cut
from mergekern.trimming import outcome, start_trial


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
    tiles: dict[str, Tile] = {}
    for step, tile in tensors.tiles():
        op = fused_op(step, trial.windows(step))
        seen = backend.speculate(op, tile, trial.margins(step), outs[step.name])
        trial.add(step, tile, seen)
        found[step.name], tiles[step.name] = seen.findings, tile
    result = outcome(backend, tensors, trial)
    ops = {step.name: fused_op(step, result.windows[step.name]) for step in tensors.steps}
    for doubt in () if result.lost else trial.doubts:
        name = doubt.step.name
        found[name] = _both(found[name], doubt.fuse(backend, ops[name], outs[name]))
    for part in result.again:
        name = part.step.name
        tile, out = cut(tiles[name], part.start, part.stop), outs[name][part.start : part.stop]
        found[name] = _both(found[name], backend.fuse(ops[name], tile, out))
    for name, tile in tiles.items():
        # Too large a result may have been one that went by a wrong guess.
        if result.lost or found[name].overflow:
            found[name] = backend.fuse(ops[name], tile, outs[name])
    return found


def _both(first: Findings, second: Findings) -> Findings:
    return replace(first, overflow=first.overflow or second.overflow)
