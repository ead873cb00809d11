"""What a checkpoint is to the rest of the program: named tensors, read by ranges of elements."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mergekern.checkpoint.files import FileState, WeightFile
from mergekern.checkpoint.placed import Placed
from mergekern.dtypes import DType

if TYPE_CHECKING:
    import numpy as np

    from mergekern.arrays import Array
    from mergekern.checkpoint.contents import Contents


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where one tensor lies: `offset` is its first byte in `file` ("" and 0 when in memory).

    native: the dtype that results take by default, None for `dtype`. A tensor that is computed
            when it is read may be in fp32, and what is merged of it in the dtype it was stored in.
    behind: bytes that are read for it, None for its own; it may be computed from others.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    file: str = ""
    offset: int = 0
    native: DType | None = None
    behind: int | None = None
    numel: int = field(init=False, repr=False, compare=False)
    nbytes: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Once: models have tensors by the ten thousand, and every layer asks for their sizes.
        object.__setattr__(self, "numel", math.prod(self.shape))
        object.__setattr__(self, "nbytes", self.numel * self.dtype.itemsize)

    @property
    def nbytes_read(self) -> int:
        """What one pass over it reads."""
        return self.nbytes if self.behind is None else self.behind


class Checkpoint(Protocol):
    """A model's weights and side files as stored.

    label:        how the user named it; messages use it
    tensors:      every stored tensor by name, in file order
    shared:       names of tensors that are the same storage as another one: alias -> first name
                  (state dicts of tied models, .bin files; empty for safetensors)
    config:       config.json, {} when there is none
    generation_config: generation_config.json of a module in memory; {} where files hold it
    folder:       where the side files lie, None in memory
    fingerprint:  file name -> sha256 of its header ({} in memory)
    states:       file name -> its state when it was opened ({} in memory)
    on_disk:      True when read() copies into the buffer; False when it returns a view of memory
    device:       where read() without a buffer leaves what it returns
    files:        TensorInfo.file -> the open file, where a tensor's bytes lie there just as read()
                  gives them; files that must be decoded or are in memory are left out
    notes:        what a report should say of how it was read
    placed:       where the tensors lie that are in memory; None on disk
    """

    label: str
    tensors: Contents
    shared: Mapping[str, str]
    config: Mapping[str, Any]
    generation_config: Mapping[str, Any]
    folder: Path | None
    fingerprint: Mapping[str, str]
    states: Mapping[str, FileState]
    on_disk: bool
    device: str
    files: Mapping[str, WeightFile]
    notes: tuple[str, ...]
    placed: Placed | None

    def read(self, name: str, start: int, stop: int, buffer: np.ndarray | None) -> Array:
        """Elements [start, stop) of a tensor, flat, in its own dtype.

        buffer: uint8, flat, 64-byte aligned and large enough; a positioned read fills its head and
        the result is a view of it. Without one, memory is allocated. In-memory checkpoints ignore
        it and return a view. Thread-safe.
        Raises CheckpointError naming file and tensor when bytes are missing.
        """

    def verify_unchanged(self) -> None:
        """Raise CheckpointError when a file is not what it was when opened; nothing in memory."""

    def close(self) -> None: ...


def listing(names: Collection[str], limit: int = 4) -> str:
    """Names for a message: the first few in order, then how many more there are."""
    shown = ", ".join(sorted(names)[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
