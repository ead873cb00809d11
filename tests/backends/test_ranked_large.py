"""Large tensors trimmed by ranks on a device, all in one pass: windows and outputs as the reference
has them, where the guess holds and where it does not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases import KINDS, same_bits, tile
from devices import PLAIN
from test_ranked_batch import batch_of, op_of, spec_of

from mergekern.backends import CHUNK, brackets, ranked
from mergekern.backends.reference import ReferenceBackend
from mergekern.fused import EVERY_INDEX, Findings

REFERENCE = ReferenceBackend()
NUMELS = (CHUNK + 1, 3 * CHUNK + 77, CHUNK + 9, 200, 2 * CHUNK)


def assert_same(given, spec, work: torch.dtype, dtype: torch.dtype) -> dict[int, Findings]:
    outs, wanted = ([torch.full((t.numel,), 7, dtype=dtype) for t in given] for _ in range(2))
    op = op_of(len(given[0].experts), work)
    reference, batch = batch_of(given, spec, wanted), batch_of(given, spec, outs)
    want = REFERENCE.fuse_batch(op, reference)
    got = PLAIN.fuse_batch(op, batch)
    assert got == want
    for number, (t, mine, theirs) in enumerate(zip(given, outs, wanted, strict=True)):
        if number not in want:
            assert same_bits(mine, theirs)
            last = batch.windows[number][:, [1, 3]]
            last[last == t.numel - 1] = EVERY_INDEX  # the last one of all keeps all
            batch.windows[number][:, [1, 3]] = last
            assert np.array_equal(batch.windows[number], reference.windows[number])
    return got


@pytest.mark.parametrize("ties", ["index", "keep"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_as_the_reference(kind: str, dtype: torch.dtype, ties: str) -> None:
    work = torch.promote_types(dtype, torch.float32)
    given = [tile(n, [dtype] * 4, kind, seed=n) for n in NUMELS]
    for gamma in (0.0, 0.1):
        assert_same(given, spec_of(3, ties, gamma), work, dtype)


@pytest.mark.parametrize("ties", ["index", "keep"])
@pytest.mark.parametrize("sigmas", [-3.0, 0.0])
def test_a_guess_that_fails(monkeypatch: pytest.MonkeyPatch, sigmas: float, ties: str) -> None:
    """Cuts that lie at the sampled rank, or on the wrong side of each other."""
    counted = []
    monkeypatch.setattr(brackets, "SIGMAS", sigmas)
    real = ranked._counted
    monkeypatch.setattr(ranked, "_counted", lambda *a: (counted.append(a[2]), real(*a))[1])
    for dtype in (torch.bfloat16, torch.float32):
        given = [tile(n, [dtype] * 3, "near", seed=n) for n in NUMELS]
        assert_same(given, spec_of(2, ties, 0.1), torch.float32, dtype)
    assert max(int(batch.numel.max()) for batch in counted) > CHUNK


def test_too_much_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranked, "MOST_OPEN", 0.0)
    given = [tile(n, [torch.float32] * 3, "near", seed=n) for n in NUMELS]
    assert_same(given, spec_of(2, "index", 0.0), torch.float32, torch.float32)


def test_findings() -> None:
    given = [tile(n, [torch.bfloat16] * 3, "near", seed=n) for n in NUMELS]
    given[1].experts[1][3 * CHUNK] = torch.nan
    given[4].base[5] = torch.inf
    found = assert_same(given, spec_of(2, "index", 0.0), torch.float32, torch.bfloat16)
    assert set(found) == {1, 4}
    given = [tile(n, [torch.float32] * 3, "near", seed=n) for n in NUMELS]
    given[0].experts[0][7] = 1e6
    found = assert_same(given, spec_of(2, "index", 0.0), torch.float32, torch.float16)
    assert found == {0: Findings(overflow=True)}
