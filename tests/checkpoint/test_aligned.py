"""Gathering by rows: any range is what the whole tensor has there, on disk and in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reading import part
from safetensors.torch import save_file

from mergekern.arrays import address
from mergekern.checkpoint import Checkpoint, aligned, open_checkpoint
from mergekern.checkpoint.aligned import AlignedCheckpoint, Fill, RowMap

NAME = "lm_head.weight"
ROWS, WIDTH, OUT = 23, 7, 40
DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
Stored = dict[torch.dtype, list[torch.Tensor]]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Stored, dict[str, list[Checkpoint]]]:
    """Tensors of three models, and the checkpoints that have them on disk and in memory."""
    root = tmp_path_factory.mktemp("aligned")
    g = torch.Generator().manual_seed(0)
    tensors = {d: [torch.randn(ROWS, WIDTH, generator=g).to(d) for _ in range(3)] for d in DTYPES}
    opened: dict[str, list[Checkpoint]] = {"disk": [], "memory": []}
    for number in range(3):
        state = {str(dtype): tensors[dtype][number] for dtype in DTYPES}
        state["other"] = torch.arange(5)
        save_file(state, root / f"{number}.safetensors")
        opened["disk"].append(open_checkpoint(root / f"{number}.safetensors"))
        opened["memory"].append(open_checkpoint(state))
    return tensors, opened


def plain(
    tensors: Sequence[torch.Tensor], own: np.ndarray, fill: np.ndarray, padded_from: int | None
) -> torch.Tensor:
    """The same, row by row."""
    dtype = tensors[0].dtype
    work = torch.float64 if dtype == torch.float64 else torch.float32
    rows = []
    for place, row in enumerate(own.tolist()):
        if row >= 0:
            rows.append(tensors[0][row])
            continue
        given = [x[fill[m, place]] for m, x in enumerate(tensors) if fill[m, place] >= 0]
        total = sum((x.to(work) for x in given), torch.zeros(WIDTH, dtype=work))
        rows.append((total / max(len(given), 1)).to(dtype))
    if padded_from is not None:
        real = torch.stack(rows[:padded_from]).double().numpy()
        mean = torch.from_numpy(real.sum(0) / padded_from).to(dtype)
        rows[padded_from:] = [mean] * (len(rows) - padded_from)
    return torch.stack(rows)


@st.composite
def index_maps(draw: st.DrawFn, rows: int = OUT) -> np.ndarray:
    """Runs of rows, single ones, and rows that are missing."""
    found: list[int] = []
    while len(found) < rows:
        first = draw(st.integers(-3, ROWS - 1))
        length = draw(st.integers(1, 12))
        found += range(first, min(first + length, ROWS)) if first >= 0 else [-1] * length
    return np.array(found[:rows], np.int64)


@given(data=st.data())
def test_ranges_are_those_of_the_whole(stored, data: st.DataObject) -> None:
    tensors, opened = stored
    dtype = data.draw(st.sampled_from(DTYPES))
    checkpoints = opened[data.draw(st.sampled_from(["disk", "memory"]))]
    own = data.draw(index_maps())
    fill = np.stack([data.draw(index_maps()) for _ in range(3)])
    padded_from = data.draw(st.one_of(st.none(), st.integers(1, OUT)))
    want = plain(tensors[dtype], own, fill, padded_from if padded_from is not None else None)
    if padded_from is not None:
        own[padded_from:] = -1
    parts = Fill(tuple((checkpoint, str(dtype)) for checkpoint in checkpoints), fill)
    rows = RowMap(str(dtype), own, parts, padded_from)
    mapped = AlignedCheckpoint(checkpoints[0], {NAME: rows})
    assert mapped.tensors[NAME].shape == (OUT, WIDTH)
    first, second = sorted(data.draw(st.integers(0, OUT * WIDTH)) for _ in range(2))
    buffer = np.full(OUT * WIDTH * dtype.itemsize, 0x55, np.uint8)
    given_buffer = data.draw(st.booleans())
    found = part(mapped, NAME, first, second, buffer if given_buffer else None)
    exact = torch.equal(found, want.view(-1)[first:second])
    assert exact, (own, fill, padded_from, first, second)
    if given_buffer:
        assert (buffer[(second - first) * dtype.itemsize :] == 0x55).all()


def test_scratch_is_bounded_by_its_size(stored, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are filled, summed and copied a few at a time, with the same result."""
    tensors, opened = stored
    monkeypatch.setattr(aligned, "PIECE", 50)
    own = np.array([3, 4, 5, *[-1] * 10, *range(9), *[-1] * 18], np.int64)
    fill = np.stack([np.arange(OUT) % ROWS] * 3)
    parts = Fill(tuple((c, "torch.float32") for c in opened["disk"]), fill)
    rows = RowMap("torch.float32", own, parts, 35)
    read: list[int] = []
    inner = opened["disk"][0]

    class Watched(type(inner)):  # type: ignore[misc]
        def read(self, name, start, stop, buffer):
            read.append(0 if buffer is not None else 4 * (stop - start))
            return inner.read(name, start, stop, buffer)

    watched = object.__new__(Watched)
    watched.__dict__ = inner.__dict__
    mapped = AlignedCheckpoint(watched, {NAME: rows})
    want = plain(tensors[torch.float32], own, fill, 35).view(-1)
    odd = np.empty(OUT * WIDTH * 4 + 1, np.uint8)
    assert torch.equal(part(mapped, NAME, 0, OUT * WIDTH, odd), want)
    assert max(read) <= 200


def test_a_view_of_the_inner_tensor_where_one_run_gives_all(stored) -> None:
    tensors, opened = stored
    own = np.arange(5, 15)
    nothing = Fill((), np.empty((0, 10), np.int64))
    mapped = AlignedCheckpoint(opened["memory"][0], {NAME: RowMap("torch.float32", own, nothing)})
    found = mapped.read(NAME, 3, 60, None)
    assert address(found) == tensors[torch.float32][0].data_ptr() + 4 * (5 * WIDTH + 3)


def test_a_bias_may_be_a_row(tmp_path: Path) -> None:
    state = {"final_logits_bias": torch.arange(6.0)[None], "lm_head.bias": torch.arange(6.0)}
    inner = open_checkpoint(state)
    own = np.array([5, 0, -1], np.int64)
    nothing = Fill((), np.empty((0, 3), np.int64))
    mapped = AlignedCheckpoint(inner, {name: RowMap(name, own, nothing) for name in state})
    assert mapped.tensors["final_logits_bias"].shape == (1, 3)
    for name in state:
        assert mapped.read(name, 0, 3, None).tolist() == [5.0, 0.0, 0.0]


def test_the_rest_is_the_inner_checkpoints(stored) -> None:
    _, opened = stored
    inner = opened["disk"][0]
    mapped = AlignedCheckpoint(inner, {}, config={"a": 1}, mark="m")
    assert mapped.tensors == inner.tensors and mapped.files == inner.files
    assert torch.equal(part(mapped, "other", 1, 4), torch.tensor([1, 2, 3]))
    assert mapped.config == {"a": 1} and mapped.fingerprint == {
        **inner.fingerprint,
        "vocabulary": "m",
    }
    assert AlignedCheckpoint(opened["memory"][0], {}, mark="m").fingerprint == {}
