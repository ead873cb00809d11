"""Kernels against the floor of the same run: `python -m pytest bench`.

Every case is first compared with the reference backend, bit for bit. The floor runs before each
round, on the same tensors and as many threads, so that both see the same neighbours.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from data import base_and_experts, on_huge_pages
from floor import floor_seconds

from mergekern.backends import Bracket
from mergekern.backends.cores import available_cores
from mergekern.backends.cpu import CpuBackend
from mergekern.backends.reference import ReferenceBackend
from mergekern.backends.thinned import magnitude_bits
from mergekern.dtypes import FLOAT32
from mergekern.fused import ExpertScalars, FusedOp, Tile, Window

NUMEL = 20_000_000
CHECKED = 200_000
ROUNDS = 15
THREADS = sorted({1, available_cores()})
DENSITY = 0.2


def op_of(name: str, experts: int, cut: int) -> FusedOp:
    share, window = 1 / experts, Window(lo=cut)
    scalars = {
        "linear": {},
        "task_arithmetic": {},
        "ties": {"window": window},
        "dare_ties": {"keep_below": int(DENSITY * 2**32)},
    }[name]
    rows = tuple(ExpertScalars(i, share, share, share, **scalars) for i in range(experts))
    if name == "linear":
        return FusedOp("linear_combination", rows)
    elect = "mass" if name in ("ties", "dare_ties") else "none"
    return FusedOp("task_vector", rows, elect, "mean" if name == "ties" else "sum")


def tile_of(experts: int, numel: int = NUMEL) -> Tile:
    base, tuned = base_and_experts(numel, experts)
    return Tile("w", 0, on_huge_pages(base), tuple(on_huge_pages(x) for x in tuned))


def head_of(tile: Tile) -> Tile:
    assert tile.base is not None
    return Tile("w", 0, tile.base[:CHECKED], tuple(x[:CHECKED] for x in tile.experts))


def threshold(tile: Tile) -> int:
    head = head_of(tile)
    bits = magnitude_bits(head.experts[0].float() - head.base.float()).sort().values
    return int(bits[-int(DENSITY * CHECKED)])


def against_floor(benchmark, run: Callable[[], object], floor: Callable[[], float], nbytes: int):
    floors: list[float] = []

    def time_floor() -> None:
        floors.append(floor())

    benchmark.pedantic(run, setup=time_floor, rounds=ROUNDS, warmup_rounds=2)
    benchmark.extra_info["bytes"] = nbytes
    benchmark.extra_info["floor_s"] = min(floors)
    benchmark.extra_info["floor_median_s"] = statistics.median(floors)


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("experts", [4, 8])
@pytest.mark.parametrize("name", ["linear", "task_arithmetic", "ties", "dare_ties"])
def test_fuse(benchmark, name: str, experts: int, threads: int) -> None:
    tile, backend = tile_of(experts), CpuBackend(threads)
    op = op_of(name, experts, threshold(tile))
    head, want, got = (
        head_of(tile),
        torch.empty(CHECKED).bfloat16(),
        torch.empty(CHECKED).bfloat16(),
    )
    ReferenceBackend().fuse(op, head, want)
    backend.fuse(op, head, got)
    assert torch.equal(got.view(torch.int16), want.view(torch.int16))
    out = on_huge_pages(tile.base)
    inputs = [*tile.experts] if name == "linear" else [tile.base, *tile.experts]
    against_floor(
        benchmark,
        lambda: backend.fuse(op, tile, out),
        lambda: floor_seconds(inputs, out, threads),
        2 * NUMEL * (len(inputs) + 1),
    )


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("width", [1, 1 << 18])
def test_count(benchmark, width: int, threads: int) -> None:
    """The counting pass of selection: a bracket of one magnitude (ties) and a wide one."""
    experts = 4
    tile, backend = tile_of(experts), CpuBackend(threads)
    low = threshold(tile) - width // 2
    brackets = [Bracket(expert, low, 0, width) for expert in range(experts)]
    tallies = [np.zeros((threads, width), np.int64) for _ in brackets]
    wanted = [np.zeros((1, width), np.int64) for _ in brackets]
    want = ReferenceBackend().count(head_of(tile), brackets, FLOAT32, wanted)
    got = backend.count(head_of(tile), brackets, FLOAT32, tallies)
    assert [c.above for c in got] == [c.above for c in want]
    assert all(np.array_equal(t.sum(0), w.sum(0)) for t, w in zip(tallies, wanted, strict=True))
    out = on_huge_pages(tile.base)
    against_floor(
        benchmark,
        lambda: backend.count(tile, brackets, FLOAT32, tallies),
        lambda: floor_seconds([tile.base, *tile.experts], out, threads),
        2 * NUMEL * (experts + 1),
    )
