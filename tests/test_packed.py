"""Packed masks: read at any element, and what is added where they are set, bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from cases import FLOATS, LENGTHS, tile
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from mergekern.arrays import host_view
from mergekern.backends.cpu import instruction_sets
from mergekern.backends.masks import packed, unpacked
from mergekern.checkpoint import open_checkpoint
from mergekern.dtypes import BFLOAT16, FLOAT32, FLOAT64
from mergekern.packed import (
    add_marked,
    marked_ones,
    packed_shape,
    plain_add_marked,
    plain_marked_ones,
    read_packed,
)


@settings(max_examples=60, deadline=None)
@given(
    numel=st.sampled_from(LENGTHS),
    dtypes=st.lists(st.sampled_from(FLOATS), min_size=2, max_size=2),
    kind=st.sampled_from(["near", "bits", "denormal", "zeros"]),
    first=st.integers(0, 17),
    scale=st.sampled_from([1.0, 0.3, 1e-40, -2.5]),
    wide=st.booleans(),
)
def test_what_is_added(
    numel: int, dtypes: list[torch.dtype], kind: str, first: int, scale: float, wide: bool
) -> None:
    t = tile(numel, dtypes, kind, seed=first)
    assert t.base is not None
    base, delta = host_view(t.base), host_view(t.experts[0])
    bits = np.random.default_rng(numel).integers(0, 256, -(-(first + numel) // 8), np.uint8)
    work = FLOAT64 if wide else FLOAT32
    want, got = np.empty(numel, work), np.empty(numel, work)
    with np.errstate(all="ignore"):
        plain_add_marked(base, delta, bits, first, scale, want)
    for name in instruction_sets():
        got.fill(7)
        add_marked(base, delta, bits, first, scale, got, name)
        same = got.view(f"i{work.itemsize}") == want.view(f"i{work.itemsize}")
        assert (same | (np.isnan(got) & np.isnan(want))).all(), (name, np.flatnonzero(~same)[:3])


@pytest.mark.parametrize("first", [0, 1, 7, 8, 13])
def test_marks_as_numbers(first: int) -> None:
    for numel in (0, *LENGTHS):
        bits = np.random.default_rng(numel).integers(0, 256, -(-(first + numel) // 8), np.uint8)
        want, got = np.empty(numel, BFLOAT16), np.empty(numel + 1, BFLOAT16)
        plain_marked_ones(bits, first, want)
        for name in instruction_sets():
            got.fill(7)
            marked_ones(bits, first, got[:numel], name)
            assert (got[:numel].view(np.uint16) == want.view(np.uint16)).all(), (name, numel)
            assert got[numel] == 7


@pytest.mark.parametrize("numel", [1, 7, 8, 9, 64, 65, 997])
def test_a_stored_mask_is_read_from_any_element_on(numel: int, tmp_path: Path) -> None:
    marks = torch.rand(numel, generator=torch.Generator().manual_seed(numel)) < 0.5
    mask = torch.from_numpy(packed(marks))
    assert tuple(mask.shape) == packed_shape(numel)
    save_file({"m": mask}, tmp_path / "m.safetensors")
    checkpoint = open_checkpoint(tmp_path / "m.safetensors")
    for start in {0, 1, 5, 8, numel // 2, numel - 1} & set(range(numel)):
        for stop in {start, start + 1, (start + numel + 1) // 2, numel}:
            found, first = read_packed(checkpoint, "m", start, stop)
            here = unpacked(found, first + stop - start)[first:]
            assert torch.equal(here, marks[start:stop]), (start, stop)
    checkpoint.close()
