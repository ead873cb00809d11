"""What a trial pass wrote, set right: the elements it left in doubt are put in their places."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
from xxhash import xxh3_64_hexdigest

from mergekern.arrays import to_host
from mergekern.backends import Backend
from mergekern.coverage import Coverage
from mergekern.destination import Destination
from mergekern.doubts import Doubt
from mergekern.dtypes import DType
from mergekern.findings import check_findings
from mergekern.fused import FusedOp
from mergekern.journal import Range
from mergekern.spill import SpilledDoubts
from mergekern.statistics import fused_op
from mergekern.table import Target
from mergekern.trimming import Windows

Elements = tuple[int, int, int]  # row, start, stop


class Settling:
    """Ranges of the output, one after the other: read again where something in them was in doubt,
    mended, and recorded as final, but for elements that are to be merged again."""

    def __init__(
        self,
        target: Target,
        backend: Backend,
        destination: Destination,
        windows: Windows,
        doubts: SpilledDoubts,
    ) -> None:
        """doubts: those of the target's tensors that are ranked together, counted in their order"""
        self._target = target
        self._backend = backend
        self._destination = destination
        self._rows = target.whole_model
        self._windows = windows
        self._doubts = doubts
        self._op: tuple[str, FusedOp] | None = None

    def run(self, ranges: Sequence[Range], again: Sequence[Elements], buffer: memoryview) -> None:
        """ranges: what was written; buffer: whole blocks, aligned, for the longest of them."""
        void = Coverage(self._place(*elements) for elements in again)
        ordered = sorted(ranges, key=lambda found: (found.file, found.offset))
        for found, numbers in zip(ordered, self._touching(ordered), strict=True):
            kept = void.missing(found.file, found.offset, found.offset + found.length)
            if not numbers and kept == [(0, found.length)]:
                self._destination.settle(found)
                continue
            data = self._destination.reread(found, buffer)
            for number in numbers:
                self._mend(found, data, number)
            if numbers:
                self._destination.rewrite(found, data)
            for first, stop in kept:
                part = data[first:stop]
                xxh3 = xxh3_64_hexdigest(part)
                at, length = found.offset + first, stop - first
                self._destination.settle(Range(found.file, at, length, xxh3))

    def _touching(self, ordered: Sequence[Range]) -> list[list[int]]:
        """For each range, the doubts that have elements in it."""
        touching: list[list[int]] = [[] for _ in ordered]
        keys = [(found.file, found.offset) for found in ordered]
        for number, entry in enumerate(self._doubts.entries):
            row = int(self._rows[entry.step])
            file, begin, length = self._place(row, entry.first, entry.last + 1)
            at = bisect_right(keys, (file, begin)) - 1
            while at < len(ordered) and keys[at] < (file, begin + length):
                touching[at].append(number)
                at += 1
        return touching

    def _place(self, row: int, start: int, stop: int) -> tuple[str, int, int]:
        """File, first byte and length of an output's elements."""
        itemsize = int(self._target.itemsize[row])
        file = self._target.plan.shards[int(self._target.shard[row])].file
        begin = int(self._target.offset[row]) + start * itemsize
        return file, begin, (stop - start) * itemsize

    def _mend(self, found: Range, data: memoryview, number: int) -> None:
        """Put a doubt's elements where they belong in the bytes of a range."""
        doubt = self._doubts[number]
        row = int(self._rows[self._doubts.entries[number].step])
        itemsize = int(self._target.itemsize[row])
        merged = self._merged(doubt, self._target.steps[row].dtype)
        _, begin, _ = self._place(row, 0, 0)
        places = begin - found.offset + to_host(doubt.index) * itemsize
        inside = (places >= 0) & (places < found.length)
        target = np.frombuffer(data, np.uint8)
        source = merged.view(np.uint8).reshape(-1, itemsize)
        for byte in range(itemsize):
            target[places[inside] + byte] = source[inside, byte]

    def _merged(self, doubt: Doubt, dtype: DType) -> np.ndarray:
        step = doubt.step
        if self._op is None or self._op[0] != step.name:
            self._op = (step.name, fused_op(step, self._windows[step.name]))
        merged = np.empty(doubt.tile.numel, dtype)
        found = doubt.merge(self._backend, self._op[1], merged)
        check_findings(self._target.plan, self._target.checkpoints, step, found)
        return merged
