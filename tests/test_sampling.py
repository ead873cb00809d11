"""Guesses from samples: spread over everything, and right about the keys they bracket."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from cases import tile
from hypothesis import given, settings
from hypothesis import strategies as st

from mergekern import _C
from mergekern.backends.choose import get_backend
from mergekern.dtypes import FLOAT32
from mergekern.keys import LOWER, Key, starts_of
from mergekern.plan import Input, Step
from mergekern.sampling import LEAST, MOST, draw, guess, sample_parts
from mergekern.sources import Resident

BACKEND = get_backend("cpu")


def step(name: str, numel: int) -> Step:
    model = Input(0, name)
    return Step(name, "merge", FLOAT32, (numel,), model, (Input(1, name),), (0,))


@settings(deadline=None)
@given(
    numels=st.lists(st.sampled_from([0, 1, 999, 65_536, 5_000_000]), min_size=1, max_size=9),
    stretch=st.sampled_from([64, 2048, 1 << 16]),
)
def test_a_sample_is_spread_over_all_tensors(numels: list[int], stretch: int) -> None:
    steps = [step(f"w{i}", numel) for i, numel in enumerate(numels)]
    starts = starts_of(steps)
    begin = {s.name: start for s, start in zip(steps, starts, strict=False)}
    parts = sample_parts(steps, starts, stretch)
    assert all(0 <= p.start < p.stop <= p.step.numel for p in parts)
    places = [(begin[p.step.name] + p.start, begin[p.step.name] + p.stop) for p in parts]
    assert all(a[1] <= b[0] for a, b in pairwise(places))
    size, total = sum(p.numel for p in parts), sum(numels)
    if total <= LEAST:
        assert size == total
    else:
        assert min(total, LEAST) * 0.9 <= size <= MOST
        widest = max(b[0] - a[1] for a, b in pairwise([(0, 0), *places, (total, total)]))
        assert widest < total / 20


@settings(deadline=None)
@given(
    size=st.sampled_from([1, 2, 63, 4096, 40_001]),
    values=st.sampled_from([1, 2, 300, 1 << 31, (1 << 63) - 1]),
    shift=st.sampled_from([0, 16]),
    threads=st.integers(1, 3),
    seed=st.integers(0, 9),
)
def test_order_statistics(size: int, values: int, shift: int, threads: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    arrays = [rng.integers(0, values, size, np.int64, endpoint=True) >> shift for _ in range(3)]
    ranks = [1, size, *rng.integers(1, size, 3, endpoint=True).tolist()]
    asked = [(bits.ctypes.data, size, ranks) for bits in arrays]
    for bits, found in zip(arrays, _C.order_statistics(threads, asked), strict=True):
        order = np.argsort(~bits, kind="stable")
        assert found == [(int(bits[order[r - 1]]), int(order[r - 1])) for r in ranks]


@pytest.mark.parametrize("kind", ["near", "equal"])
@pytest.mark.parametrize("share", [0.001, 0.2, 0.9, 1.0])
def test_the_wanted_key_lies_between_the_guesses(kind: str, share: float) -> None:
    t = tile(2_000_000, [torch.bfloat16] * 2, kind, seed=3)
    bits = BACKEND.magnitudes(t, 0, FLOAT32)
    rank = max(1, int(share * bits.size))
    order = np.argsort(-bits, kind="stable")
    want = Key(int(bits[order[rank - 1]]), int(order[rank - 1]))
    tensors = Resident([(step("w", t.numel), t)])
    sample = draw(BACKEND, tensors, FLOAT32, [0])
    found = guess(sample, FLOAT32, {(0, LOWER): rank}, by_index=True)
    high, low = found[0, LOWER]
    if high == low:  # near
        assert high.magnitude == want.magnitude
        assert abs(high.place - want.place) < 0.1 * bits.size
        return
    assert (-high.magnitude, high.place) <= (-want.magnitude, want.place)
    assert (-want.magnitude, want.place) <= (-low.magnitude, low.place)
    between = np.sum(bits > low.magnitude) - np.sum(bits > high.magnitude)
    assert between < 0.1 * bits.size
