"""Elements in doubt come back from their file as they went in, in the order of the tensors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cases import tile

from mergekern.arrays import same_bytes
from mergekern.backends.cpu import CpuBackend
from mergekern.doubts import Doubt
from mergekern.dtypes import BFLOAT16, FLOAT16, FLOAT32, to_torch
from mergekern.errors import OutputError
from mergekern.plan import Input, Step
from mergekern.spill import SpilledDoubts

DTYPES = (BFLOAT16, FLOAT32, FLOAT16)


def doubts(numbers: list[tuple[int, int]]) -> tuple[list[Step], list[Doubt]]:
    steps = [
        Step(
            f"w{i}",
            "merge",
            BFLOAT16,
            (1000,),
            Input(0, "w"),
            (Input(1, "w"), Input(2, "w")),
            (0, 1),
        )
        for i in range(3)
    ]
    found = []
    for number, first in numbers:
        t = tile(1000, [to_torch(dtype) for dtype in DTYPES], "bits", seed=first)
        marks = np.zeros(125, np.uint8)
        marks[first % 50 :: 7] = 0b1010
        index, values = CpuBackend(1).compact(t, marks, most=t.numel)
        found.append(Doubt(steps[number], index + first, values))
    return steps, found


def same(a: Doubt, b: Doubt) -> bool:
    columns = [(d.index, d.tile.base, *d.tile.experts) for d in (a, b)]
    pairs = zip(*columns, strict=True)
    equal = all(same_bytes(x, y) for x, y in pairs)
    return equal and a.step is b.step


def test_what_is_spilled_comes_back_in_order(tmp_path: Path) -> None:
    steps, found = doubts([(1, 0), (0, 1000), (2, 5), (0, 3)])
    spilled = SpilledDoubts(tmp_path / "doubts", steps, lambda step: DTYPES)
    for doubt in found:
        spilled.append(doubt)
    entries = spilled.fresh()
    wanted = [found[3], found[1], found[0], found[2]]
    assert all(same(a, b) for a, b in zip(spilled, wanted, strict=True))
    assert spilled.sizes() == [(doubt.step, doubt.tile.numel) for doubt in wanted]
    spilled.close()
    again = SpilledDoubts(tmp_path / "doubts", steps, lambda step: DTYPES)
    assert again.restore(entries)
    assert all(same(a, b) for a, b in zip(again, wanted, strict=True))


def test_a_damaged_entry_is_not_restored(tmp_path: Path) -> None:
    steps, found = doubts([(0, 0), (1, 0)])
    path = tmp_path / "doubts"
    spilled = SpilledDoubts(path, steps, lambda step: DTYPES)
    for doubt in found:
        spilled.append(doubt)
    entries = spilled.fresh()
    data = bytearray(path.read_bytes())
    data[10] ^= 1
    path.write_bytes(data[:-1])
    again = SpilledDoubts(path, steps, lambda step: DTYPES)
    assert not again.restore(entries[:1]) and not again.restore(entries[1:])
    with pytest.raises(OutputError, match="doubts: was changed"):
        spilled[0]
