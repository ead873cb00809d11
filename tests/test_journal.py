"""The journal: what was written is read back, what was torn or damaged is left out."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from mergekern import journal
from mergekern.errors import OutputError
from mergekern.fused import Window
from mergekern.journal import Journal, Range

RANGES = [Range("model.safetensors", 4096 * i, 100 + i, f"{i:016x}") for i in range(3)]
WINDOWS = {"a": (Window(), Window(5, 6, 7, 8)), "b": (Window(1),)}


def written(folder: Path) -> Path:
    book = Journal(folder)
    book.begin("digest", [{"model.safetensors": {"size": 2}}])
    for found in RANGES:
        book.add_range(found)
    book.add_windows(WINDOWS)
    book.close()
    return folder / journal.NAME


def reopened(folder: Path) -> journal.Records:
    book = Journal(folder)
    book.close()
    return book.records


def test_round_trip(tmp_path: Path) -> None:
    written(tmp_path)
    records = reopened(tmp_path)
    assert records.digest == "digest"
    assert records.inputs == [{"model.safetensors": {"size": 2}}]
    assert records.ranges == RANGES
    assert records.windows == WINDOWS


def test_a_new_journal_is_empty(tmp_path: Path) -> None:
    assert reopened(tmp_path) == journal.Records()


@pytest.mark.parametrize("cut", [1, 10, 60])
def test_torn_last_line(tmp_path: Path, cut: int) -> None:
    path = written(tmp_path)
    path.write_bytes(path.read_bytes()[:-cut])
    book = Journal(tmp_path)
    assert book.records.ranges == RANGES
    assert book.records.windows is None
    book.add_range(RANGES[0])  # must not be glued to what was torn
    book.close()
    assert reopened(tmp_path).ranges == [*RANGES, RANGES[0]]


def test_damaged_lines_are_left_out(tmp_path: Path) -> None:
    path = written(tmp_path)
    lines = path.read_text().splitlines()
    lines[2] = lines[2].replace('"offset"', '"offsot"')
    lines[3] = "\x00" * 40
    lines[4] = lines[4].replace("[5,6,7,8]", "[5,6,7,9]")
    path.write_text("\n".join(lines) + "\n")
    records = reopened(tmp_path)
    assert records.ranges == RANGES[:1]
    assert records.windows is None


@pytest.mark.parametrize(
    "line",
    [
        '{"file": "m", "offset": "0", "length": 5, "xxh3": "a"}',
        '{"file": "m", "offset": -5, "length": 5, "xxh3": "a"}',
        '{"file": "m", "offset": 0, "length": 1e300, "xxh3": "a"}',
        '{"file": ["m"], "offset": 0, "length": 5, "xxh3": "a"}',
        "[" * 100_000,
    ],
)
def test_lines_that_no_merge_writes_are_left_out(tmp_path: Path, line: str) -> None:
    path = written(tmp_path)
    path.write_text(path.read_text() + line + "\n")
    assert reopened(tmp_path).ranges == RANGES


def test_foreign_first_line(tmp_path: Path) -> None:
    (tmp_path / journal.NAME).write_text('{"mergekern_journal": 99}\n')
    with pytest.raises(OutputError, match="first line"):
        Journal(tmp_path)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    book = Journal(tmp_path)
    with pytest.raises(OutputError, match="another process"):
        Journal(tmp_path)
    book.close()
    Journal(tmp_path).close()


def test_removed(tmp_path: Path) -> None:
    written(tmp_path)
    book = Journal(tmp_path)
    book.remove()
    assert not list(tmp_path.iterdir())
    book.close()


def test_a_journal_removed_by_its_last_holder_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between opening and locking, another process may finish: its file must not be used."""
    flock = journal.fcntl.flock
    calls = []

    def slow(fd: int, how: int) -> None:
        if not calls:
            (tmp_path / journal.NAME).unlink()
        calls.append(fd)
        flock(fd, how)

    monkeypatch.setattr(journal.fcntl, "flock", slow)
    book = Journal(tmp_path)
    book.begin("digest", None)
    book.close()
    assert len(calls) == 2
    assert reopened(tmp_path).digest == "digest"


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book = Journal(tmp_path)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OutputError, match="No space left"):
        patch.setattr(journal.os, "write", full)
        book.begin("digest", None)
    book.close()
