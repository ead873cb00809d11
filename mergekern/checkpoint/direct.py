"""Past the page cache: what a disk does at its full speed, in whole blocks, where systems allow it.

Reading a cold file through the page cache costs several times the processor time and, in a virtual
machine, several times the wall time of reading it straight into our own memory; reading a cached
one is faster than any disk. Everything here only decides speed: who is refused reads and writes
through the cache, and gets the same bytes.
"""

from __future__ import annotations

import ctypes
import mmap
import os

import numpy as np

from mergekern.checkpoint.descriptors import open_file

BLOCK = max(4096, mmap.PAGESIZE)  # file offsets, lengths and addresses are multiples of it

# True and False force one way, for tests and measurements; None decides by what is cached.
forced: bool | None = None

PROBED = 1 << 19  # bytes of which one page is looked at: to look at all costs as much as a copy

# Returns at once: to let other threads run meanwhile would cost more.
_mincore = ctypes.PyDLL(None).mincore
_mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)


def open_direct(path: str | os.PathLike[str], flags: int, like: int) -> int:
    """A second descriptor of the open file `like` that bypasses the cache; -1 where none is had."""
    direct = getattr(os, "O_DIRECT", 0)
    if not direct or forced is False:
        return -1
    try:
        fd = open_file(path, flags | direct)
    except OSError:
        return -1
    if os.path.samestat(os.fstat(fd), os.fstat(like)):
        return fd
    os.close(fd)  # renamed or replaced since
    return -1


class Cached:
    """Says what the page cache holds of a file, by asking for pages without touching them: a trial
    read would start reading ahead. Raises OSError or ValueError for what cannot be mapped."""

    def __init__(self, fd: int) -> None:
        self._map = np.frombuffer(mmap.mmap(fd, 0, prot=mmap.PROT_READ), np.uint8)

    def holds(self, offset: int, nbytes: int) -> bool:
        """True when these bytes are cached, as far as some of their pages tell: what was read
        together is forgotten together. offset is a multiple of BLOCK."""
        state = ctypes.c_ubyte()
        last = (offset + max(nbytes, 1) - 1) // BLOCK * BLOCK
        pages = {*range(offset, offset + nbytes, PROBED), last}
        first = int(self._map.ctypes.data)
        return not any(
            _mincore(first + page, 1, ctypes.byref(state)) or not state.value & 1 for page in pages
        )


def open_cached(path: str | os.PathLike[str], fd: int) -> Cached | None:
    """None where all is read past the cache: the system tells of our own files only, and of those
    that we may change; of others it says that everything is cached."""
    if forced is not None or not (os.fstat(fd).st_uid == os.geteuid() or os.access(path, os.W_OK)):
        return None
    try:
        return Cached(fd)
    except (OSError, ValueError):
        return None
