"""Many tiles in one call give what they give one by one, findings included, on every backend."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import LENGTHS, tile
from devices import DEVICES

from mergekern.backends import CHUNK
from mergekern.backends.cpu import CpuBackend, instruction_sets
from mergekern.backends.reference import ReferenceBackend
from mergekern.dtypes import BFLOAT16, FLOAT16, FLOAT32, FLOAT64
from mergekern.fused import Batch, ExpertScalars, Findings, FusedOp, Tile, Window

BACKENDS = [
    *(CpuBackend(threads, name) for name in instruction_sets() for threads in (1, 3)),
    *DEVICES,
    ReferenceBackend(),
]
NUMELS = [*(n for n in LENGTHS if n), 3 * CHUNK + 5, *range(1, 40)]
LOW = 0x38000000


def op_of(window: Window, hash_: int = 0) -> FusedOp:
    drops = (2**32, 0x80008000, 2**32)
    experts = tuple(ExpertScalars(i, 0.5, 0.5, 0.5, window, drops[i]) for i in range(3))
    return FusedOp("task_vector", experts, "mass", "mean", seed=7, name_hash=hash_)


def tiles() -> list[Tile]:
    dtypes = [torch.bfloat16, torch.bfloat16, torch.float32, torch.float16]
    return [
        tile(numel, dtypes, "near", number, CHUNK * (number % 3))
        for number, numel in enumerate(NUMELS)
    ]


def batch_of(given: list[Tile], outs: list[torch.Tensor]) -> Batch:
    windows = [[(LOW, t.numel // 2 - k, 2**63 - 1, k) for k in range(3)] for t in given]
    inputs = [[x.data_ptr() for x in (t.base, *t.experts) if x is not None] for t in given]
    return Batch(
        base=BFLOAT16,
        experts=(BFLOAT16, FLOAT32, FLOAT16),
        out=BFLOAT16,
        inputs=np.array(inputs, np.uint64),
        outs=np.array([out.data_ptr() for out in outs], np.uint64),
        offset=np.array([t.offset for t in given]),
        numel=np.array([t.numel for t in given]),
        name_hash=np.array([97 * number for number in range(len(given))], np.uint32),
        windows=np.array(windows, np.int64),
    )


def blank(given: list[Tile]) -> list[torch.Tensor]:
    return [torch.full((t.numel,), 7.0, dtype=torch.bfloat16) for t in given]


def one_by_one(given: list[Tile]) -> tuple[list[torch.Tensor], dict[int, Findings]]:
    outs, found = blank(given), {}
    for number, (t, out) in enumerate(zip(given, outs, strict=True)):
        op = op_of(Window(), 97 * number)
        cuts = [Window(LOW, t.numel // 2 - k, 2**63 - 1, k) for k in range(3)]
        pairs = zip(op.experts, cuts, strict=True)
        experts = tuple(replace(expert, window=window) for expert, window in pairs)
        seen = ReferenceBackend().fuse(replace(op, experts=experts), t, out)
        if seen != Findings():
            found[number] = seen
    return outs, found


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_is_its_tiles(backend) -> None:
    given = tiles()
    wanted, _ = one_by_one(given)
    outs = blank(given)
    assert backend.fuse_batch(op_of(Window()), batch_of(given, outs)) == {}
    assert all(torch.equal(out, want) for out, want in zip(outs, wanted, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_windows_of_the_op(backend) -> None:
    """Without a column of windows, the op's hold."""
    given = tiles()[:20]
    outs, wanted = blank(given), blank(given)
    op = op_of(Window(lo=LOW))
    backend.fuse_batch(op, replace(batch_of(given, outs), windows=None))
    for number, (t, want) in enumerate(zip(given, wanted, strict=True)):
        ReferenceBackend().fuse(replace(op, name_hash=97 * number), t, want)
    assert all(torch.equal(out, want) for out, want in zip(outs, wanted, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_findings_name_their_tile(backend) -> None:
    given = tiles()
    places = {0: (None, 0), 11: (1, 0), len(given) - 41: (2, -1), len(given) - 1: (0, 0)}
    for number, (expert, at) in places.items():
        base = given[number].base
        bad = base if expert is None else given[number].experts[expert]
        assert bad is not None
        bad[at] = float("nan") if number else float("inf")
    large = NUMELS.index(3 * CHUNK + 5)
    given[large].experts[0][[0, CHUNK, 2 * CHUNK]] = float("inf")  # every chunk finds it
    _, wanted = one_by_one(given)
    assert backend.fuse_batch(op_of(Window()), batch_of(given, blank(given))) == wanted
    assert set(wanted) == {*places, large}


def test_overflow() -> None:
    given = [Tile("w", 0, None, (torch.full((9,), x),)) for x in (1.0, 7e4, 1.0)]
    op = FusedOp("linear_combination", (ExpertScalars(0, 1.0),))
    for backend in BACKENDS:
        outs = [torch.zeros(9, dtype=torch.float16) for _ in given]
        batch = Batch(
            base=None,
            experts=(FLOAT32,),
            out=FLOAT16,
            inputs=np.array([[0, t.experts[0].data_ptr()] for t in given], np.uint64),
            outs=np.array([out.data_ptr() for out in outs], np.uint64),
            offset=np.zeros(3, np.int64),
            numel=np.full(3, 9),
            name_hash=np.zeros(3, np.uint32),
        )
        assert backend.fuse_batch(op, batch) == {1: Findings(overflow=True)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"offset": np.array([1])}, "multiple of"),
        ({"numel": np.array([1, 2])}, "column must be int64"),
        ({"outs": np.array([1.0])}, "column must be uint64"),
        ({"base": None}, "needs a base"),
        ({"base": FLOAT64}, "not computed in"),
        ({"base": np.dtype(np.int8)}, "not computed in"),
    ],
)
def test_what_cannot_be_a_batch(change: dict[str, object], message: str) -> None:
    given = tiles()[:1]
    batch = replace(batch_of(given, blank(given)), **change)
    with pytest.raises(ValueError, match=message):
        CpuBackend(1).fuse_batch(op_of(Window()), batch)
