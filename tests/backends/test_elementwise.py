"""Functions that the loops have a spelling of: against the functions themselves, bit for bit."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from cases import CHUNK, FLOATS, KINDS, LENGTHS, bits, equal, tile, work_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mergekern.backends.cpu import CpuBackend, instruction_sets
from mergekern.backends.formulas import spelled
from mergekern.backends.functions import widened
from mergekern.backends.reference import ReferenceBackend
from mergekern.dtypes import FLOAT32, FLOAT64, DType, to_torch
from mergekern.function import Function, PerRow
from mergekern.fused import ExpertScalars, Findings, FusedOp, Tile
from mergekern.methods import get_method
from mergekern.methods.elementwise import importance, overlaps, ram

REFERENCE = ReferenceBackend()
BACKENDS = [CpuBackend(threads=2, instruction_set=name) for name in instruction_sets()]
GRID = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
BOUNDS = (0.0, 5e-7, 1e-5, 3e-4, 0.125, 0.25, 1.0, 1e-45, 1e30)
MANY = (*KINDS, "mixed", "specials")
SPECIALS = (math.inf, -math.inf, math.nan, 0.0, -0.0, 1e-45, -6e-8, 65504.0, -65504.0, 3e38, -3e38)


def op_of(method: str, t: Tile, work: DType, /, **parameters: Any) -> FusedOp:
    function = get_method(method).function(**parameters).function
    scalars = tuple(ExpertScalars(k, 1.0) for k in range(len(t.experts)))
    return FusedOp("function", scalars, work=work, function=function)


def sprinkled(x: torch.Tensor, seed: int) -> torch.Tensor:
    """With numbers now and then that arithmetic treats in ways of their own."""
    g = torch.Generator().manual_seed(seed)
    special = torch.tensor(SPECIALS)[torch.randint(len(SPECIALS), x.shape, generator=g)]
    return torch.where(torch.rand(x.shape, generator=g) < 0.3, special.to(x.dtype), x)


def tile_of(numel: int, dtypes: list[torch.dtype], kind: str, seed: int) -> Tile:
    """mixed: a third of every model is as the base, so that few, many or all have changed."""
    t = tile(numel, dtypes, "near" if kind in ("mixed", "specials") else kind, seed, CHUNK)
    assert t.base is not None
    if kind == "specials":
        experts = [sprinkled(x, seed + place) for place, x in enumerate(t.experts)]
        return replace(t, base=sprinkled(t.base, seed - 1), experts=tuple(experts))
    if kind == "mixed":
        g = torch.Generator().manual_seed(seed)
        changed = [torch.rand(numel, generator=g) < 0.6 for _ in t.experts]
        pairs = zip(changed, t.experts, strict=True)
        return replace(t, experts=tuple(torch.where(c, x, t.base.to(x.dtype)) for c, x in pairs))
    return t


def assert_same(op: FusedOp, t: Tile, dtype: torch.dtype) -> Findings:
    assert spelled(op) is not None
    want = torch.full((t.numel,), 7.0, dtype=dtype)
    found = REFERENCE.fuse(op, t, want)
    for backend in BACKENDS:
        got = torch.full((t.numel,), 7.0, dtype=dtype)
        assert backend.fuse(op, t, got) == found, (backend.instruction_set, op, t)
        differ = (bits(got) != bits(want)) & ~(got.isnan() & want.isnan())
        assert not differ.any(), (backend.instruction_set, op, differ.nonzero()[:3], t)
    return found


@st.composite
def cases(draw: st.DrawFn, most: int) -> tuple[Tile, DType]:
    """A tile, and the dtype to compute in."""
    dtypes = draw(st.lists(st.sampled_from(FLOATS), min_size=2, max_size=1 + most))
    if draw(st.booleans()):
        dtypes = [dtypes[0]] * len(dtypes)
    numel, kind = draw(st.sampled_from(LENGTHS[1:])), draw(st.sampled_from(MANY))
    t = tile_of(numel, dtypes, kind, draw(st.integers(1, 9)))
    wide = draw(st.booleans()) or work_of(t) == FLOAT64
    return t, FLOAT64 if wide else FLOAT32


@GRID
@given(case=cases(1), t=st.sampled_from((*BOUNDS, -0.5, -0.0)), dtype=st.sampled_from(FLOATS))
def test_nearswap(case: tuple[Tile, DType], t: float, dtype: torch.dtype) -> None:
    assert_same(op_of("nearswap", *case, t=t), case[0], dtype)


@GRID
@given(case=cases(5), epsilon=st.none() | st.sampled_from(BOUNDS), dtype=st.sampled_from(FLOATS))
def test_ram(case: tuple[Tile, DType], epsilon: float | None, dtype: torch.dtype) -> None:
    given_ = {} if epsilon is None else {"epsilon": epsilon}
    assert_same(op_of("ram", *case, **given_), case[0], dtype)


@GRID
@given(case=cases(5), epsilon=st.sampled_from(BOUNDS), dtype=st.sampled_from(FLOATS))
def test_ramplus_tl(case: tuple[Tile, DType], epsilon: float, dtype: torch.dtype) -> None:
    boosts = torch.tensor([1.0, 1.02, 1 / 3, 1.2, -0.7], dtype=torch.float64)
    op = op_of("ramplus_tl", *case, epsilon=epsilon)
    op = replace(op, found={"boost": boosts[: len(case[0].experts)]})
    assert_same(op, case[0], dtype)


@GRID
@given(data=st.data(), case=cases(5), dtype=st.sampled_from(FLOATS))
def test_consensus(data: st.DataObject, case: tuple[Tile, DType], dtype: torch.dtype) -> None:
    models = len(case[0].experts)
    numbers = {"weight": [1.0, 0.5, -0.3, 0.0, 1 / 3], "tall_mask_lambda": [0.0, 0.2, 0.6, 1.0]}
    each = {
        name: tuple(data.draw(st.sampled_from(of)) for _ in range(models))
        for name, of in numbers.items()
    }
    k = data.draw(st.sampled_from([0, 1, 2, 3, 2**64 - 1]))
    scale = data.draw(st.sampled_from([1.0, 0.4, -2.0, 0.0]))
    assert_same(op_of("consensus", *case, **each, k=k, lambda_=scale), case[0], dtype)


@GRID
@given(data=st.data(), case=cases(5), dtype=st.sampled_from(FLOATS))
def test_fisher(data: st.DataObject, case: tuple[Tile, DType], dtype: torch.dtype) -> None:
    """Diagonals are positive, and 0 now and then; the experts come before them."""
    t, work = replace(case[0], base=None), case[1]
    g = torch.Generator().manual_seed(t.numel)
    order = data.draw(st.sampled_from([1, 8, 30]))
    diagonals = tuple(torch.rand(t.numel, generator=g) ** order for _ in t.experts)
    diagonals[0][::3] = 0
    weight = tuple(data.draw(st.sampled_from([1.0, 0.5, 1 / 3, 0.0])) for _ in t.experts[1:])
    t = replace(t, experts=(*t.experts, *diagonals))
    assert_same(op_of("fisher", t, work, weight=(0.7, *weight)), t, dtype)


@GRID
@given(data=st.data(), case=cases(5), dtype=st.sampled_from(FLOATS))
def test_stitch(data: st.DataObject, case: tuple[Tile, DType], dtype: torch.dtype) -> None:
    """What is not 0 is a mask; the experts come before them."""
    t, work = case
    g = torch.Generator().manual_seed(t.numel)
    share = data.draw(st.sampled_from([0.0, 0.1, 0.7, 1.0]))
    marks = tuple((torch.rand(t.numel, generator=g) < share).bfloat16() for _ in t.experts)
    marks[0][::5], marks[0][1::7] = -0.0, 0.25
    weight = tuple(data.draw(st.sampled_from([1.0, 0.5, 1 / 3, -2.0, 0.0])) for _ in t.experts)
    scale = data.draw(st.sampled_from([1.0, 0.3, -2.0, 0.0]))
    t = replace(t, experts=(*t.experts, *marks))
    assert_same(op_of("stitch", t, work, weight=weight, lambda_=scale), t, dtype)


@GRID
@given(
    case=cases(1), width=st.sampled_from([1, 3, 100, 512, 70_000]), dtype=st.sampled_from(FLOATS)
)
def test_arcee_fusion(case: tuple[Tile, DType], width: int, dtype: torch.dtype) -> None:
    """The importance of every element, and the merge by one of them."""
    t, work = case
    g = torch.Generator().manual_seed(width)
    rows = -(-(t.offset + t.numel) // width)
    values = torch.rand(rows, dtype=torch.float64, generator=g) ** 3
    values[::7] = 0
    divergence = PerRow(values, width)
    op = op_of("arcee_fusion", t, work)
    assert op.function is not None
    ranked = replace(op.function, call=importance)
    assert_same(replace(op, function=ranked, found={"divergence": divergence}), t, to_torch(work))
    found = {"divergence": divergence.at(t.offset, t.numel).to(to_torch(work))}
    threshold = importance(*widened(t, work), found)[t.numel // 2]
    assert_same(replace(op, found={"divergence": divergence, "threshold": threshold}), t, dtype)


@GRID
@given(case=cases(5), epsilon=st.sampled_from(BOUNDS))
def test_counts_of_overlaps(case: tuple[Tile, DType], epsilon: float) -> None:
    t, work = case
    want = overlaps(*widened(t, work), epsilon=epsilon).sum(-1)  # type: ignore[arg-type]
    for backend in BACKENDS:
        assert equal(backend.overlaps(t, work, epsilon), want), backend.instruction_set


@pytest.mark.parametrize("method", ["nearswap", "ram", "consensus"])
def test_several_pieces_and_what_they_find(method: str) -> None:
    """NaN and Inf far apart, in threads of their own, and what fp16 cannot hold."""
    t = tile_of(3 * CHUNK + 5, [torch.float32] * 2, "mixed", 1)
    consensus = {"weight": (1.0,), "tall_mask_lambda": (0.4,), "k": 1, "lambda_": 1.0}
    parameters = {"nearswap": {"t": 1e-4}, "consensus": consensus}.get(method, {})
    op = op_of(method, t, FLOAT32, **parameters)
    assert assert_same(op, t, torch.bfloat16) == Findings()
    t.experts[0][-1] = math.inf
    assert assert_same(op, t, torch.bfloat16).non_finite == (0,)
    assert t.base is not None
    t.base[CHUNK] = math.nan
    assert assert_same(op, t, torch.float32).non_finite == (-1, 0)
    t.experts[0][-1] = t.base[CHUNK] = t.experts[0][CHUNK] = 1e6
    t.base[-1] = 1e6
    assert assert_same(op, t, torch.float16) == Findings(overflow=True)


def test_a_function_is_known_by_itself() -> None:
    def other(base: torch.Tensor, experts: list[torch.Tensor], *, epsilon: float) -> torch.Tensor:
        return base - epsilon

    t = tile_of(9, [torch.float32] * 3, "near", 1)
    op = op_of("ram", t, FLOAT32, epsilon=0.5)
    assert op.function is not None and op.function.call is ram
    users = Function("ram", other, None, op.function.digest, op.function.parameters)
    out = torch.empty(9)
    assert spelled(replace(op, function=users)) is None
    BACKENDS[-1].fuse(replace(op, function=users), t, out)
    assert t.base is not None and torch.equal(out, t.base - 0.5)
