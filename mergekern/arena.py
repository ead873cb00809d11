"""Memory allocated once and reused: a ring on huge pages, first taken, first given back."""

from __future__ import annotations

import mmap
from collections import deque

import numpy as np

from mergekern.arrays import address
from mergekern.checkpoint.direct import BLOCK

HUGE_PAGE = 2 << 20


class Arena:
    """Stretches of one block of memory; each begins at a multiple of BLOCK."""

    def __init__(self, nbytes: int) -> None:
        # Private, not shared: shared anonymous memory is a file to the kernel, without huge pages.
        private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._map = mmap.mmap(-1, nbytes + HUGE_PAGE, flags=private)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            self._map.madvise(mmap.MADV_HUGEPAGE)
        whole = np.frombuffer(self._map, np.uint8)
        skip = -address(whole) % HUGE_PAGE
        self.nbytes = nbytes
        self.array = whole[skip : skip + nbytes]
        self.address = address(self.array)
        self.bytes = memoryview(self._map)[skip : skip + nbytes]
        self._taken: deque[tuple[int, int]] = deque()

    def take(self, nbytes: int) -> int | None:
        """The first byte of a free stretch; None when there is none until something is given."""
        begin = self._free(nbytes)
        if begin is not None:
            self._taken.append((begin, nbytes))
        return begin

    def give(self) -> None:
        """Give back what was taken first."""
        self._taken.popleft()

    def _free(self, nbytes: int) -> int | None:
        if not self._taken:
            return 0 if nbytes <= self.nbytes else None
        oldest, newest = self._taken[0][0], self._taken[-1]
        head = -(-sum(newest) // BLOCK) * BLOCK
        wrapped = newest[0] < oldest
        if head + nbytes <= (oldest if wrapped else self.nbytes):
            return head
        return 0 if not wrapped and nbytes <= oldest else None
