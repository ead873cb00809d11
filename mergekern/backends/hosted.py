"""What the kernels for GPUs do not have (masks, drops by rank, looks at the variance): done by the
compiled loops in the host's memory, for tensors that lie on a device."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mergekern.arrays import Array, as_tensor, device_of, dtype_of, to_host
from mergekern.backends import Backend, Bracket, Counts
from mergekern.backends.cpu import CpuBackend
from mergekern.dtypes import DType
from mergekern.fused import Findings, FusedOp, Pruning, Tile, Unified
from mergekern.lazily import torch


def wants_host(op: FusedOp, tile: Tile) -> bool:
    """Whether an op over a tile is more than kernels for GPUs know."""
    masked = any(mask is not None for mask in tile.masks)
    return masked or op.trim_by == "variance" or op.least != 0


def on_host(tile: Tile) -> Tile:
    base = None if tile.base is None else to_host(tile.base)
    experts = tuple(to_host(x) for x in tile.experts)
    masks = tuple(None if mask is None else to_host(mask) for mask in tile.masks)
    return replace(tile, base=base, experts=experts, masks=masks)


def count_on(
    host: Backend, tile: Tile, brackets: list[Bracket], work: DType, tallies: list[np.ndarray]
) -> list[Counts]:
    """Backend.count() by another backend, whose tallies may have more lanes than one."""
    own = [np.zeros((host.lanes, bracket.bins), np.int64) for bracket in brackets]
    counts = host.count(tile, brackets, work, own)
    for tally, mine in zip(tallies, own, strict=True):
        tally[0] += mine.sum(0)
    return counts


class Host:
    """The compiled loops, for tensors of a device."""

    def __init__(self) -> None:
        self.loops = CpuBackend()

    def fuse(self, op: FusedOp, tile: Tile, out: Array) -> Findings:
        merged = np.empty(len(out), dtype_of(out))
        found = self.loops.fuse(op, on_host(tile), merged)
        as_tensor(out).copy_(as_tensor(merged))
        return found

    def unify(self, tile: Tile, work: DType, into: Unified) -> Findings:
        def room(wanted: Array | None) -> np.ndarray | None:
            return None if wanted is None else np.empty(len(wanted), dtype_of(wanted))

        masks = tuple(map(room, into.masks))
        made = replace(into, out=room(into.out), masks=masks, sums=room(into.sums))
        found = self.loops.unify(on_host(tile), work, made)
        pairs = ((into.out, made.out), (into.sums, made.sums))
        for given, own in (*pairs, *zip(into.masks, masks, strict=True)):
            if given is not None and own is not None:
                as_tensor(given).copy_(as_tensor(own))
        return found

    def prune(self, pruning: Pruning, tile: Tile) -> tuple[torch.Tensor | None, ...]:
        masks = self.loops.prune(pruning, on_host(tile))
        device = device_of(tile.experts[0])
        return tuple(None if mask is None else as_tensor(mask).to(device) for mask in masks)
