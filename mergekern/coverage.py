"""Which bytes of an unfinished merge are there, and what is missing."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable

Interval = tuple[int, int]


class Coverage:
    """Which bytes of which files are known to be right."""

    def __init__(self, ranges: Iterable[tuple[str, int, int]] = ()) -> None:
        """ranges: file, first byte, length; in any order, overlaps allowed."""
        self._files: dict[str, list[Interval]] = {}
        for file, begin, length in sorted(ranges):
            merged = self._files.setdefault(file, [])
            if merged and begin <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(merged[-1][1], begin + length))
            else:
                merged.append((begin, begin + length))

    def add(self, file: str, begin: int, length: int) -> None:
        """One more range, wherever it lies."""
        found = self._files.setdefault(file, [])
        stop = begin + length
        first = bisect_left(found, begin, key=lambda interval: interval[1])
        last = bisect_right(found, stop, key=lambda interval: interval[0])
        if first < last:  # these touch it, or overlap with it
            begin, stop = min(begin, found[first][0]), max(stop, found[last - 1][1])
        found[first:last] = [(begin, stop)]

    @property
    def nbytes(self) -> int:
        return sum(stop - start for ranges in self._files.values() for start, stop in ranges)

    def ranges(self) -> list[tuple[str, int, int]]:
        """File, first byte and length of everything, in order."""
        return [(f, a, b - a) for f, found in self._files.items() for a, b in found]

    def missing(self, file: str, start: int, stop: int) -> list[Interval]:
        """What [start, stop) lacks, counted from `start`."""
        ranges = self._files.get(file, [])
        first = max(0, bisect_right(ranges, (start, start)) - 1)
        found, at = [], start
        for begin, end in ranges[first:]:
            if begin >= stop:
                break
            if begin > at:
                found.append((at - start, begin - start))
            at = max(at, end)
        if at < stop:
            found.append((at - start, stop - start))
        return found
