"""The Triton backend as tests run it: compiled where there is a GPU, elsewhere interpreted, which
conftest asks for before Triton is imported. The interpreter pays by the operation: there, a block
is as large as the tile."""

from __future__ import annotations

from functools import cache

import torch

from mergekern.backends import CHUNK
from mergekern.backends.device import DeviceBackend
from mergekern.backends.triton import TritonKernels
from mergekern.fused import Findings, FusedOp, Tile

DEVICE = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")


@cache
def backend_of_span(span: int, step: int, rows: int) -> DeviceBackend:
    return DeviceBackend(TritonKernels(span, step, rows), DEVICE)


def backend_for(numel: int) -> DeviceBackend:
    if DEVICE.type == "cuda":
        return DeviceBackend(TritonKernels(), DEVICE)
    span = min(CHUNK, max(64, 1 << (numel - 1).bit_length())) if numel else 64
    return backend_of_span(span, min(span, CHUNK // 2), rows=256)


def on_device(t: Tile) -> Tile:
    base = None if t.base is None else t.base.to(DEVICE)
    return Tile(t.tensor, t.offset, base, tuple(x.to(DEVICE) for x in t.experts))


def run(op: FusedOp, t: Tile, dtype: torch.dtype) -> tuple[torch.Tensor, Findings]:
    out = torch.full((t.numel,), 7.0, dtype=dtype, device=DEVICE)
    found = backend_for(t.numel).fuse(op, on_device(t), out)
    return out.cpu(), found
