"""Checkpoints in safetensors files, one or several, read at positions into the caller's buffers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mergekern.arrays import HOST
from mergekern.checkpoint.base import Checkpoint, listing
from mergekern.checkpoint.bits import SHAPES, BitsCheckpoint
from mergekern.checkpoint.contents import Contents
from mergekern.checkpoint.files import FileState, WeightFile
from mergekern.checkpoint.header import Header, read_header
from mergekern.checkpoint.index import check_index, read_index, shard_names
from mergekern.checkpoint.placed import Placed
from mergekern.checkpoint.provenance import provenance_in
from mergekern.collector import collector_paused
from mergekern.errors import CheckpointError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


class SafetensorsCheckpoint:
    """Safetensors files whose tensors together are one model.

    tensors: in the order of `files`, and by offset within each. headers: of each file, by its name.
    """

    on_disk = True
    notes: tuple[str, ...] = ()
    placed: Placed | None = None
    device = HOST

    def __init__(
        self,
        label: str,
        files: Sequence[WeightFile],
        headers: Mapping[str, Header],
        folder: Path | None,
        config: Mapping[str, Any],
    ) -> None:
        self.label = label
        self.folder = folder
        self.config = config
        self.generation_config: Mapping[str, Any] = {}
        self.shared: Mapping[str, str] = {}
        self.fingerprint: Mapping[str, str] = {
            name: header.sha256 for name, header in headers.items()
        }
        self.states: Mapping[str, FileState] = {file.name: file.state for file in files}
        self.tensors = Contents()
        for header in headers.values():
            self.tensors |= header.tensors
        self.files: Mapping[str, WeightFile] = {file.name: file for file in files}
        if not self.tensors:
            raise CheckpointError(f"{label}: {listing(headers)} holds no tensors")

    def read(self, name: str, start: int, stop: int, buffer: np.ndarray | None) -> np.ndarray:
        """Elements [start, stop), as a view of the buffer's head; see Checkpoint.read."""
        info = self.tensors[name]
        assert 0 <= start <= stop <= info.numel
        offset = info.offset + start * info.dtype.itemsize
        file = self.files[info.file]
        return file.read_tensor(offset, stop - start, info.dtype, buffer, f"tensor {name!r}")

    def verify_unchanged(self) -> None:
        """Raise CheckpointError when a file's size or time of change is not that of its opening."""
        for file in self.files.values():
            file.verify_unchanged()

    def close(self) -> None:
        """Close the files."""
        for file in self.files.values():
            file.close()


def open_single(
    label: str, path: Path, folder: Path | None, config: Mapping[str, Any]
) -> Checkpoint:
    """A checkpoint in one file; one of packed masks as what they mark."""
    file = WeightFile(path, path.name)
    header = read_header(file)
    whole = SafetensorsCheckpoint(label, [file], {file.name: header}, folder, config)
    shapes = (provenance_in(header.metadata) or {}).get(SHAPES)
    return BitsCheckpoint(whole, shapes) if isinstance(shapes, dict) else whole


@collector_paused()
def open_sharded(label: str, folder: Path, config: Mapping[str, Any]) -> SafetensorsCheckpoint:
    """A checkpoint in several files with an index, which must name exactly what they hold."""
    index = folder / INDEX
    weight_map = read_index(index)
    files = [WeightFile(folder / shard, shard) for shard in shard_names(index, weight_map)]
    headers = {file.name: read_header(file) for file in files}
    check_index(index, weight_map, {name: headers[name].tensors for name in headers})
    return SafetensorsCheckpoint(label, files, headers, folder, config)
