"""Masks that a file holds as bits, read as numbers: 1 where an element is marked, 0 elsewhere.

The bits of each tensor lie as packed.py says; its own shape stands in the file's metadata, under
SHAPES.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mergekern.arrays import HOST
from mergekern.checkpoint.base import Checkpoint, TensorInfo
from mergekern.checkpoint.contents import Contents
from mergekern.checkpoint.placed import Placed
from mergekern.dtypes import BFLOAT16, UINT8, dtype_name
from mergekern.errors import CheckpointError
from mergekern.packed import marked_ones, packed_shape, read_packed

SHAPES = "shapes"  # of what `mergekern collect` writes into a file's metadata


class BitsCheckpoint:
    """A file of packed masks as tensors of the masks' shapes, in bf16: widened where they are read.

    In the file's order. Nothing is held: what is read is an eighth of a byte for each element, and
    the numbers are written where they are wanted.
    Raises CheckpointError for a tensor whose bytes do not go with its shape.
    """

    on_disk = True
    placed: Placed | None = None
    device = HOST

    def __init__(self, file: Checkpoint, shapes: Mapping[str, Any]) -> None:
        self._file = file
        self.label = file.label
        self.tensors = Contents((name, _info(file, name, shapes)) for name in file.tensors)
        self.shared, self.config = file.shared, file.config
        self.generation_config = file.generation_config
        self.folder: Path | None = file.folder
        self.fingerprint, self.states, self.notes = file.fingerprint, file.states, file.notes
        self.files = file.files

    def read(self, name: str, start: int, stop: int, buffer: np.ndarray | None) -> np.ndarray:
        """Elements [start, stop) as a view of the buffer's head; see Checkpoint.read."""
        length = stop - start
        if buffer is None:
            buffer = np.empty(length * BFLOAT16.itemsize, UINT8)
        out: np.ndarray = buffer[: length * BFLOAT16.itemsize].view(BFLOAT16)
        bits, first = read_packed(self._file, name, start, stop)
        marked_ones(bits, first, out)
        return out

    def verify_unchanged(self) -> None:
        """Raise CheckpointError when the file is not what it was when opened."""
        self._file.verify_unchanged()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _info(file: Checkpoint, name: str, shapes: Mapping[str, Any]) -> TensorInfo:
    held, shape = file.tensors[name], shapes.get(name)
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise CheckpointError(
            f"{file.label}: tensor {name}: its metadata give {shape!r:.80} for the mask's shape; "
            "want a list of sizes"
        )
    info = TensorInfo(name, BFLOAT16, tuple(shape), behind=held.nbytes)
    wanted = packed_shape(info.numel)
    if held.dtype != UINT8 or held.shape != wanted:
        raise CheckpointError(
            f"{file.label}: tensor {name}: holds {dtype_name(held.dtype)} {list(held.shape)}; the "
            f"bits of a mask of shape {shape} are uint8 {list(wanted)}"
        )
    return info
