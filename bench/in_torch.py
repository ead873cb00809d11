"""The peer: merges as the sequences of torch operations that mergekit performs.

Deltas are in bf16 where the base is, its default, or in fp32. Which of many equal magnitudes the
sort keeps is arbitrary; ours keeps the first.
"""

from __future__ import annotations

import torch
from torch import Tensor

DENSITY = 0.2


def ties(base: Tensor, experts: list[Tensor], dtype: torch.dtype, density: float) -> Tensor:
    deltas = _deltas(base, experts, dtype)
    for delta in deltas:
        order = delta.abs().view(-1).argsort(descending=True)
        mask = torch.zeros_like(delta)
        mask.view(-1)[order[: int(density * delta.numel())]] = 1
        delta.mul_(mask)
        del order, mask
    stacked, agree = _elect(deltas)
    mixed = (stacked * agree).sum(0) / agree.sum(0).clamp(min=1)
    return (base.to(dtype) + mixed).to(base.dtype)


def dare_linear(base: Tensor, experts: list[Tensor], dtype: torch.dtype, density: float) -> Tensor:
    deltas = _dropped(base, experts, dtype, density)
    return (base.to(dtype) + torch.stack(deltas).sum(0)).to(base.dtype)


def dare_ties(base: Tensor, experts: list[Tensor], dtype: torch.dtype, density: float) -> Tensor:
    stacked, agree = _elect(_dropped(base, experts, dtype, density))
    return (base.to(dtype) + (stacked * agree).sum(0)).to(base.dtype)


PEERS = {"ties": ties, "dare_linear": dare_linear, "dare_ties": dare_ties}


def _deltas(base: Tensor, experts: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    return [x.to(dtype) - base.to(dtype) for x in experts]


def _dropped(
    base: Tensor, experts: list[Tensor], dtype: torch.dtype, density: float
) -> list[Tensor]:
    deltas = _deltas(base, experts, dtype)
    for delta in deltas:
        delta.mul_(torch.bernoulli(torch.full_like(delta, density))).div_(density)
    return deltas


def _elect(deltas: list[Tensor]) -> tuple[Tensor, Tensor]:
    """All deltas, and where each has the sign of their sum. Empties the list: it may be large."""
    stacked = torch.stack(deltas)
    deltas.clear()
    majority = torch.where(stacked.sum(0) >= 0, 1.0, -1.0)
    return stacked, stacked.sign() == majority
