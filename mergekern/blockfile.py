"""One output file: whole blocks are written past the page cache, shared ones through it."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from xxhash import xxh3_64

from mergekern.checkpoint import direct
from mergekern.checkpoint.descriptors import open_file
from mergekern.checkpoint.direct import BLOCK

UNSUPPORTED = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)


class BlockFile:
    """A file being written at positions, by any thread. Methods raise OSError."""

    def __init__(self, path: Path) -> None:
        self._fd = open_file(path, os.O_RDWR | os.O_CREAT)
        self._direct = direct.open_direct(path, os.O_RDWR, self._fd)  # -1 where it is refused

    def allocate(self, size: int) -> None:
        """Give the file its size, and room on the disk where the file system can promise that."""
        if os.fstat(self._fd).st_size != size:
            os.ftruncate(self._fd, size)
        if size == 0 or not hasattr(os, "posix_fallocate"):
            return
        try:
            os.posix_fallocate(self._fd, 0, size)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise

    def write_head(self, data: bytes) -> None:
        """Write what no later write comes near, wherever it lies in memory."""
        self._write(0, memoryview(data))

    def write(self, offset: int, data: memoryview) -> None:
        """Write bytes that lie in memory as in the file, modulo BLOCK.

        A block that is not written whole goes through the page cache whoever writes to it, so that
        none is written both ways.
        """
        stop = offset + len(data)
        first = -(-offset // BLOCK) * BLOCK
        last = stop // BLOCK * BLOCK
        if self._direct < 0:
            self._write(offset, data)
            self._start_writing(offset, len(data))
        elif first >= last:
            self._write(offset, data)
        else:
            done = first + self._write_direct(first, data[first - offset : last - offset])
            self._write(offset, data[: first - offset])
            self._write(done, data[done - offset :])

    def read(self, offset: int, length: int, buffer: memoryview) -> memoryview:
        """Bytes of the file, as a view of the buffer in which they lie as in the file, modulo
        BLOCK; the buffer is whole blocks, aligned, two more than the bytes fill."""
        begin = offset // BLOCK * BLOCK
        view = buffer[: -(-(offset + length - begin) // BLOCK) * BLOCK]
        got = 0
        while got < offset + length - begin:
            step = self._read(begin + got, view[got:])
            if step <= 0:
                raise OSError(errno.EIO, "ends too early: it was cut by someone else")
            got += step
        return view[offset - begin : offset - begin + length]

    def matches(self, offset: int, length: int, xxh3: str, buffer: memoryview) -> bool:
        """True when bytes of the file have this checksum; the buffer is whole blocks, aligned."""
        digest = xxh3_64()
        at, stop = offset, offset + length
        while at < stop:
            begin = at // BLOCK * BLOCK
            view = buffer[: -(-(stop - begin) // BLOCK) * BLOCK]
            reached = min(stop, begin + self._read(begin, view))
            if reached <= at:
                return False
            digest.update(view[at - begin : reached - begin])
            at = reached
        return bool(digest.hexdigest() == xxh3)

    def sync(self) -> None:
        os.fsync(self._fd)

    def close(self) -> None:
        for fd in (self._fd, self._direct):
            if fd >= 0:
                os.close(fd)
        self._fd = self._direct = -1

    def _write(self, offset: int, data: memoryview) -> None:
        done = 0
        while done < len(data):
            done += os.pwrite(self._fd, data[done:], offset + done)

    def _write_direct(self, offset: int, data: memoryview) -> int:
        """Write blocks past the page cache; returns how far that went."""
        done = 0
        while done < len(data) and done % BLOCK == 0:
            try:
                done += os.pwrite(self._direct, data[done:], offset + done)
            except OSError as error:
                if error.errno != errno.EINVAL:  # which some file systems say only now
                    raise
                break
        return done

    def _read(self, offset: int, view: memoryview) -> int:
        if self._direct >= 0:
            with contextlib.suppress(OSError):  # the other descriptor says what is wrong
                return os.preadv(self._direct, [view], offset)
        return os.preadv(self._fd, [view], offset)

    def _start_writing(self, offset: int, length: int) -> None:
        """Write to disk from now on, so that neither dirty pages nor the last fsync pile up."""
        if hasattr(os, "posix_fadvise"):
            with contextlib.suppress(OSError):  # advice only
                os.posix_fadvise(self._fd, offset, length, os.POSIX_FADV_DONTNEED)
