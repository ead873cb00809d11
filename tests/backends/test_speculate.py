"""Speculation against the reference: outputs, counts and marks, on every instruction set."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import (
    FLOATS,
    KINDS,
    LENGTHS,
    PHASED,
    STEP,
    bits,
    equal,
    margins_of,
    ops,
    same_bits,
    tile,
    tiles,
)
from devices import DEVICES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mergekern.arrays import dtype_of
from mergekern.backends import CHUNK, Margin
from mergekern.backends.cpu import CpuBackend, instruction_sets
from mergekern.backends.reference import ReferenceBackend
from mergekern.dtypes import of_torch, to_torch, work_dtype
from mergekern.fused import ExpertScalars, FusedOp, Tile, Window

REFERENCE = ReferenceBackend()
BACKENDS = [
    *DEVICES,
    *(CpuBackend(threads, name) for name in instruction_sets() for threads in (1, 3)),
]
GRID = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def assert_same(op: FusedOp, t: Tile, margins: list[Margin], dtype: torch.dtype | None) -> None:
    want_out = None if dtype is None else torch.full((t.numel,), 7.0, dtype=dtype)
    want = REFERENCE.speculate(op, t, margins, want_out)
    for backend in BACKENDS:
        out = None if dtype is None else torch.full((t.numel,), 3.0, dtype=dtype)
        got = backend.speculate(op, t, margins, out)
        assert got.findings == want.findings
        assert np.array_equal(got.kept, want.kept), (backend.name, got.kept, want.kept)
        assert equal(got.open, want.open)
        if out is not None:
            assert same_bits(out, want_out)


@GRID
@given(data=st.data(), dtype=st.sampled_from([*FLOATS, None]))
def test_speculate(data, dtype) -> None:
    t = data.draw(tiles())
    op = replace(data.draw(ops(t)), rule="task_vector")
    assert_same(op, t, data.draw(margins_of(op, t)), dtype)


@pytest.mark.parametrize("numel", LENGTHS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", PHASED)
def test_every_length_of_the_common_cases(numel: int, kind: str, dtype: torch.dtype) -> None:
    """Ties: the cuts of three windows part only where their last indices lie apart."""
    t = tile(numel, [dtype] * 5, kind, seed=numel)
    cut = 0x3A000000 if kind == "near" else 0
    last = numel // 2
    experts = tuple(ExpertScalars(i, 0.5, 0.5, 0.5, Window(cut, last + i)) for i in range(4))
    margins = [Margin(Window(cut, last - 9), Window(cut, last + STEP)) for _ in experts]
    assert_same(FusedOp("task_vector", experts, "mass", "mean"), t, margins, dtype)


@pytest.mark.parametrize("offsets", [(0, 0), (1, 0), (0, -4), (1, -4), (4, -1)])
@pytest.mark.parametrize("dtype", PHASED)
def test_low_cuts(offsets: tuple[int, int], dtype: torch.dtype) -> None:
    """Every way in which a strict and a wide cut may lie at the given one or off it, for all
    experts or for one."""
    cut = 0x39800000
    near = Margin(*(Window(cut + (n if n == 1 else n << 18)) for n in offsets))
    nothing_open = Margin(Window(cut), Window(cut + (1 << 20)))
    for experts in (1, 2, 4, 9):
        t = tile(9000 + 77, [dtype] * (experts + 1), "near", seed=experts)
        rows = tuple(ExpertScalars(i, 0.5, 0.5, window=Window(cut)) for i in range(experts))
        op = FusedOp("task_vector", rows, "mass", "mean")
        for margins in ([near] * experts, [*[nothing_open] * (experts - 1), near]):
            assert_same(op, t, margins, dtype)
            assert_same(op, t, margins, None)


@pytest.mark.parametrize("experts", [1, 4, 9])
def test_cuts_apart_everywhere(experts: int) -> None:
    t = tile(CHUNK + 77, [torch.bfloat16] * (experts + 1), "near", seed=experts)
    rows = tuple(
        ExpertScalars(i, 0.5, 0.5, window=Window(0x39800000, CHUNK // 3, 0x3A800000, 5))
        for i in range(experts)
    )
    margin = Margin(Window(0x39A00000, 9, 0x3AA00000), Window(0x39600000, -1, 0x3A600000))
    op = FusedOp("task_vector", rows, "mass", "mean")
    assert_same(op, t, [margin] * experts, torch.bfloat16)
    assert REFERENCE.speculate(op, t, [margin] * experts, None).open.astype(bool).sum() > 100


@pytest.mark.parametrize("dtype", FLOATS)
def test_what_is_not_finite_counts_and_is_found(dtype: torch.dtype) -> None:
    t = tile(2 * STEP + 3, [dtype] * 4, "near")
    for place, value in ((0, torch.nan), (1, torch.inf), (2, -torch.inf)):
        t.experts[place][STEP + place] = value
    work = work_dtype([of_torch(dtype)])
    infinity = int(bits(torch.tensor([torch.inf], dtype=to_torch(work))))
    for cut in (infinity, infinity + 1, infinity - 1, 1):
        window = Window(cut)
        rows = tuple(ExpertScalars(i, 0.5, 0.5, window=window) for i in range(3))
        margins = [Margin(Window(cut + 1), Window(cut - 1))] * 3
        assert_same(FusedOp("task_vector", rows, "mass", work=work), t, margins, dtype)


def test_threads_do_not_change_a_bit() -> None:
    t = tile(9 * CHUNK + 3, [torch.bfloat16] * 5, "near")
    rows = tuple(ExpertScalars(i, 0.5, 0.5, window=Window(0x3A000000, 9000)) for i in range(4))
    op = FusedOp("task_vector", rows, "mass", "mean")
    margins = [Margin(Window(0x3A100000), Window(0x39F00000))] * 4
    want_out = torch.empty(t.numel, dtype=torch.bfloat16)
    want = CpuBackend(1).speculate(op, t, margins, want_out)
    for threads in range(2, 9):
        out = torch.empty_like(want_out)
        got = CpuBackend(threads).speculate(op, t, margins, out)
        assert np.array_equal(got.kept, want.kept) and equal(got.open, want.open)
        assert same_bits(out, want_out)


@GRID
@given(data=st.data())
def test_compact(data) -> None:
    t = data.draw(tiles())
    g = torch.Generator().manual_seed(data.draw(st.integers(0, 9)))
    density = data.draw(st.sampled_from([0.0, 0.001, 0.3, 1.0]))
    marks = torch.rand((-(-t.numel // 8), 8), generator=g) < density
    open_ = (marks.int() << torch.arange(8)).sum(1).to(torch.uint8)
    want_index, want = REFERENCE.compact(t, open_, t.numel)
    for backend in BACKENDS:
        index, got = backend.compact(t, open_, most=len(want_index))
        assert equal(index, want_index)
        assert (got.tensor, got.offset, got.numel) == (t.tensor, 0, len(index))
        for mine, theirs in zip((got.base, *got.experts), (want.base, *want.experts), strict=True):
            assert dtype_of(mine) == dtype_of(theirs) and same_bits(mine, theirs)
        dtype = to_torch(dtype_of(got.experts[0]))
        into, wanted = (torch.full((t.numel,), 3.0, dtype=dtype) for _ in range(2))
        backend.put(got.experts[0], index, into)
        REFERENCE.put(got.experts[0], index, wanted)
        assert same_bits(into, wanted)
    for backend in (REFERENCE, *BACKENDS) if len(want_index) else ():
        assert backend.compact(t, open_, most=len(want_index) - 1) is None


def test_speculation_checks_what_it_is_given() -> None:
    t = tile(9, [torch.float32] * 2, "near")
    op = FusedOp("task_vector", (ExpertScalars(0, 1.0),))
    backend, margin = BACKENDS[0], Margin(Window(), Window())
    for wrong in (
        lambda: backend.speculate(op, t, [], None),
        lambda: backend.speculate(replace(op, rule="linear_combination"), t, [margin], None),
        lambda: backend.speculate(op, t, [margin], torch.empty(8)),
        lambda: backend.compact(t, torch.zeros(1, dtype=torch.uint8), 9),
    ):
        with pytest.raises(ValueError, match="w: "):
            wrong()


def test_put_checks_what_it_is_given() -> None:
    values, index, out = torch.ones(2), torch.tensor([0, 3]), torch.zeros(4)
    for wrong in (
        (values.double(), index, out),
        (values, index.int(), out),
        (values, index[:1], out),
        (values, index, out[:3]),
        (values, index - 1, out),
        (values, index, out.repeat(2)[::2]),
    ):
        with pytest.raises(ValueError):
            BACKENDS[0].put(*wrong)
    BACKENDS[0].put(values, index, out)
    assert out.tolist() == [1, 0, 0, 1]
