"""Packed masks are read as 0 and 1, from and to any element."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from masked import bits, write

from mergekern.checkpoint import open_checkpoint
from mergekern.checkpoint.bits import BitsCheckpoint
from mergekern.dtypes import BFLOAT16
from mergekern.errors import CheckpointError


def test_any_run_of_elements(tmp_path: Path) -> None:
    g = torch.Generator().manual_seed(1)
    shapes = {"a": [7, 23], "b": [], "c": [3, 5, 16], "empty": [0, 4]}
    masks = {name: torch.rand(shape, generator=g) < 0.5 for name, shape in shapes.items()}
    path = tmp_path / "masks.safetensors"
    write(path, {n: bits(m) for n, m in masks.items()}, {"kind": "masks", "shapes": shapes})
    with closing(open_checkpoint(path)) as file:
        assert isinstance(file, BitsCheckpoint)
        assert {n: list(info.shape) for n, info in file.tensors.items()} == shapes
        for name, mask in masks.items():
            want = mask.reshape(-1).numpy().astype(np.float32)
            for start in range(0, len(want) + 1, 3):
                for stop in {*range(start, min(start + 19, len(want)) + 1), len(want)}:
                    buffer = np.full(2 * (stop - start) + 8, 7, np.uint8)
                    into = file.read(name, start, stop, buffer)
                    fresh = file.read(name, start, stop, None)
                    assert into.dtype == fresh.dtype == BFLOAT16
                    assert np.array_equal(into.astype(np.float32), want[start:stop])
                    assert np.array_equal(fresh.astype(np.float32), want[start:stop])
                    assert np.shares_memory(into, buffer) or start == stop
                    assert (buffer[2 * (stop - start) :] == 7).all()


@pytest.mark.parametrize(
    ("tensor", "shape", "message"),
    [
        (torch.zeros(3, dtype=torch.uint8), [5, 5], r"uint8 \[3\]; the bits .* are uint8 \[4\]"),
        (torch.zeros(5, dtype=torch.uint8), [5, 5], r"uint8 \[5\]; the bits .* are uint8 \[4\]"),
        (torch.zeros(4), [5, 5], r"float32 \[4\]; the bits .* \[5, 5\] are uint8 \[4\]"),
        (torch.zeros(4, dtype=torch.uint8), "25", "give '25' for the mask's shape"),
        (torch.zeros(4, dtype=torch.uint8), [5, -5], r"give \[5, -5\] for the mask's shape"),
    ],
)
def test_bytes_that_do_not_go_with_the_shape(
    tensor: torch.Tensor, shape: object, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "masks.safetensors"
    write(path, {"w": tensor}, {"kind": "masks", "shapes": {"w": shape}})
    with pytest.raises(CheckpointError, match=rf"masks.safetensors: tensor w: .*{message}"):
        open_checkpoint(path)
    write(path, {"w": tensor}, {"kind": "masks", "shapes": {}})
    with pytest.raises(CheckpointError, match=r"tensor w: .*give None for the mask's shape"):
        open_checkpoint(path)
