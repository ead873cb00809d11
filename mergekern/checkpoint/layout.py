"""Where every output tensor will lie: shards, headers and offsets, known before the first read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mergekern.checkpoint.base import TensorInfo


@dataclass(frozen=True)
class Shard:
    """One output file: its safetensors header (length prefix included), offsets and size."""

    file: str
    header: bytes
    offsets: Mapping[str, int]  # tensor -> first byte in the file
    size: int


def lay_out(tensors: Sequence[TensorInfo], max_shard_size: int) -> tuple[Shard, ...]:
    """Cut the tensors, in the given order, into safetensors files of at most max_shard_size bytes."""
    raise NotImplementedError
