"""Masks of one bit for each element, written as `mergekern collect masks` does."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from mergekern.checkpoint import open_checkpoint
from mergekern.checkpoint.identity import identity_of


def mask_file(path: Path, masks: dict[str, torch.Tensor], model: Path, base: Path) -> Path:
    """masks: bool, of the tensors' shapes."""
    about = {
        "kind": "masks",
        "model": str(model),
        "base": str(base),
        "shapes": {name: list(mask.shape) for name, mask in masks.items()},
        "question": {"identity": known(model), "base": known(base)},
    }
    write(path, {name: bits(mask) for name, mask in masks.items()}, about)
    return path


def write(path: Path, tensors: dict[str, torch.Tensor], about: dict[str, object]) -> None:
    save_file(tensors, path, metadata={"mergekern": json.dumps(about)})


def bits(mask: torch.Tensor) -> torch.Tensor:
    """Element by element: bit i % 8 of byte i // 8."""
    out = np.zeros(-(-mask.numel() // 8), np.uint8)
    for place in mask.reshape(-1).nonzero().reshape(-1).tolist():
        out[place // 8] |= 1 << place % 8
    return torch.from_numpy(out)


def known(folder: Path) -> str:
    with closing(open_checkpoint(folder)) as checkpoint:
        return identity_of(checkpoint)
