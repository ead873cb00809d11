"""Where every output tensor will lie: shards, headers and offsets, known before the first read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mergekern.checkpoint.base import TensorInfo
from mergekern.checkpoint.header import MAX_HEADER, METADATA, PREFIX
from mergekern.dtypes import SAFETENSORS_NAME, dtype_name
from mergekern.errors import CheckpointError, RecipeError

FORMAT = {"format": "pt"}  # what transformers asks of metadata
DATA_ALIGNMENT = 4096  # bytes: a page and a disk block, so that data can be written past the cache


@dataclass(frozen=True)
class Shard:
    """One output file: its safetensors header (length prefix included), offsets and size."""

    file: str
    header: bytes
    offsets: Mapping[str, int]  # tensor -> first byte in the file
    size: int


def lay_out(
    tensors: Sequence[TensorInfo], max_shard_size: int, metadata: Mapping[str, str] = FORMAT
) -> tuple[Shard, ...]:
    """Cut the tensors into safetensors files of at most max_shard_size bytes of data.

    Tensors keep the given order, but where one would start at an odd place for its elements, those
    of its shard are ordered by element size, largest first. A tensor larger than max_shard_size
    gets a shard of its own. Data begins at a multiple of 4096 bytes.
    Raises CheckpointError for a dtype that safetensors does not know or a name given twice.
    """
    if max_shard_size <= 0:
        raise RecipeError(f"max_shard_size is {max_shard_size}, wanted a number of bytes above 0")
    _check(tensors)
    groups = _cut(tensors, max_shard_size)
    files = (_file_name(i, len(groups)) for i in range(len(groups)))
    return tuple(_shard(file, group, metadata) for file, group in zip(files, groups, strict=True))


def one_file(tensors: Sequence[TensorInfo], metadata: Mapping[str, str] = FORMAT) -> Shard:
    """All in one file, in whatever number and size; see lay_out()."""
    _check(tensors)
    return _shard(_file_name(0, 1), list(tensors), metadata)


def index_json(shards: Sequence[Shard]) -> str | None:
    """The text of model.safetensors.index.json; None for a single shard, which needs none."""
    if len(shards) == 1:
        return None
    index = {
        "metadata": {"total_size": sum(shard.size - len(shard.header) for shard in shards)},
        "weight_map": {name: shard.file for shard in shards for name in shard.offsets},
    }
    return json.dumps(index, indent=2, sort_keys=True) + "\n"


def _check(tensors: Sequence[TensorInfo]) -> None:
    seen: set[str] = set()
    for info in tensors:
        if info.dtype not in SAFETENSORS_NAME:
            raise CheckpointError(
                f"tensor {info.name!r}: safetensors cannot hold {dtype_name(info.dtype)}"
            )
        if info.name in seen or info.name == METADATA:
            raise CheckpointError(f"tensor {info.name!r}: its name is taken in the output")
        seen.add(info.name)


def _cut(tensors: Sequence[TensorInfo], max_shard_size: int) -> list[list[TensorInfo]]:
    groups: list[list[TensorInfo]] = []
    room = -1
    for info in tensors:
        if not groups or info.nbytes > room:
            groups.append([])
            room = max_shard_size
        groups[-1].append(info)
        room -= info.nbytes
    return groups


def _file_name(i: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{i + 1:05d}-of-{count:05d}.safetensors"


def _shard(file: str, tensors: list[TensorInfo], metadata: Mapping[str, str]) -> Shard:
    begins = _begins(tensors)
    if any(begin % info.dtype.itemsize for info, begin in zip(tensors, begins, strict=True)):
        # Sizes of elements are powers of two: behind larger elements smaller ones lie right.
        tensors = sorted(tensors, key=lambda info: -info.dtype.itemsize)
        begins = _begins(tensors)
    header = _header(file, tensors, begins, metadata)
    places = zip(tensors, begins, strict=True)
    offsets = {info.name: len(header) + begin for info, begin in places}
    return Shard(file, header, offsets, len(header) + sum(info.nbytes for info in tensors))


def _begins(tensors: list[TensorInfo]) -> list[int]:
    """The first byte of each tensor, counted from the first byte of data."""
    begins, at = [], 0
    for info in tensors:
        begins.append(at)
        at += info.nbytes
    return begins


def _header(
    file: str, tensors: list[TensorInfo], begins: list[int], metadata: Mapping[str, str]
) -> bytes:
    entries: dict[str, Any] = {METADATA: dict(metadata)}
    for info, begin in zip(tensors, begins, strict=True):
        entries[info.name] = {
            "dtype": SAFETENSORS_NAME[info.dtype],
            "shape": list(info.shape),
            "data_offsets": [begin, begin + info.nbytes],
        }
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    length = len(text) + -(PREFIX + len(text)) % DATA_ALIGNMENT
    if length > MAX_HEADER:
        raise CheckpointError(f"{file}: {len(tensors)} tensors need too large a header; use shards")
    return length.to_bytes(PREFIX, "little") + text.ljust(length)
