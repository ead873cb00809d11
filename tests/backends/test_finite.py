"""all_finite: every type, every place, every pattern that is not a number or too large for one."""

from __future__ import annotations

import pytest
import torch
from cases import FLOATS, LENGTHS, tile

from mergekern.backends import CHUNK
from mergekern.backends.cpu import all_finite


@pytest.mark.parametrize("dtype", FLOATS)
def test_what_is_finite(dtype: torch.dtype) -> None:
    for numel in LENGTHS:
        assert all_finite(tile(numel, [dtype, dtype], "bits").experts[0], threads=2)
    largest = torch.full((77,), torch.finfo(dtype).max, dtype=dtype)
    assert all_finite(largest) and all_finite(-largest)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("value", [torch.nan, -torch.nan, torch.inf, -torch.inf])
def test_what_is_not(dtype: torch.dtype, value: float) -> None:
    x = tile(2 * CHUNK + 5, [dtype, dtype], "near").experts[0]
    for place in (0, 511, 512, CHUNK - 1, CHUNK, 2 * CHUNK + 4):
        bad = x.clone()
        bad[place] = value
        assert not all_finite(bad, threads=3)


def test_only_what_it_can_read() -> None:
    with pytest.raises(ValueError, match="int32"):
        all_finite(torch.zeros(3, dtype=torch.int32))
    with pytest.raises(ValueError, match="contiguous"):
        all_finite(torch.zeros(4, 4).t())
