"""What checkpoints hold, as tensors, whatever they read into."""

from __future__ import annotations

import numpy as np
import torch

from mergekern.arrays import Array, as_tensor
from mergekern.checkpoint import Checkpoint


def part(
    checkpoint: Checkpoint, name: str, start: int, stop: int, buffer: np.ndarray | None = None
) -> torch.Tensor:
    """Elements [start, stop), flat."""
    return as_tensor(checkpoint.read(name, start, stop, buffer))


def whole(checkpoint: Checkpoint, name: str, buffer: np.ndarray | None = None) -> torch.Tensor:
    """A tensor in its shape; its own memory, not the buffer's."""
    info = checkpoint.tensors[name]
    return part(checkpoint, name, 0, info.numel, buffer).clone().view(info.shape)


def owner(view: Array) -> torch.Tensor:
    """The tensor whose memory numpy looks at."""
    while isinstance(view, np.ndarray):
        assert view.base is not None
        view = view.base
    return view
