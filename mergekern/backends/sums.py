"""Sums over a tensor in plain torch, in an order that neither tiles nor threads change."""

from __future__ import annotations

from mergekern.backends import BLOCK
from mergekern.lazily import torch

_LANES = 16  # partial sums of a reduction


def block_sums(x: torch.Tensor) -> torch.Tensor:
    """Sums per BLOCK elements in fp64: lane i mod 16 in order, then the lanes in order."""
    blocks = -(-x.numel() // BLOCK)
    padded = torch.zeros(blocks * BLOCK, dtype=torch.float64, device="cpu")
    padded[: x.numel()] = x.double()
    rows = padded.view(blocks, BLOCK // _LANES, _LANES)
    lanes = torch.zeros(blocks, _LANES, dtype=torch.float64, device="cpu")
    for row in range(rows.shape[1]):
        lanes = lanes + rows[:, row]
    total = torch.zeros(blocks, dtype=torch.float64, device="cpu")
    for lane in range(_LANES):
        total = total + lanes[:, lane]
    return total
