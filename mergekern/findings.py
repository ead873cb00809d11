"""From what a pass found to the error that says where: NaN, Inf, overflow, unequal copies."""

from __future__ import annotations

from collections.abc import Sequence

import ml_dtypes
import numpy as np

from mergekern.arrays import Array, same_bytes
from mergekern.backends.cpu import all_finite
from mergekern.checkpoint.base import Checkpoint
from mergekern.dtypes import BFLOAT16, DISCRETE, dtype_name, parse_dtype
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
        unify = None if step.spec is None else step.spec.unify
        dtype = step.dtype if unify is None else parse_dtype(unify.stored)
        is_function = step.spec is not None and step.spec.rule == "function"
        what = "NaN or too large" if is_function else "too large"
        most, wider = (float(ml_dtypes.finfo(each).max) for each in (dtype, BFLOAT16))
        mend = "set out_dtype to bfloat16, or lower" if most < wider else "lower"
        raise NonFiniteError(
            f"{step.name}: the result is {what} for {dtype_name(dtype)}, which holds "
            f"{most:.6g} at the most: {mend} the weights"
        )


def check_copied(plan: Plan, checkpoints: Sequence[Checkpoint], step: Step, tile: Tile) -> None:
    """Raise unless the inputs of a copy hold the same bytes, and numbers if they are floats.

    What is merged is searched for NaN and Inf by the kernels; a copy runs through none.
    """
    _check_equal(plan, step, tile)
    if step.dtype in DISCRETE:
        return
    if not _finite(tile.experts[0]):
        check_findings(plan, checkpoints, step, Findings((0,), overflow=False))


def _finite(array: Array) -> bool:
    """Whether floats of any kind hold neither NaN nor Inf."""
    if not isinstance(array, np.ndarray):
        tensor = array.float() if array.itemsize == 1 else array  # fp8 has no isfinite() there
        return bool(tensor.isfinite().all())
    floats = array.view(np.float32) if array.dtype.kind == "c" else array
    parts = (floats[start : start + SCAN] for start in range(0, len(floats), SCAN))
    # fp8 has no loop of its own
    return all(all_finite(p.astype(np.float32) if p.itemsize == 1 else p) for p in parts)


def _check_equal(plan: Plan, step: Step, tile: Tile) -> None:
    """Raise MismatchError unless all inputs of a copy hold the same bytes."""
    first = tile.experts[0]
    for place, other in enumerate(tile.experts[1:], 1):
        if not same_bytes(first, other):
            names = [plan.models[step.experts[i].model] for i in (0, place)]
            raise MismatchError(
                f"{step.name}: differs between {names[0]} and {names[1]}, and "
                f"{dtype_name(step.dtype)} tensors are copied, never averaged: make them equal in "
                f"all models, or leave one model out"
            )
