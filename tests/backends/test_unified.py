"""One task vector for many: the loops against plain torch, bit for bit, and both against fp64."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import CHUNK, FLOATS, bits, equal, tile, tiles, work_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mergekern.arrays import as_tensor
from mergekern.backends.cpu import CpuBackend, instruction_sets
from mergekern.backends.hosted import Host
from mergekern.backends.masks import unpacked
from mergekern.backends.reference import ReferenceBackend
from mergekern.dtypes import FLOAT32, FLOAT64, DType, of_torch
from mergekern.fused import Findings, Tile, Unified
from mergekern.tiles import cut

REFERENCE = ReferenceBackend()
BACKENDS = [CpuBackend(threads=2, instruction_set=name) for name in instruction_sets()]
GRID = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def room_for(t: Tile, stored: torch.dtype) -> Unified:
    experts = len(t.experts)
    return Unified(
        of_torch(stored),
        torch.full((t.numel,), 7.0, dtype=stored),
        tuple(torch.full((-(-t.numel // 8),), 0xAA, dtype=torch.uint8) for _ in t.experts),
        torch.full((-(-t.numel // CHUNK) * experts * 2,), 7.0, dtype=torch.float64),
    )


def assert_alike(found: Unified, want: Unified) -> None:
    assert found.out is not None and want.out is not None
    got, wanted = as_tensor(found.out), as_tensor(want.out)
    assert ((bits(got) == bits(wanted)) | (got.isnan() & wanted.isnan())).all()
    assert all(equal(a, b) for a, b in zip(found.masks, want.masks, strict=True))
    assert np.array_equal(np.asarray(found.sums), np.asarray(want.sums), equal_nan=True)


@GRID
@given(t=tiles(), stored=st.sampled_from(FLOATS), wide=st.booleans())
def test_loops_are_the_reference(t: Tile, stored: torch.dtype, wide: bool) -> None:
    work: DType = FLOAT64 if wide else work_of(t)
    want = room_for(t, stored)
    found = REFERENCE.unify(t, work, want)
    for backend in (*BACKENDS, Host()):
        got = room_for(t, stored)
        assert backend.unify(t, work, got) == found
        assert_alike(got, want)


@pytest.mark.parametrize("backend", [REFERENCE, BACKENDS[-1]], ids=["reference", "cpu"])
def test_what_is_not_asked_for_is_not_written(backend: CpuBackend) -> None:
    t = tile(2 * CHUNK + 77, [torch.bfloat16] * 4, "near")
    whole = room_for(t, torch.bfloat16)
    backend.unify(t, FLOAT32, whole)
    nothing = Unified(whole.stored, None, (None,) * 3, None)
    for asked in (
        replace(nothing, out=whole.out),
        replace(nothing, masks=(None, whole.masks[1], None)),
        replace(nothing, sums=whole.sums),
    ):
        room = room_for(t, torch.bfloat16)
        mine = Unified(
            room.stored,
            None if asked.out is None else room.out,
            tuple(None if a is None else m for a, m in zip(asked.masks, room.masks, strict=True)),
            None if asked.sums is None else room.sums,
        )
        assert backend.unify(t, FLOAT32, mine) == Findings()
        wanted, found = ((x.out, *x.masks, x.sums) for x in (asked, mine))
        for a, b in zip(wanted, found, strict=True):
            assert a is None or equal(a, b)


def test_tiles_do_not_change_a_bit() -> None:
    """Tiles begin at chunks: what they give lies behind one another."""
    t = tile(3 * CHUNK + 4099, [torch.float32] * 4, "near")
    whole, parts = room_for(t, torch.bfloat16), room_for(t, torch.bfloat16)
    BACKENDS[-1].unify(t, FLOAT32, whole)
    assert parts.out is not None and parts.sums is not None
    for start, stop in ((0, CHUNK), (CHUNK, 3 * CHUNK), (3 * CHUNK, t.numel)):
        chunks = slice(start // CHUNK * 6, -(-stop // CHUNK) * 6)
        here = Unified(
            parts.stored,
            parts.out[start:stop],
            tuple(m[start // 8 : -(-stop // 8)] for m in parts.masks if m is not None),
            parts.sums[chunks],
        )
        BACKENDS[-1].unify(cut(t, start, stop), FLOAT32, here)
    assert_alike(parts, whole)


def papers(deltas: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """tau_uni = sgn(sum tau) max |tau| over those of that sign; M = 1[tau tau_uni > 0]; in fp64."""
    gamma = deltas.sum(0).sign()
    epsilon = torch.where(deltas.sign() == gamma, deltas.abs(), 0.0).amax(0)
    unified = gamma * epsilon
    return unified, deltas * unified > 0


@pytest.mark.parametrize("numel", [1, 7, 8, 9, 997, CHUNK + 4097])
@pytest.mark.parametrize("experts", [1, 2, 5])
def test_it_is_the_papers_formula(numel: int, experts: int) -> None:
    """Deltas are whole numbers, of which fp32 rounds no sum."""
    g = torch.Generator().manual_seed(numel)
    base = torch.randint(-50, 50, (numel,), generator=g).float()
    deltas = torch.randint(-3, 4, (experts, numel), generator=g).double()
    t = Tile("w", 0, base, tuple((base + d).float() for d in deltas))
    unified, marks = papers(deltas)
    for backend in (REFERENCE, *BACKENDS):
        got = room_for(t, torch.float32)
        assert backend.unify(t, FLOAT32, got) == Findings()
        assert got.out is not None and got.sums is not None
        assert torch.equal(as_tensor(got.out).double(), unified)
        for mask, mark in zip(got.masks, marks, strict=True):
            assert mask is not None and torch.equal(unpacked(mask, numel), mark)
        sums = as_tensor(got.sums).view(-1, experts, 2).sum(0)
        want = torch.stack([deltas.abs().sum(1), (marks * unified).abs().sum(1)], 1)
        assert torch.equal(sums, want)


def test_a_mask_goes_by_what_is_stored() -> None:
    """fp16 has no number as small as these deltas: what is stored is 0, and nothing is marked."""
    t = Tile("w", 0, torch.zeros(20), (torch.full((20,), 1e-9), torch.full((20,), 2e-9)))
    for backend in (REFERENCE, *BACKENDS):
        got = room_for(t, torch.float16)
        backend.unify(t, FLOAT32, got)
        assert not as_tensor(got.out).any() and not any(as_tensor(m).any() for m in got.masks)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_is_found(value: float) -> None:
    t = tile(CHUNK + 5, [torch.float32] * 3, "near")
    assert t.base is not None
    bad = t.experts[1].clone()
    bad[CHUNK + 1] = value
    for backend in (REFERENCE, *BACKENDS):
        of_expert = replace(t, experts=(t.experts[0], bad))
        assert backend.unify(of_expert, FLOAT32, room_for(t, torch.float32)).non_finite == (1,)
        of_base = replace(t, base=bad)
        assert backend.unify(of_base, FLOAT32, room_for(t, torch.float32)).non_finite == (-1,)


def test_what_the_stored_dtype_cannot_hold_is_found() -> None:
    t = Tile("w", 0, torch.zeros(9), (torch.full((9,), 1e5),))
    for backend in (REFERENCE, *BACKENDS):
        assert backend.unify(t, FLOAT32, room_for(t, torch.float16)).overflow
