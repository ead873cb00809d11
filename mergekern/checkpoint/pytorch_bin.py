"""Checkpoints in PyTorch's own files, pytorch_model.bin: pickles, read for their tensors alone."""

from __future__ import annotations

import hashlib
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergekern.checkpoint.files import WeightFile
from mergekern.checkpoint.index import check_index, read_index, shard_names
from mergekern.checkpoint.memory import MemoryCheckpoint, plain_tensors
from mergekern.errors import CheckpointError
from mergekern.lazily import torch

SINGLE = "pytorch_model.bin"
INDEX = "pytorch_model.bin.index.json"
ZIP_MAGIC = b"PK\x03\x04"  # torch.save since 1.6; older files are bare pickles
CONVERT = "load it where it is trusted and save it as safetensors"


def open_bin(label: str, folder: Path, kind: str, config: Mapping[str, Any]) -> MemoryCheckpoint:
    """The checkpoint in one file or by INDEX: tensors mapped from the files, not read yet."""
    index = folder / INDEX
    weight_map = read_index(index) if kind == INDEX else {}
    shards = shard_names(index, weight_map) if kind == INDEX else [kind]
    files = [WeightFile(folder / shard, shard) for shard in shards]
    loaded = {file.name: load_tensors(file) for file in files}
    if kind == INDEX:
        check_index(index, weight_map, loaded)
    return MemoryCheckpoint(
        label,
        {name: tensor for tensors in loaded.values() for name, tensor in tensors.items()},
        config=config,
        folder=folder,
        places={name: shard for shard, tensors in loaded.items() for name in tensors},
        fingerprint={file.name: _fingerprint(file, loaded[file.name]) for file in files},
        files=files,
    )


def load_tensors(file: WeightFile) -> dict[str, torch.Tensor]:
    """The tensors in a .bin file: mapped, or read whole if it is of the old kind.

    Raises CheckpointError when it is damaged, holds anything else, or asks to run code as pickles
    may.
    """
    try:
        loaded = torch.load(file.path, map_location="cpu", weights_only=True, mmap=_is_zip(file))
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{file.path}: {_refusal(str(error))}") from error
    except Exception as error:  # a damaged pickle can fail in any way
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise CheckpointError(f"{file.path}: is damaged or cut short: {reason:.200}") from error
    if not isinstance(loaded, Mapping):
        raise CheckpointError(
            f"{file.path}: holds a {type(loaded).__name__}, wanted tensors by name; {CONVERT}"
        )
    return plain_tensors(str(file.path), loaded)


def _is_zip(file: WeightFile) -> bool:
    length = len(ZIP_MAGIC)
    return file.size >= length and file.read_bytes(0, length, "first bytes") == ZIP_MAGIC


def _refusal(message: str) -> str:
    wanted = re.search(r"GLOBAL (\S+)", message)
    if wanted is None:
        return "is damaged, or no file of PyTorch's at all; download or copy it again"
    return f"would run code on loading (it asks for {wanted[1]}) and is refused; {CONVERT}"


def _fingerprint(file: WeightFile, tensors: Mapping[str, torch.Tensor]) -> str:
    """sha256 of what the file says of its contents: names, sizes and, in a zip, checksums."""
    said: list[object] = [file.size]
    said += [(name, str(tensor.dtype), tuple(tensor.shape)) for name, tensor in tensors.items()]
    if _is_zip(file):
        try:
            with zipfile.ZipFile(file.path) as archive:
                said += [(part.filename, part.file_size, part.CRC) for part in archive.infolist()]
        except zipfile.BadZipFile as error:
            raise CheckpointError(f"{file.path}: is damaged: {error}") from error
    return hashlib.sha256(repr(said).encode()).hexdigest()
