"""What an unfinished merge has done so far, as JSON lines beside the files it writes.

The first line names the plan; then one line per finished range of a file with the checksum of its
bytes, and the thresholds of the whole model once they are known. Until then, where a trial pass
guesses them, one line holds the bets and one each what the pass did. A line is written after what
it speaks of, so a kill can lose lines but never make one lie; a torn last line is no line.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from dataclasses import astuple, dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from xxhash import xxh3_64_hexdigest

from mergekern.errors import OutputError
from mergekern.fused import Window
from mergekern.keys import Key, Wanted
from mergekern.speculation import Bet, Reach
from mergekern.spill import Entry
from mergekern.trimming import Windows

NAME = ".mergekern.journal"
VERSION = 2  # of these lines, and of the digest's form


@dataclass(frozen=True)
class Range:
    """Bytes of one output file that were written, and their checksum (xxh3_64)."""

    file: str
    offset: int
    length: int
    xxh3: str


@dataclass(frozen=True)
class Tried:
    """What one unit of a trial pass wrote, counted, and left in doubt."""

    ranges: list[Range]
    reach: Reach
    doubts: list[Entry]


@dataclass
class Records:
    """What a journal holds. `digest` is None when it holds nothing yet."""

    digest: str | None = None
    inputs: list[Any] | None = None
    ranges: list[Range] = field(default_factory=list)
    windows: Windows | None = None
    bets: dict[Wanted, Bet] | None = None
    tried: list[Tried] = field(default_factory=list)


class Journal:
    """The journal of one output folder, locked against other processes while it is open."""

    def __init__(self, folder: Path) -> None:
        """Open or create. Raises OutputError when another process holds it."""
        self.path = folder / NAME
        self._lock = Lock()
        self._fd = _open_locked(self.path)
        try:
            self.records = self._load()
        except BaseException:
            self.close()
            raise

    def begin(self, digest: str, inputs: list[Any] | None) -> None:
        """Start anew: forget what is there, and name the plan and the state of its inputs."""
        try:
            os.ftruncate(self._fd, 0)
        except OSError as error:
            raise self._failure(error) from error
        self.records = Records(digest, inputs)
        self._append({"mergekern_journal": VERSION, "digest": digest, "inputs": inputs})

    def add_range(self, found: Range) -> None:
        """Record bytes that were written. Safe to call from any thread."""
        self._append(
            {
                "file": found.file,
                "offset": found.offset,
                "length": found.length,
                "xxh3": found.xxh3,
            }
        )

    def add_windows(self, windows: Windows) -> None:
        """Record the thresholds of the whole model."""
        plain = {name: [astuple(window) for window in found] for name, found in windows.items()}
        self._append({"windows": plain, "xxh3": _checksum(plain)})

    def add_bets(self, bets: Mapping[Wanted, Bet]) -> None:
        """Record what a trial pass will go by; what an earlier one did is void."""
        plain = [[*wanted, *_plain_bet(bet)] for wanted, bet in bets.items()]
        self._append({"bets": plain, "xxh3": _checksum(plain)})

    def add_tried(self, tried: Tried) -> None:
        """Record what a trial pass did. Safe to call from any thread."""
        plain = {
            "ranges": [astuple(found) for found in tried.ranges],
            "reach": [[*wanted, *counts] for wanted, counts in tried.reach.items()],
            "doubts": [astuple(entry) for entry in tried.doubts],
        }
        self._append({"tried": plain, "xxh3": _checksum(plain)})

    def remove(self) -> None:
        """The merge is finished: nothing is left to resume."""
        try:
            os.unlink(self.path)
        except OSError as error:
            raise self._failure(error) from error
        self.close()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _append(self, record: Mapping[str, Any]) -> None:
        line = json.dumps(record, separators=(",", ":")).encode() + b"\n"
        with self._lock:
            try:
                written = 0
                while written < len(line):
                    written += os.write(self._fd, line[written:])
            except OSError as error:
                raise self._failure(error) from error

    def _failure(self, error: OSError) -> OutputError:
        return OutputError(
            f"{self.path}: cannot be written: {error.strerror}; mend that, then run the same "
            f"command again"
        )

    def _load(self) -> Records:
        with open(os.dup(self._fd), "rb") as file:
            data = file.read()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.ftruncate(self._fd, whole)  # or the next line would be glued to the torn one
        lines = data[:whole].splitlines()
        if not lines:
            return Records()
        head = _parse(lines[0])
        if head.get("mergekern_journal") != VERSION or "digest" not in head:
            raise OutputError(
                f"{self.path}: its first line is not one of a journal that this version can read; "
                f"remove the folder or choose another"
            )
        records = Records(head["digest"], head.get("inputs"))
        for line in lines[1:]:
            _add(records, _parse(line))
        return records


def _add(records: Records, record: dict[str, Any]) -> None:
    """A damaged line is left out: what it spoke of is merged again."""
    if "windows" in record:
        if record.get("xxh3") == _checksum(record["windows"]):
            records.windows = {
                name: tuple(Window(*fields) for fields in found)
                for name, found in record["windows"].items()
            }
    elif "bets" in record:
        if record.get("xxh3") == _checksum(record["bets"]):
            records.bets = dict(_bet(*fields) for fields in record["bets"])
            records.tried = []
    elif "tried" in record:
        if record.get("xxh3") == _checksum(record["tried"]):
            records.tried.append(_tried(**record["tried"]))
    elif record.keys() == {"file", "offset", "length", "xxh3"} and _sound(found := Range(**record)):
        records.ranges.append(found)


def _plain_bet(bet: Bet) -> list[int]:
    return [bet.rank, *astuple(bet.high), *astuple(bet.low)]


def _bet(expert: int, side: int, rank: int, *keys: int) -> tuple[Wanted, Bet]:
    return (expert, side), Bet(rank, Key(*keys[:2]), Key(*keys[2:]))


def _tried(ranges: list[Any], reach: list[Any], doubts: list[Any]) -> Tried:
    return Tried(
        [Range(*fields) for fields in ranges],
        {(expert, side): tuple(counts) for expert, side, *counts in reach},
        [Entry(*fields) for fields in doubts],
    )


def _sound(found: Range) -> bool:
    """True when a range's fields are what they are said to be, and a file could be that long."""
    names = isinstance(found.file, str) and isinstance(found.xxh3, str)
    numbers = type(found.offset) is int and type(found.length) is int
    return names and numbers and 0 <= found.offset <= found.offset + found.length < 1 << 63


def _parse(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _checksum(plain: object) -> str:
    return str(xxh3_64_hexdigest(json.dumps(plain, sort_keys=True).encode()))


def _open_locked(path: Path) -> int:
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.exists(path) and os.path.samestat(os.fstat(fd), os.stat(path)):
                return fd
        except BlockingIOError:
            os.close(fd)
            raise OutputError(
                f"{path.parent}: another process is merging into this folder; wait for it or "
                f"choose another folder"
            ) from None
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # whoever held the lock finished and removed the file between our two calls
