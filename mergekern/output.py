"""The output folder: shards under temporary names, written in place, renamed when whole."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, wait
from pathlib import Path
from threading import Lock

from mergekern import journal
from mergekern.blockfile import BlockFile
from mergekern.checkpoint.base import listing
from mergekern.checkpoint.direct import BLOCK
from mergekern.checkpoint.files import write_whole
from mergekern.checkpoint.layout import Shard, index_json
from mergekern.coverage import Coverage
from mergekern.errors import OutputError
from mergekern.journal import Range
from mergekern.lock import LOCK

INDEX = "model.safetensors.index.json"
MOVES_ON = "run the same command again to go on from here"


def finished_digest(folder: Path) -> str | None:
    """The plan's digest in a folder's lock file; None when there is no lock file to be read."""
    try:
        found = json.loads((folder / LOCK).read_text())
    except (OSError, ValueError):
        return None
    digest = found.get("plan") if isinstance(found, dict) else None
    return digest if isinstance(digest, str) else None


def is_finished(folder: Path, digest: str, shards: Sequence[Shard]) -> bool:
    """True when the folder holds this very merge, finished. Raises OutputError when it cannot be
    written: another merge, foreign files, or a finished merge that has lost some of its own."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return False
    except NotADirectoryError:
        wanted = "wanted a folder to write the model into"
        raise OutputError(f"{folder}: is a file, {wanted}") from None
    except OSError as error:
        reason = f"cannot be read: {error.strerror}; choose another folder"
        raise OutputError(f"{folder}: {reason}") from error
    if not names or journal.NAME in names:
        return False
    found = finished_digest(folder)
    if found != digest:
        what = (
            f"other files ({listing(names)})"
            if found is None
            else ("a finished merge of another recipe or of other inputs")
        )
        raise OutputError(f"{folder}: holds {what}; remove them or choose another folder")
    for shard in shards:
        path = folder / shard.file
        if not path.exists() or path.stat().st_size != shard.size:
            raise OutputError(
                f"{folder}: holds this merge, finished, but {shard.file} is missing or not of "
                f"{shard.size} bytes; remove the folder to merge again"
            )
    return True


class OutputFolder:
    """Shards being written. Offsets and sizes are those of the plan; any order, any thread."""

    def __init__(self, folder: Path, shards: Sequence[Shard]) -> None:
        self.folder = folder
        self._shards = shards
        self._files: list[BlockFile] = []
        self._left = [0] * len(shards)  # bytes still to be written
        self._lock = Lock()

    def prepare(self, beside: int = 0) -> None:
        """Allocate every shard and write its header. Raises OutputError when the disk is full.

        beside: bytes that other files will take for a while
        """
        self._check_space(beside)
        for shard in self._shards:
            part = self._partial(shard)
            try:
                with contextlib.suppress(FileNotFoundError):  # renamed already, but the rest not
                    os.rename(self.folder / shard.file, part)
                file = BlockFile(part)
                self._files.append(file)
                file.allocate(shard.size)
                file.write_head(shard.header)
            except OSError as error:
                raise self.failure(error, shard.file) from error

    def verify(self, ranges: Sequence[Range], buffer: memoryview, pool: Executor) -> Coverage:
        """Those of the recorded ranges whose bytes are on disk as they were written."""
        numbers = {shard.file: number for number, shard in enumerate(self._shards)}
        lanes = 4
        size = min(len(buffer) // lanes, 8 << 20) // BLOCK * BLOCK

        def check(lane: int) -> list[tuple[str, int, int]]:
            part = buffer[lane * size : (lane + 1) * size]
            known = (found for found in ranges[lane::lanes] if found.file in numbers)
            return [
                (found.file, found.offset, found.length)
                for found in known
                if self._files[numbers[found.file]].matches(
                    found.offset, found.length, found.xxh3, part
                )
            ]

        futures = [pool.submit(check, lane) for lane in range(lanes)]
        wait(futures)
        return Coverage(found for future in futures for found in future.result())

    def expect(self, left: Mapping[int, int]) -> None:
        """Say how many bytes of each shard are still to come; shards without any are finished."""
        for number in range(len(self._shards)):
            self._left[number] = left.get(number, 0)
            if self._left[number] == 0:
                self._finish(number)

    def write(self, number: int, offset: int, data: memoryview) -> None:
        """Write bytes of a shard where they belong; in memory they lie as there, modulo BLOCK."""
        try:
            self._files[number].write(offset, data)
        except OSError as error:
            raise self.failure(error, self._shards[number].file) from error

    def read(self, number: int, offset: int, length: int, buffer: memoryview) -> memoryview:
        """Bytes of a shard that were written before; see BlockFile.read."""
        try:
            return self._files[number].read(offset, length, buffer)
        except OSError as error:
            raise self.failure(error, self._shards[number].file) from error

    def written(self, number: int, nbytes: int) -> None:
        """Count what was written (and recorded); the last byte of a shard finishes it."""
        with self._lock:
            self._left[number] -= nbytes
            last = self._left[number] == 0
        if last:
            self._finish(number)

    def write_index(self) -> None:
        """The index of a sharded model; everything it names is whole by now."""
        text = index_json(self._shards)
        try:
            if text is not None:
                write_whole(self.folder / INDEX, text.encode())
            self.sync()
        except OSError as error:
            raise self.failure(error, INDEX) from error

    def sync(self) -> None:
        """Make every file of the folder last, whoever wrote it, and then their names."""
        files = [entry for entry in self.folder.iterdir() if entry.is_file()]
        for path in (*files, self.folder):
            fd = os.open(path, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def close(self) -> None:
        for file in self._files:
            file.close()

    def discard(self) -> None:
        """Remove what prepare() made."""
        self.close()
        for shard in self._shards:
            self._partial(shard).unlink(missing_ok=True)

    def failure(self, error: OSError, file: str) -> OutputError:
        """The error that says what went wrong with the disk, and how to go on."""
        reason = f"{self.folder}: {file} cannot be written: {error.strerror}"
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            return OutputError(f"{reason}; {MOVES_ON}")
        total = sum(shard.size for shard in self._shards)
        free = shutil.disk_usage(self.folder).free
        return OutputError(
            f"{reason}: the merge takes {total} bytes, {self._allocated()} are allocated and "
            f"{free} are free; make room, then {MOVES_ON}"
        )

    def _check_space(self, beside: int) -> None:
        total = sum(shard.size for shard in self._shards) + beside
        needed = total - self._allocated()
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise OutputError(
                f"{self.folder}: the merge takes {total} bytes and needs {needed} more, but only "
                f"{free} are free on this disk; make room or choose another folder"
            )

    def _allocated(self) -> int:
        total = 0
        for shard in self._shards:
            for path in (self._partial(shard), self.folder / shard.file):
                if path.exists():
                    total += min(shard.size, path.stat().st_blocks * 512)
        return total

    def _partial(self, shard: Shard) -> Path:
        return self.folder / f".{shard.file}.partial"

    def _finish(self, number: int) -> None:
        shard = self._shards[number]
        try:
            self._files[number].sync()
            os.rename(self._partial(shard), self.folder / shard.file)
        except OSError as error:
            raise self.failure(error, shard.file) from error
