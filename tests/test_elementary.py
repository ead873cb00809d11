"""exp, log, sine and angle against the C library's, sums against exact ones."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from cases import same_bits
from hypothesis import given, settings
from hypothesis import strategies as st

from mergekern import _C
from mergekern.backends.cpu import instruction_sets
from mergekern.elementary import (
    LARGEST,
    SMALLEST,
    angle,
    exp,
    log,
    plain_exp,
    plain_log,
    plain_total,
    sine,
    total,
)

COUNT = 20_000


def between(low: float, high: float) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    return torch.rand(COUNT, dtype=torch.float64, generator=g) * (high - low) + low


def ulps(got: torch.Tensor, x: torch.Tensor, function: Callable[[float], float]) -> float:
    """How many units in the last place they differ at the most."""
    want = np.array([function(value) for value in x.tolist()])
    return float((np.abs(got.numpy() - want) / np.spacing(np.abs(want))).max())


@pytest.mark.parametrize("low", [1e-9, 1e-3, 0.4, 30.0, 708.0])
def test_exp(low: float) -> None:
    for x in (between(-low, low), torch.tensor([0.0, -low, low], dtype=torch.float64)):
        assert ulps(exp(x), x, math.exp) <= 2


def test_exp_beyond_its_ends() -> None:
    x = torch.tensor([-1e9, -math.inf, 1e9, math.nan], dtype=torch.float64)
    found = exp(x)
    assert found[:3].tolist() == exp(x.new_tensor([SMALLEST, SMALLEST, LARGEST])).tolist()
    assert found[3].isnan()


@pytest.mark.parametrize("spread", [1e-9, 1e-3, 0.3, 0.9])
def test_log_near_one(spread: float) -> None:
    x = between(1 - spread, 1 + spread)
    assert ulps(log(x), x, math.log) <= 2


def test_log_of_all_sizes() -> None:
    x = torch.cat([2.0 ** between(-1021, 1023), 2.0 ** torch.arange(-1022.0, 1024.0).double()])
    x = x[x != 1]
    assert ulps(log(x), x, math.log) <= 2
    assert log(torch.ones(1, dtype=torch.float64)) == 0


def test_sine_and_angle() -> None:
    x = between(-7, 7)
    assert (sine(x) - x.new_tensor([math.sin(v) for v in x.tolist()])).abs().max() < 3e-16
    for c in (between(-1, 1), 1 - between(0, 1e-9), between(0, 1e-9) - 1):
        assert ulps(angle(c), c, math.acos) <= 6
    assert angle(torch.tensor([1.0, -1.0], dtype=torch.float64)).tolist() == [0, math.pi]
    assert angle(torch.tensor([1.5, math.nan], dtype=torch.float64)).isnan().all()


@settings(max_examples=40, deadline=None)
@given(length=st.integers(0, 300), rows=st.integers(0, 3))
def test_total_adds_halves(length: int, rows: int) -> None:
    def halved(values: list[float]) -> float:
        if len(values) < 2:
            return sum(values)
        half = (len(values) + 1) // 2
        tail = values[half:]
        folded = [a + b for a, b in zip(values, tail, strict=False)] + values[len(tail) : half]
        return halved(folded)

    x = between(-1, 1)[: length * rows].view(rows, length)
    found = total(x)
    assert found.tolist() == [halved(row) for row in x.tolist()]
    for got, row in zip(found.tolist(), x.tolist(), strict=True):
        assert math.isclose(got, math.fsum(row), abs_tol=1e-13)


@pytest.mark.parametrize("name", instruction_sets())
def test_the_loops_have_the_bits_of_plain_torch(name: str) -> None:
    ends = [0.0, -0.0, SMALLEST, LARGEST, -1e9, 1e9, math.inf, -math.inf, 1e-300, 5e-324, math.nan]
    x = torch.cat([between(-720, 720), between(-1e-6, 1e-6), torch.tensor(ends).double()])
    numbers = 2.0 ** between(-1021, 1023)
    near = torch.cat([between(0.5, 2), 2.0 ** torch.arange(-1022.0, 1024.0).double()])
    for loop, plain, values in (
        (_C.exp, plain_exp, x),
        (_C.log, plain_log, torch.cat([numbers, near])),
    ):
        for given_ in (values, *(values[:length] for length in range(20))):
            got = torch.empty_like(given_)
            loop(name, given_.data_ptr(), len(given_), got.data_ptr())
            assert same_bits(got, plain(given_))
    for length in [*range(1, 40), 333]:
        rows = between(-1, 1)[: 3 * length].view(3, length)
        sums = torch.empty(3, dtype=torch.float64)
        _C.total(name, rows.data_ptr(), 3, length, sums.data_ptr())
        assert same_bits(sums, plain_total(rows))


def test_what_the_loops_are_given() -> None:
    """Anything but fp64 in host memory, in order, is none of theirs, or made so."""
    x = between(0.5, 2).view(100, 200).T
    for function, plain in ((exp, plain_exp), (log, plain_log), (total, plain_total)):
        assert same_bits(function(x), plain(x))
        assert function(x[:0]).shape == plain(x[:0]).shape
    assert total(x[:, :0]).tolist() == [0.0] * 200
    assert total(x.float()).dtype == torch.float32
