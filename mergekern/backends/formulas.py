"""Methods' functions that the compiled loops have a spelling of: the same bits in less time.

A function is known by itself, never by its name: what a user wrote is called as it is. The plain
function stays the meaning, which every other backend calls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mergekern import _C
from mergekern.function import PerRow
from mergekern.fused import ExpertScalars, FusedOp
from mergekern.lazily import torch
from mergekern.methods.elementwise import (
    NEAREST,
    arcee_fusion,
    consensus,
    importance,
    nearswap,
    ram,
    ramplus_tl,
)
from mergekern.methods.fisher import EPSILON, important_mean
from mergekern.methods.stitch import stitched_mean

Spelled = tuple[_C.Elementwise, tuple[ExpertScalars, ...]]  # how, and with what of each expert


def spelled(op: FusedOp) -> Spelled | None:
    """How the loops call the function of an op, or None where they do not know it."""
    function = op.function
    assert function is not None, f"an op of rule {op.rule} without a function"
    for call, spell in _SPELLINGS:
        if call is function.call:
            defaults: Mapping[str, Any] = call.__kwdefaults__ or {}
            return spell(op, {**defaults, **dict(function.parameters)})
    return None


def _near_swap(op: FusedOp, parameters: Mapping[str, Any]) -> Spelled:
    near_swap = _C.Elementwise(formula=_C.Formula.near_swap, t=parameters["t"], epsilon=NEAREST)
    return near_swap, op.experts


def _overlap_mean(op: FusedOp, parameters: Mapping[str, Any]) -> Spelled:
    """ram is ramplus_tl with factors of 1: what one model alone changed has a share of 1 anyhow."""
    boosts = op.found.get("boost", torch.ones(len(op.experts)))
    assert isinstance(boosts, torch.Tensor), f"boosts are one per expert, not {boosts}"
    mean = _C.Elementwise(formula=_C.Formula.overlap_mean, epsilon=parameters["epsilon"])
    scalars = zip(op.experts, boosts.tolist(), strict=True)
    return mean, tuple(ExpertScalars(e.index, coef=boost) for e, boost in scalars)


def _consensus(op: FusedOp, parameters: Mapping[str, Any]) -> Spelled:
    weight, strength = parameters["weight"], parameters["tall_mask_lambda"]
    masked = _C.Elementwise(
        formula=_C.Formula.consensus, t=parameters["lambda_"], epsilon=parameters["k"]
    )
    scalars = zip(op.experts, weight, strength, strict=True)
    return masked, tuple(ExpertScalars(e.index, coef=w, share=s) for e, w, s in scalars)


def _fisher(op: FusedOp, parameters: Mapping[str, Any]) -> Spelled:
    mean = _C.Elementwise(formula=_C.Formula.fisher, epsilon=EPSILON)
    return mean, _of_models(op, parameters["weight"])


def _stitch(op: FusedOp, parameters: Mapping[str, Any]) -> Spelled:
    mean = _C.Elementwise(formula=_C.Formula.stitch, t=parameters["lambda_"])
    return mean, _of_models(op, parameters["weight"])


def _of_models(op: FusedOp, weight: tuple[float, ...]) -> tuple[ExpertScalars, ...]:
    """Weights go with the models; the statistics behind them have none."""
    coefs = (*weight, *(0.0 for _ in weight))
    scalars = zip(op.experts, coefs, strict=True)
    return tuple(ExpertScalars(e.index, coef=coef) for e, coef in scalars)


def _by_rows(formula: _C.Formula, op: FusedOp, epsilon: float = 0.0) -> Spelled:
    divergence = op.found["divergence"]
    assert isinstance(divergence, PerRow), f"divergences are one per row, not {divergence}"
    assert divergence.values.dtype == torch.float64 and divergence.values.is_contiguous()
    rows, width = divergence.values.data_ptr(), divergence.width
    return _C.Elementwise(formula=formula, epsilon=epsilon, rows=rows, width=width), op.experts


def _importance(op: FusedOp, parameters: Mapping[str, Any]) -> Spelled:
    return _by_rows(_C.Formula.importance, op)


def _fusion(op: FusedOp, parameters: Mapping[str, Any]) -> Spelled:
    threshold = op.found["threshold"]
    assert isinstance(threshold, torch.Tensor), f"the threshold is a number, not {threshold}"
    return _by_rows(_C.Formula.fusion, op, float(threshold))


_SPELLINGS: tuple[tuple[Any, Callable[[FusedOp, Mapping[str, Any]], Spelled]], ...] = (
    (nearswap, _near_swap),
    (ram, _overlap_mean),
    (ramplus_tl, _overlap_mean),
    (consensus, _consensus),
    (important_mean, _fisher),
    (stitched_mean, _stitch),
    (importance, _importance),
    (arcee_fusion, _fusion),
)
