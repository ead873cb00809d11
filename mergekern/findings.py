"""From what a pass found to the error that says where: NaN, Inf, overflow, unequal copies."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mergekern.backends.cpu import all_finite
from mergekern.checkpoint.base import Checkpoint
from mergekern.dtypes import DISCRETE, dtype_name
from mergekern.errors import MismatchError, NonFiniteError
from mergekern.fused import Findings, Tile
from mergekern.plan import Plan, Step

SCAN = 1 << 18  # elements of a copy that are looked at once


def check_findings(
    plan: Plan, checkpoints: Sequence[Checkpoint], step: Step, found: Findings
) -> None:
    """Raise NonFiniteError for inputs with NaN or Inf, and for results the dtype cannot hold."""
    if found.non_finite:
        holders = []
        for place in found.non_finite:
            source = step.base if place < 0 else step.experts[place]
            assert source is not None
            file = checkpoints[source.model].tensors[source.name].file
            where = f" ({file}, tensor {source.name})" if file else f" (tensor {source.name})"
            holders.append(plan.models[source.model] + where)
        raise NonFiniteError(
            f"{step.name}: NaN or Inf in {', '.join(holders)}; nothing can be merged from that: "
            f"repair the model or leave it out"
        )
    if found.overflow:
        wider = "float32" if step.dtype == torch.bfloat16 else "bfloat16 or float32"
        is_function = step.spec is not None and step.spec.rule == "function"
        what = "NaN or too large" if is_function else "too large"
        raise NonFiniteError(
            f"{step.name}: the result is {what} for {dtype_name(step.dtype)}, which holds "
            f"{torch.finfo(step.dtype).max:.6g} at the most: set out_dtype to {wider}, or lower "
            f"the weights"
        )


def check_copied(plan: Plan, checkpoints: Sequence[Checkpoint], step: Step, tile: Tile) -> None:
    """Raise unless the inputs of a copy hold the same bytes, and numbers if they are floats.

    What is merged is searched for NaN and Inf by the kernels; a copy runs through none.
    """
    _check_equal(plan, step, tile)
    if step.dtype in DISCRETE:
        return
    whole = tile.experts[0]
    for part in whole.split(SCAN if whole.device.type == "cpu" else max(1, whole.numel())):
        part = torch.view_as_real(part).view(-1) if part.is_complex() else part
        # fp8 has no loop of its own, nor torch an isfinite() for all of its kinds
        part = part.float() if part.itemsize == 1 else part
        if not (all_finite(part) if part.device.type == "cpu" else bool(part.isfinite().all())):
            check_findings(plan, checkpoints, step, Findings((0,), overflow=False))


def _check_equal(plan: Plan, step: Step, tile: Tile) -> None:
    """Raise MismatchError unless all inputs of a copy hold the same bytes."""
    first = tile.experts[0].view(torch.uint8)
    for place, other in enumerate(tile.experts[1:], 1):
        if not torch.equal(first, other.view(torch.uint8)):
            names = [plan.models[step.experts[i].model] for i in (0, place)]
            raise MismatchError(
                f"{step.name}: differs between {names[0]} and {names[1]}, and "
                f"{dtype_name(step.dtype)} tensors are copied, never averaged: make them equal in "
                f"all models, or leave one model out"
            )
