"""Files of Gram matrices as `mergekern collect gram` writes them, of any model and any matrices."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from mergekern.checkpoint import open_checkpoint
from mergekern.checkpoint.identity import identity_of


def gram_of(seed: int, width: int, dead: tuple[int, ...] = ()) -> torch.Tensor:
    """Of features of different sizes that go together; those that are dead are always 0."""
    g = torch.Generator().manual_seed(1000 + seed)
    x = torch.randn(3 * width, width, generator=g) @ torch.randn(width, width, generator=g)
    x[:, list(dead)] = 0
    return x.T @ x / len(x)


def write_grams(path: Path, model: Path, grams: Mapping[str, torch.Tensor], **said: Any) -> Path:
    """said: shares, untransposed, kind, or another model's question"""
    with closing(open_checkpoint(model)) as checkpoint:
        question = {"identity": identity_of(checkpoint)}
    about = {"kind": "gram", "model": str(model), "question": question, "shares": {}}
    metadata = {"mergekern": json.dumps({**about, "untransposed": [], **said})}
    save_file(dict(grams), path, metadata=metadata)
    return path
