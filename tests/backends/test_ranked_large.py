"""Large tensors trimmed by ranks on a device, all in one pass: windows and outputs as the reference
has them, where the guess holds and where it does not."""

from __future__ import annotations

import pytest
import torch
from cases import KINDS, tile
from devices import PLAIN
from ranked_batches import assert_same, spec_of

from mergekern.backends import CHUNK, brackets, ranked
from mergekern.backends.launch import COLUMNS
from mergekern.dtypes import FLOAT32, of_torch, work_dtype
from mergekern.fused import Findings

NUMELS = (CHUNK + 1, 3 * CHUNK + 77, CHUNK + 9, 200)


@pytest.mark.parametrize("ties", ["index", "keep"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_as_the_reference(kind: str, dtype: torch.dtype, ties: str) -> None:
    work = work_dtype([of_torch(dtype)])
    given = [tile(n, [dtype] * 4, kind, seed=n) for n in NUMELS]
    assert_same(PLAIN, given, spec_of(3, ties, 0.1 if kind == "near" else 0.0), work, dtype)


@pytest.mark.parametrize("ties", ["index", "keep"])
@pytest.mark.parametrize("sigmas", [-3.0, 0.0])
def test_a_guess_that_fails(monkeypatch: pytest.MonkeyPatch, sigmas: float, ties: str) -> None:
    """Cuts that lie at the sampled rank, or on the wrong side of each other."""
    counted = []
    monkeypatch.setattr(brackets, "SIGMAS", sigmas)
    real = ranked._by_counting
    monkeypatch.setattr(ranked, "_by_counting", lambda *a: (counted.append(a[2]), real(*a))[1])
    for dtype in (torch.bfloat16, torch.float32):
        given = [tile(n, [dtype] * 3, "near", seed=n) for n in NUMELS]
        assert_same(PLAIN, given, spec_of(2, ties, 0.1), FLOAT32, dtype)
    assert max(int(batch.numel.max()) for batch in counted) > CHUNK


@pytest.mark.parametrize("most", [0.0, 1e-3])
def test_too_much_is_open(monkeypatch: pytest.MonkeyPatch, most: float) -> None:
    """What is gathered is bounded, wherever the bound lies."""
    gathered = []
    real = PLAIN._kernels.gather
    monkeypatch.setattr(ranked, "MOST_OPEN", most)
    monkeypatch.setattr(PLAIN._kernels, "gather", lambda *a: (gathered.append(a[1]), real(*a))[1])
    given = [tile(n, [torch.float32] * 3, "near", seed=n) for n in NUMELS]
    assert_same(PLAIN, given, spec_of(2, "index", 0.0), FLOAT32, torch.float32)
    assert len(gathered) == 2  # samples of two sizes, nothing that is open


def test_what_is_open_is_aligned(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the quick kernels take it, wherever it was gathered from."""
    merged, real = [], PLAIN._kernels.fuse
    monkeypatch.setattr(PLAIN._kernels, "fuse", lambda todo: (merged.append(todo), real(todo))[1])
    numels = [CHUNK + 1 + n for n in range(5)]
    given = [tile(n, [torch.bfloat16] * 3, "near", seed=n) for n in numels]
    assert_same(PLAIN, given, spec_of(2, "index", 0.0), FLOAT32, torch.bfloat16)
    column = {name: place for place, name in enumerate(COLUMNS)}
    sizes = [todo.segments[:, column["numel"]].tolist() for todo in merged]
    opened = [todo for todo, numel in zip(merged, sizes, strict=True) if numel != numels]
    assert opened and any(n % 8 for n in sizes[merged.index(opened[0])])
    for todo in opened:
        addresses = todo.segments[:, [column["base"], column["out"], *range(len(COLUMNS), 9)]]
        assert not (addresses % 16).any()


def test_as_many_at_a_time_as_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at = []
    real = ranked._guessed
    monkeypatch.setattr(ranked, "TOGETHER", 3 * CHUNK)
    monkeypatch.setattr(ranked, "_guessed", lambda *a: (looked_at.append(a[2]), real(*a))[1])
    given = [tile(CHUNK + 1 + n, [torch.bfloat16] * 3, "near", seed=n) for n in range(5)]
    assert_same(PLAIN, given, spec_of(2, "index", 0.0), FLOAT32, torch.bfloat16)
    assert [len(batch) for batch in looked_at] == [3, 2]


def test_findings() -> None:
    given = [tile(n, [torch.bfloat16] * 3, "near", seed=n) for n in NUMELS]
    given[1].experts[1][3 * CHUNK] = torch.nan
    given[2].base[5] = torch.inf
    found = assert_same(PLAIN, given, spec_of(2, "index", 0.0), FLOAT32, torch.bfloat16)
    assert set(found) == {1, 2}
    given = [tile(n, [torch.float32] * 3, "near", seed=n) for n in NUMELS]
    given[0].experts[0][7] = 1e6
    found = assert_same(PLAIN, given, spec_of(2, "index", 0.0), FLOAT32, torch.float16)
    assert found == {0: Findings(overflow=True)}
