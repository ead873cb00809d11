"""Open elements in a file: there may be more of them than memory, and a merge may be cut short."""

from __future__ import annotations

import os
from bisect import insort
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from xxhash import xxh3_64_hexdigest

from mergekern.arrays import to_host
from mergekern.doubts import Doubt
from mergekern.dtypes import INT64, DType
from mergekern.errors import OutputError
from mergekern.fused import Tile
from mergekern.plan import Step

INDEX = INT64


@dataclass(frozen=True, order=True)
class Entry:
    """Where a doubt lies: number of its step, indices of its first and last element; first byte,
    elements, checksum (xxh3_64)."""

    step: int
    first: int
    last: int
    offset: int
    count: int
    xxh3: str


class SpilledDoubts:
    """Doubts in a file, in the order of their steps and elements however they were added.

    dtypes: of the inputs of a step, base first
    """

    def __init__(
        self,
        path: Path,
        steps: Sequence[Step],
        dtypes: Callable[[Step], Sequence[DType]],
    ) -> None:
        self._path = path
        self._steps = steps
        self._number = {step.name: number for number, step in enumerate(steps)}
        self._dtypes = dtypes
        self.entries: list[Entry] = []
        self._fresh: list[Entry] = []
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        try:
            self._fd = os.open(path, flags, 0o666)
        except OSError as error:
            raise self._failure(error) from error
        self._end = os.fstat(self._fd).st_size

    def forget(self) -> None:
        """Start anew."""
        try:
            os.ftruncate(self._fd, 0)
        except OSError as error:
            raise self._failure(error) from error
        self.entries, self._end = [], 0

    def append(self, doubt: Doubt) -> None:
        """Write a doubt behind what is there."""
        tile = doubt.tile
        values = (*(() if tile.base is None else (tile.base,)), *tile.experts)
        data = b"".join(to_host(x).view(np.uint8).data for x in (doubt.index, *values))
        entry = Entry(
            self._number[doubt.step.name],
            int(doubt.index[0]),
            int(doubt.index[-1]),
            self._end,
            tile.numel,
            xxh3_64_hexdigest(data),
        )
        try:
            _write(self._fd, data, self._end)
        except OSError as error:
            raise self._failure(error) from error
        self._end += len(data)
        insort(self.entries, entry)
        self._fresh.append(entry)

    def fresh(self) -> list[Entry]:
        """What was written since the last call."""
        found, self._fresh = self._fresh, []
        return found

    def restore(self, entries: Sequence[Entry]) -> bool:
        """Take up doubts that an earlier run wrote; none of them, and False, when some are gone."""
        if any(self._read(entry) is None for entry in entries):
            return False
        for entry in entries:
            insort(self.entries, entry)
        return True

    def sizes(self) -> Sequence[tuple[Step, int]]:
        return [(self._steps[entry.step], entry.count) for entry in self.entries]

    def __getitem__(self, number: int) -> Doubt:
        entry = self.entries[number]
        data = self._read(entry)
        if data is None:
            raise OutputError(
                f"{self._path}: was changed while it was in use; run the command again"
            )
        step = self._steps[entry.step]
        found, at = [], 0
        for dtype in (INDEX, *self._dtypes(step)):
            length = entry.count * dtype.itemsize
            found.append(np.frombuffer(data, dtype, entry.count, at))
            at += length
        index, *values = found
        base = None if step.base is None else values.pop(0)
        return Doubt(step, index, Tile(step.name, 0, base, tuple(values)))

    def __iter__(self) -> Iterator[Doubt]:
        return (self[number] for number in range(len(self.entries)))

    def remove(self) -> None:
        """What is in doubt has been decided."""
        self.close()
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            raise self._failure(error) from error

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _read(self, entry: Entry) -> bytearray | None:
        dtypes = (INDEX, *self._dtypes(self._steps[entry.step]))
        data = bytearray(entry.count * sum(dtype.itemsize for dtype in dtypes))
        got = 0
        while got < len(data):
            try:
                step = os.preadv(self._fd, [memoryview(data)[got:]], entry.offset + got)
            except OSError as error:
                raise self._failure(error, "read") from error
            if step == 0:
                return None
            got += step
        return data if xxh3_64_hexdigest(data) == entry.xxh3 else None

    def _failure(self, error: OSError, what: str = "written") -> OutputError:
        return OutputError(
            f"{self._path}: cannot be {what}: {error.strerror}; mend that, then run the same "
            f"command again"
        )


def _write(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written
