"""Fresh arrays on huge pages: touching memory page by page costs more than a merge."""

from __future__ import annotations

import ctypes
import mmap

import numpy as np

from mergekern.dtypes import DType

PAGE = 2 << 20
WORTH = 2 * PAGE  # below, no whole huge page may lie inside
ALIGNED = 64  # a line of the cache, which no vector should straddle


def empty(numel: int, dtype: DType) -> np.ndarray:
    """numpy.empty at a multiple of ALIGNED, with huge pages where the system has them."""
    nbytes = numel * dtype.itemsize
    memory = np.empty(nbytes + ALIGNED, np.uint8)
    first: int = memory.__array_interface__["data"][0]
    skip = -first % ALIGNED
    if nbytes >= WORTH:
        advise(first + skip, nbytes)
    return memory[skip : skip + nbytes].view(dtype)


def advise(address: int, nbytes: int) -> None:
    """Ask for huge pages where whole ones lie inside."""
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    start = -(-address // PAGE) * PAGE
    length = (address + nbytes - start) // PAGE * PAGE
    if advice is not None and length > 0:
        # Advice only: where it is refused, the memory is as good as before.
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), advice)
