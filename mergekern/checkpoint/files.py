"""Files: positioned reads that many threads may do at once, and writes that are whole or not."""

from __future__ import annotations

import os
import stat
import weakref
from pathlib import Path

import torch

from mergekern.checkpoint.descriptors import open_file
from mergekern.errors import CheckpointError

LFS_POINTER = b"version https://git-lfs"


class WeightFile:
    """One open file: opened once, read at positions, and remembered as it was when opened.

    path: where it lies; name: what the checkpoint calls it (its path below the folder).
    Raises CheckpointError when it is missing, unreadable or no regular file.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.path = path
        self.name = name
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for a writer
                raise CheckpointError(f"{path}: is not a regular file")
            self._fd = open_file(path, os.O_RDONLY | os.O_CLOEXEC)
            # Closes it when the last reader is gone, even where nobody called close().
            self._close = weakref.finalize(self, os.close, self._fd)
            self._opened = os.fstat(self._fd)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be opened: {error.strerror}") from error
        if os.pread(self._fd, len(LFS_POINTER), 0) == LFS_POINTER:
            raise CheckpointError(f"{path}: is a Git LFS pointer, not weights: run git lfs pull")

    @property
    def size(self) -> int:
        """Bytes, when it was opened."""
        return self._opened.st_size

    def read_bytes(self, offset: int, count: int, what: str) -> bytes:
        """`count` bytes from `offset`; `what` names them in messages."""
        data = bytearray(count)
        self._fill(memoryview(data), offset, what)
        return bytes(data)

    def read_tensor(
        self, offset: int, numel: int, dtype: torch.dtype, buffer: torch.Tensor | None, what: str
    ) -> torch.Tensor:
        """`numel` elements from byte `offset`, as a view of the head of `buffer`."""
        count = numel * dtype.itemsize
        if buffer is None:
            buffer = torch.empty(count, dtype=torch.uint8)
        assert buffer.dtype == torch.uint8 and buffer.numel() >= count and buffer.is_contiguous()
        head = buffer[:count]
        self._fill(head.numpy().data, offset, what)
        return head.view(dtype)

    def verify_unchanged(self) -> None:
        """Raise CheckpointError when size or time of change differ from those at opening."""
        now = os.fstat(self._fd)
        before = self._opened
        if (now.st_size, now.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            raise CheckpointError(
                f"{self.path}: was changed while it was being read (then {before.st_size} bytes, "
                f"now {now.st_size}); remove what was made from it and run again"
            )

    def close(self) -> None:
        """Close the file; reads after this raise CheckpointError."""
        self._fd = -1  # its number may be given to another file
        self._close()

    def _fill(self, view: memoryview, offset: int, what: str) -> None:
        got = 0
        while got < len(view):  # one call moves at most 2 GiB, and fewer bytes are always allowed
            try:
                step = os.preadv(self._fd, [view[got:]], offset + got)
            except OSError as error:
                raise CheckpointError(
                    f"{self.path}: {what}: reading failed after {got} of {len(view)} bytes "
                    f"({error.strerror})"
                ) from error
            if step == 0:
                raise CheckpointError(
                    f"{self.path}: {what}: the file ends after {got} of {len(view)} bytes; "
                    f"it was cut since it was opened"
                )
            got += step


def read_regular(path: Path) -> bytes:
    """All of a file. Raises CheckpointError when it cannot be read or is no regular file."""
    try:
        # Reading a pipe would wait for a writer.
        if path.exists() and not path.is_file() and not path.is_dir():
            raise CheckpointError(f"{path}: is not a regular file")
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all, also after a crash."""
    part = path.with_name(path.name + ".tmp")
    with open(part, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)  # the rename itself
    finally:
        os.close(folder)
