"""Random drop: its kernels and whole merges against the floor, and against torch operations."""

from __future__ import annotations

import torch
from data import base_and_experts
from in_torch import PEERS
from rows import Row, less_cpu, of_floor
from settings import DENSITY, EXPERTS, Settings
from timing import measure

from mergekern.fused import Tile
from parts.exact import against_floor
from parts.fused import dare_op, fused_row
from parts.mergekit import check_peer

LEAST = 0.35


def run(settings: Settings) -> list[Row]:
    base, experts = base_and_experts(settings.numel, EXPERTS)
    tile = Tile("w", 0, base, tuple(experts))
    models = [{"w": tensor} for tensor in (base, *experts)]
    rows = []
    for method, elect in (("dare_linear", "none"), ("dare_ties", "mass")):
        op = dare_op(EXPERTS, elect)
        what = f"{method}, K = {EXPERTS}"
        rows.append(fused_row(f"{what}, fused pass", op, tile, settings.threads, settings, LEAST))
        call = {"density": DENSITY, "rescale": "drop_rate"}
        floor, ours, nbytes = against_floor(method, models, settings, **call)
        rows.append(of_floor(f"{what}, merge()", floor, ours, nbytes, LEAST))
        check_peer(method)
        for dtype in (torch.bfloat16, torch.float32):
            peer = measure(lambda m=method, d=dtype: PEERS[m](base, experts, d, DENSITY), 1)
            name = str(dtype).removeprefix("torch.")
            rows.append(less_cpu(f"{what}, against torch, {name} deltas", peer, ours, 100))
    return rows
