"""Magnitudes and their counts against the reference, on every instruction set."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases import KINDS, LENGTHS, PHASED, tile, tiles, work_of
from devices import DEVICES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mergekern.backends import Bracket
from mergekern.backends.cpu import CpuBackend, instruction_sets
from mergekern.backends.reference import ReferenceBackend
from mergekern.dtypes import FLOAT32, FLOAT64, DType, to_torch

REFERENCE = ReferenceBackend()
BACKENDS = [*DEVICES, *(CpuBackend(threads=2, instruction_set=name) for name in instruction_sets())]
GRID = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@GRID
@given(data=st.data())
def test_magnitudes_and_counts(data) -> None:
    t = data.draw(tiles(most_experts=3))
    work = work_of(t)
    brackets = []
    for expert in range(len(t.experts)):
        want = REFERENCE.magnitudes(t, expert, work)
        for backend in BACKENDS:
            assert np.array_equal(backend.magnitudes(t, expert, work), want)
        for shift, bins in ((0, 1), (0, 77), (13, 300)):
            low = int(want[data.draw(st.integers(0, t.numel - 1))]) if t.numel else 5
            brackets.append(Bracket(expert, max(0, low - (bins << shift) // 3), shift, bins))
    want = [np.zeros((1, b.bins), np.int64) for b in brackets]
    wanted = REFERENCE.count(t, brackets, work, want)
    for backend in BACKENDS:
        got = [np.zeros((backend.lanes, b.bins), np.int64) for b in brackets]
        counts = backend.count(t, brackets, work, got)
        for mine, theirs in zip(counts, wanted, strict=True):
            assert mine.above == theirs.above
            assert np.array_equal(mine.chunks, theirs.chunks)
        for mine, theirs in zip(got, want, strict=True):
            assert np.array_equal(mine.sum(0), theirs.sum(0))


@pytest.mark.parametrize("numel", LENGTHS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", PHASED)
def test_brackets_of_one_magnitude(numel: int, kind: str, dtype: torch.dtype) -> None:
    t = tile(numel, [dtype] * 8, kind, seed=numel)
    if numel > 9:
        t.experts[0][9] = torch.nan
    brackets = [Bracket(k % 7, low, 0, 1) for k in range(9) for low in (0, 0x3A000000, 0x7FC00000)]
    want = [np.zeros((1, 1), np.int64) for _ in brackets]
    wanted = REFERENCE.count(t, brackets, FLOAT32, want)
    for backend in BACKENDS:
        got = [np.zeros((backend.lanes, 1), np.int64) for _ in brackets]
        counts = backend.count(t, brackets, FLOAT32, got)
        assert [c.above for c in counts] == [c.above for c in wanted]
        assert all(np.array_equal(a.chunks, b.chunks) for a, b in zip(counts, wanted, strict=True))
        assert [int(tally.sum()) for tally in got] == [int(tally.sum()) for tally in want]


@pytest.mark.parametrize("work", [FLOAT32, FLOAT64])
def test_a_bracket_up_to_the_largest_magnitude(work: DType) -> None:
    """Its end is the first number that an integer of the same width cannot hold."""
    t = tile(1000, [to_torch(work)] * 2, "bits")
    end = 2**63 if work == FLOAT64 else 2**31
    for low, shift in ((0, end.bit_length() - 11), (end - 1024, 0), (end // 2, 40)):
        bracket = Bracket(0, low, min(shift, end.bit_length() - 11), 1024)
        counts, tallies = [], []
        for backend in (REFERENCE, *BACKENDS):
            tallies.append(np.zeros((backend.lanes, bracket.bins), np.int64))
            counts += backend.count(t, [bracket], work, [tallies[-1]])
        bits_of = REFERENCE.magnitudes(t, 0, work).tolist()
        assert int(tallies[0].sum()) == sum(low <= m < bracket.end for m in bits_of)
        assert len({count.above for count in counts}) == 1
        assert all(np.array_equal(tally.sum(0), tallies[0].sum(0)) for tally in tallies)
