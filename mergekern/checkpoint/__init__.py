"""Reading and writing weights and side files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mergekern.checkpoint import hub, local
from mergekern.checkpoint.base import Checkpoint as Checkpoint
from mergekern.checkpoint.base import TensorInfo as TensorInfo
from mergekern.checkpoint.config import check_mergeable_config as check_mergeable_config
from mergekern.checkpoint.memory import MemoryCheckpoint, open_module
from mergekern.errors import CheckpointError

Source = str | os.PathLike[str] | torch.nn.Module | Mapping[str, Any]


def open_checkpoint(
    source: Source, *, revision: str | None = None, label: str | None = None
) -> Checkpoint:
    """Open a model for reading: its headers are read and checked, its weights are not.

    source:    a folder, a .safetensors file, a Hub id ("org/name" or "org/name@revision"; a path
               of that name goes first), a module, or a state dict
    revision:  branch, tag or commit of a Hub id
    label:     what messages call it; by default the source as given, or the kind of object
    Raises CheckpointError, in one line that says what was looked for, found, and the mend.
    """
    if isinstance(source, str | os.PathLike):
        return _open_named(os.fspath(source), revision, label or os.fspath(source))
    if revision is not None:
        raise CheckpointError(f"revision {revision!r} was given with a model that is in memory")
    if isinstance(source, torch.nn.Module):
        return open_module(label or type(source).__name__, source)
    if isinstance(source, Mapping):
        return MemoryCheckpoint(label or "state dict", source)
    raise CheckpointError(
        f"cannot read a model from a {type(source).__name__}; wanted a folder, a .safetensors "
        f"file, a Hub id, a module or a state dict"
    )


def _open_named(name: str, revision: str | None, label: str) -> Checkpoint:
    path = Path(os.path.expanduser(name))
    if os.path.exists(path):  # where Path.exists would raise, as for a name too long, it is False
        if revision is not None:
            raise CheckpointError(f"{name}: is a local path, which has no revision {revision!r}")
        return local.open_local(label, path)
    model = hub.parse_id(name, revision)
    if model is None:
        raise CheckpointError(
            f"{name}: no such file or folder (looked in {path.absolute().parent}), and a Hub id "
            f"would be org/name; check its spelling"
        )
    return local.open_folder(label, hub.fetch(model))
