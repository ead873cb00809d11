"""Elements where a method's choice hangs on the last bits: equal magnitudes at a threshold, votes
that cancel. Found in float64 from the inputs and a case's parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from difference import wide
from recipes import Case

TRIMS = ("ties", "breadcrumbs", "breadcrumbs_ties")
ELECTS = ("ties", "breadcrumbs_ties", "dare_ties", "della", "sce")
CANCELS = 2.0**-20  # of a vote's terms; where inputs have few digits, that of their dtype
DIGITS = {torch.bfloat16: 2.0**-6, torch.float16: 2.0**-9}

Inputs = Mapping[str, torch.Tensor]


def edges(case: Case, inputs: Inputs) -> dict[str, np.ndarray]:
    """inputs: one tensor of every model of the case, by model name."""
    recipe = case.documents[0]
    entries = [e for e in recipe["models"] if e["model"] != recipe.get("base_model")]
    if case.method not in (*TRIMS, *ELECTS, "arcee_fusion", "ram", "ramplus_tl"):
        return {}
    base = inputs["base"]
    deltas = [wide(inputs[entry["model"]]) - wide(base) for entry in entries]
    each = [entry.get("parameters", {}) for entry in entries]
    shared = recipe.get("parameters", {})
    found = {}
    kept = deltas
    if case.method in TRIMS:
        gamma = 0.01 if case.method != "ties" else 0.0
        tied, kept = _trimmed(deltas, each, base.dtype, gamma)
        found["t"] = tied
    elif case.method == "sce" and shared.get("select_topk", 1) < 1:
        found["t"], kept = _varying(deltas, shared["select_topk"], base.dtype)
    elif case.method == "arcee_fusion":
        found["t"] = _important(wide(base), wide(inputs[entries[0]["model"]]), base.dtype)
    elif case.method in ("ram", "ramplus_tl"):
        epsilon = shared.get("epsilon", 1e-5)
        near = [np.abs(np.abs(d) - epsilon) <= _slack(base.dtype) * epsilon for d in deltas]
        found["t"] = np.any(near, 0)
    if case.method in ELECTS:
        terms = [p.get("weight", 1.0) * d for p, d in zip(each, kept, strict=True)]
        size = np.sum(np.abs(terms), 0)
        found["v"] = np.abs(np.sum(terms, 0)) <= _slack(base.dtype) * size
    return found


def _slack(dtype: torch.dtype) -> float:
    return DIGITS.get(dtype, CANCELS)


def _trimmed(
    deltas: Sequence[np.ndarray],
    each: Sequence[Mapping[str, Any]],
    dtype: torch.dtype,
    gamma: float,
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Where a magnitude is a threshold's, as mergekit rounds it; and what is kept, ties too."""
    tied = np.zeros(deltas[0].shape, bool)
    kept = []
    for d, parameters in zip(deltas, each, strict=True):
        density = parameters.get("density", 1.0)
        if density >= 1:
            kept.append(d)
            continue
        size = _rounded(np.abs(d), dtype)
        order = np.sort(size, axis=None)[::-1]
        keep = max(1, int(density * d.size))
        top = min(int(parameters.get("gamma", gamma) * d.size), d.size - keep)
        low = order[top + keep - 1]
        tied |= size == low
        high = np.inf
        if top:
            high = order[top - 1]
            tied |= (size == high) | (size == order[top])
        kept.append(np.where((size >= low) & (size <= high), d, 0.0))
    return tied, kept


def _varying(
    deltas: Sequence[np.ndarray], topk: float, dtype: torch.dtype
) -> tuple[np.ndarray, list[np.ndarray]]:
    """The same for the variance over the models. One tie moves every model's coefficient a little,
    so that the whole tensor hangs on it."""
    variance = np.var([_rounded(d, dtype) for d in deltas], 0)
    keep = int(np.count_nonzero(variance) * topk)
    if not keep:
        return np.zeros(variance.shape, bool), list(deltas)
    order = np.sort(variance, axis=None)[::-1]
    slack = _slack(dtype)
    tied = np.abs(variance - order[keep - 1]) <= slack * order[keep - 1]
    kept = variance >= order[keep - 1] * (1 - slack)
    if tied.sum() > 1:
        tied = np.ones_like(tied)
    return tied, [np.where(kept, d, 0.0) for d in deltas]


def _important(base: np.ndarray, other: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    def softmax(x: np.ndarray) -> np.ndarray:
        e = np.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True) + 1e-8

    p, q = softmax(other), softmax(base)
    divergence = (p * np.log(p / q)).sum(-1, keepdims=True)
    importance = np.abs(other - base) * divergence
    order = np.sort(importance, axis=None)

    def quantile(share: float) -> float:
        return float(order[int(share * (order.size - 1))])

    threshold = quantile(0.5) + 1.5 * (quantile(0.75) - quantile(0.25))
    # A divergence is a sum of terms that nearly cancel: in float32 few digits are left of it.
    noise = np.abs(other - base) * (p * np.abs(np.log(p / q))).sum(-1, keepdims=True)
    slack = max(_slack(dtype), 2.0**-16)
    return np.abs(importance - threshold) <= slack * np.maximum(
        noise, threshold
    ) + 2.0**-22 * np.abs(other - base)


def _rounded(x: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    return wide(torch.from_numpy(np.ascontiguousarray(x)).to(dtype))
