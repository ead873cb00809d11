"""Checkpoints on this machine: which of a folder's files are the model, and what to say if none."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from mergekern.checkpoint import pytorch_bin, safetensors
from mergekern.checkpoint.base import Checkpoint, listing
from mergekern.checkpoint.config import CONFIG, read_config
from mergekern.errors import CheckpointError

# In the order in which transformers looks for them.
WEIGHTS = (safetensors.SINGLE, safetensors.INDEX, pytorch_bin.SINGLE, pytorch_bin.INDEX)
SHARD = re.compile(r".+-(\d{5})-of-(\d{5})\.(safetensors|bin)")
FOREIGN = (
    (".gguf", ".ggml"),
    (".pth", ".pt", ".ckpt"),
    (".h5", ".msgpack", ".onnx", ".npz"),
    (".safetensors", ".bin"),
)
READ = f"what is read: {', '.join(WEIGHTS)}, or one .safetensors file given by its path"


def open_local(label: str, path: Path) -> Checkpoint:
    """The checkpoint in a folder or a single .safetensors file. Raises CheckpointError if none."""
    return open_folder(label, path) if path.is_dir() else _open_file(label, path)


def open_folder(label: str, folder: Path) -> Checkpoint:
    """The checkpoint in a folder: safetensors before .bin, one file before an index."""
    try:
        names = {entry.name for entry in folder.iterdir()}
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be read: {error.strerror}") from error
    kind = weights_kind(names)
    if kind is None:
        place = "" if label == str(folder) else f" ({folder})"
        raise CheckpointError(f"{label}{place}: {no_weights(names)}")
    config = read_config(folder)
    if kind == safetensors.SINGLE:
        return safetensors.open_single(label, folder / kind, folder, config)
    if kind == safetensors.INDEX:
        return safetensors.open_sharded(label, folder, config)
    return pytorch_bin.open_bin(label, folder, kind, config)


def weights_kind(names: Collection[str]) -> str | None:
    """Which of WEIGHTS a folder with these files is read by; None when it has none."""
    return next((kind for kind in WEIGHTS if kind in names), None)


def no_weights(names: Collection[str]) -> str:
    """Why a folder with these files cannot be read, and the mend."""
    if "adapter_config.json" in names:
        return "is a LoRA adapter's: give its folder, behind its base as BASE+FOLDER"
    orphans = [name for name in names if SHARD.fullmatch(name)]
    if orphans:
        return (
            f"has shards ({listing(orphans)}) but no index that says what belongs to them: add "
            f"{safetensors.INDEX} or {pytorch_bin.INDEX}"
        )
    for suffixes in FOREIGN:
        found = [name for name in names if name.endswith(suffixes)]
        if found:
            return f"has weights of a kind that is not read: {listing(found)}; {READ}"
    return f"has no weights; {READ}"


def _open_file(label: str, path: Path) -> Checkpoint:
    shard = SHARD.fullmatch(path.name)
    if shard is not None and int(shard[2]) > 1:
        raise CheckpointError(f"{label}: is one shard of {int(shard[2])}: give its folder instead")
    if path.suffix != ".safetensors" and path.name in WEIGHTS:
        raise CheckpointError(f"{label}: is a file of a model folder: give the folder instead")
    beside = [file.name for file in path.parent.glob("adapter_config.json")]
    if path.suffix != ".safetensors" or (beside and path.name not in WEIGHTS):
        raise CheckpointError(f"{label}: {no_weights([path.name, *beside])}")
    # Side files are taken from beside the file only where they are plainly a model's.
    folder = path.parent if (path.parent / CONFIG).exists() else None
    config = read_config(folder) if folder is not None else {}
    return safetensors.open_single(label, path, folder, config)
