"""Files: positioned reads that many threads may do at once, and writes that are whole or not."""

from __future__ import annotations

import errno
import os
import stat
import weakref
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np

from mergekern.checkpoint import direct
from mergekern.checkpoint.descriptors import open_file
from mergekern.dtypes import UINT8, DType
from mergekern.errors import CheckpointError

LFS_POINTER = b"version https://git-lfs"


class FileState(NamedTuple):
    """By what a file that was changed or replaced is known."""

    size: int
    changed_ns: int


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
            self._fd = open_file(path, os.O_RDONLY)
            self._fds = [self._fd]
            # Closes them when the last reader is gone, even where nobody called close().
            self._close = weakref.finalize(self, _close, self._fds)
            self._opened = os.fstat(self._fd)
            head = os.pread(self._fd, len(LFS_POINTER), 0)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be opened: {error.strerror}") from error
        if head == LFS_POINTER:
            raise CheckpointError(f"{path}: is a Git LFS pointer, not weights: run git lfs pull")
        self._direct: int | None = None  # not tried yet; -1 where it was refused
        self._cached: direct.Cached | None = None
        self._lock = Lock()

    @property
    def state(self) -> FileState:
        """That of the file which is read, whatever has its name by now."""
        return FileState(self._opened.st_size, self._opened.st_mtime_ns)

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
        self, offset: int, numel: int, dtype: DType, buffer: np.ndarray | None, what: str
    ) -> np.ndarray:
        """`numel` elements from byte `offset`, as a view of the head of `buffer`."""
        count = numel * dtype.itemsize
        if buffer is None:
            buffer = np.empty(count, np.uint8)
        assert buffer.dtype == UINT8 and len(buffer) >= count and buffer.flags.c_contiguous
        head = buffer[:count]
        self._fill(head.data, offset, what)
        return head.view(dtype)

    def read_blocks(self, offset: int, view: memoryview, what: Callable[[int], str]) -> None:
        """Fill `view` from `offset` on, past the page cache unless that holds the bytes already.

        Offset, length and address are multiples of direct.BLOCK; what lies behind the end of the
        file is left as it is. what: byte of the file -> what is there, for messages.
        """
        wanted = min(len(view), self.size - offset)
        got = self._read_direct(view, offset, wanted, what)
        if got < wanted:
            self._fill(view[got:wanted], offset + got, what(offset + got))

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
        self._fd = self._direct = -1  # their numbers may be given to other files
        self._close()

    def _direct_fd(self) -> int:
        with self._lock:
            if self._direct is None:
                self._direct = direct.open_direct(self.path, os.O_RDONLY, self._fd)
                self._fds += [self._direct] if self._direct >= 0 else []
                if self._direct >= 0:
                    self._cached = direct.open_cached(self.path, self._fd)
            return self._direct

    def _read_direct(
        self, view: memoryview, offset: int, wanted: int, what: Callable[[int], str]
    ) -> int:
        """Read past the page cache what is not in it; returns how far that went."""
        fd = self._direct_fd()
        if fd < 0 or (self._cached is not None and self._cached.holds(offset, wanted)):
            return 0
        got = 0
        while got < wanted and got % direct.BLOCK == 0:
            try:
                step = os.preadv(fd, [view[got:]], offset + got)
            except OSError as error:
                if error.errno == errno.EINVAL:  # some file systems refuse only now
                    self._direct = -1
                    break
                raise self._failure(error, what(offset + got), got, wanted) from error
            if step == 0:
                break
            got += step
        return got

    def _fill(self, view: memoryview, offset: int, what: str) -> None:
        got = 0
        while got < len(view):  # one call moves at most 2 GiB, and fewer bytes are always allowed
            try:
                step = os.preadv(self._fd, [view[got:]], offset + got)
            except OSError as error:
                raise self._failure(error, what, got, len(view)) from error
            if step == 0:
                raise CheckpointError(
                    f"{self.path}: {what}: the file ends after {got} of {len(view)} bytes; "
                    f"it was cut since it was opened"
                )
            got += step

    def _failure(self, error: OSError, what: str, got: int, wanted: int) -> CheckpointError:
        return CheckpointError(
            f"{self.path}: {what}: reading failed after {got} of {wanted} bytes ({error.strerror})"
        )


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


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
