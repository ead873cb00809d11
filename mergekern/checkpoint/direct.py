"""Past the page cache: what a disk does at its full speed, in whole blocks, where systems allow it.

Reading a cold file through the page cache costs several times the processor time and, in a virtual
machine, several times the wall time of reading it straight into our own memory; reading a cached
one is faster than any disk. Everything here only decides speed: who is refused reads and writes
through the cache, and gets the same bytes.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import resource

import numpy as np

BLOCK = max(4096, mmap.PAGESIZE)  # file offsets, lengths and addresses are multiples of it

# True and False force one way, for tests and measurements; None decides by what is cached.
forced: bool | None = None

_libc = ctypes.CDLL(None, use_errno=True)


def open_file(path: str | os.PathLike[str], flags: int, mode: int = 0o666) -> int:
    """os.open, not passed to children, and with as many files as the system lets us have."""
    flags |= os.O_CLOEXEC
    try:
        return os.open(path, flags, mode)
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
    # Large models come in hundreds of shards, more than the default limit of a process.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return os.open(path, flags, mode)


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
    """Says what the page cache holds of a file, by asking for every page without touching one: a
    trial read would start reading ahead. Raises OSError or ValueError for what cannot be mapped."""

    def __init__(self, fd: int) -> None:
        self._map = np.frombuffer(mmap.mmap(fd, 0, prot=mmap.PROT_READ), np.uint8)

    def holds(self, offset: int, nbytes: int) -> bool:
        """True when all of these bytes are cached; offset is a multiple of BLOCK."""
        pages = np.zeros(-(-nbytes // mmap.PAGESIZE), np.uint8)
        address = ctypes.c_void_p(self._map.ctypes.data + offset)
        pointer = ctypes.c_void_p(pages.ctypes.data)
        failed = _libc.mincore(address, ctypes.c_size_t(nbytes), pointer)
        return not failed and bool((pages & 1).all())


def open_cached(path: str | os.PathLike[str], fd: int) -> Cached | None:
    """None where all is read past the cache: the system tells of our own files only, and of those
    that we may change; of others it says that everything is cached."""
    if forced is not None or not (os.fstat(fd).st_uid == os.geteuid() or os.access(path, os.W_OK)):
        return None
    try:
        return Cached(fd)
    except (OSError, ValueError):
        return None
