"""Reading past the page cache: the same bytes, wherever a range begins and whatever is cached."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mergekern.arena import Arena
from mergekern.checkpoint import direct
from mergekern.checkpoint.direct import BLOCK
from mergekern.checkpoint.files import WeightFile
from mergekern.errors import CheckpointError

SIZE = 5 * BLOCK + 123


@pytest.fixture
def data() -> bytes:
    return os.urandom(SIZE)


@pytest.fixture
def path(tmp_path: Path, data: bytes) -> Path:
    (tmp_path / "w").write_bytes(data)
    return tmp_path / "w"


def evict(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def blocks(path: Path, offset: int, count: int) -> bytes:
    arena = Arena(count * BLOCK)
    WeightFile(path, "w").read_blocks(offset, arena.bytes, "byte {}".format)
    return bytes(arena.bytes)


@pytest.mark.parametrize("forced", [None, True, False])
@pytest.mark.parametrize("cold", [True, False])
@pytest.mark.parametrize("first", range(6))
@pytest.mark.parametrize("count", [1, 3, 6])
def test_blocks(
    path: Path,
    data: bytes,
    monkeypatch: pytest.MonkeyPatch,
    forced: bool | None,
    cold: bool,
    first: int,
    count: int,
) -> None:
    monkeypatch.setattr(direct, "forced", forced)
    if cold:
        evict(path)
    wanted = data[first * BLOCK : (first + count) * BLOCK]
    assert blocks(path, first * BLOCK, count)[: len(wanted)] == wanted


def flags_read(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each read from now on goes past the page cache."""
    seen: list[bool] = []
    preadv = os.preadv

    def watched(fd: int, *rest: object) -> int:
        seen.append(bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT))
        return preadv(fd, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "preadv", watched)
    return seen


def test_what_is_cached_is_read_from_there(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fd = direct.open_direct(path, os.O_RDONLY, os.open(path, os.O_RDONLY))
    evict(path)
    if fd < 0 or direct.Cached(fd).holds(0, SIZE):
        pytest.skip("this file system knows no reading past its cache")
    os.close(fd)
    seen = flags_read(monkeypatch)
    blocks(path, 0, 6)
    assert seen == [True]
    path.read_bytes()
    blocks(path, 0, 6)
    assert seen == [True, False]
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    monkeypatch.setattr(os, "access", lambda *_: False)
    blocks(path, 0, 6)  # of another's file the system says that all is cached
    assert seen == [True, False, True]


@pytest.mark.parametrize("when", ["open", "read"])
def test_file_systems_that_refuse(
    path: Path, data: bytes, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    monkeypatch.setattr(direct, "forced", True)
    real_open, preadv = os.open, os.preadv

    def opened(name: str, flags: int, *rest: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real_open(name, flags, *rest)

    def read(fd: int, buffers: list[memoryview], offset: int) -> int:
        calls.append(fd)
        if len(calls) == 1:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return preadv(fd, buffers, offset)

    calls: list[int] = []
    monkeypatch.setattr(os, *(("open", opened) if when == "open" else ("preadv", read)))
    assert blocks(path, 0, 6)[:SIZE] == data


@pytest.mark.parametrize("forced", [True, False])
def test_a_file_that_was_cut(path: Path, monkeypatch: pytest.MonkeyPatch, forced: bool) -> None:
    monkeypatch.setattr(direct, "forced", forced)
    file = WeightFile(path, "w")
    os.truncate(path, 2 * BLOCK + 5)
    with pytest.raises(CheckpointError, match=r"byte \d+: the file ends .* cut since"):
        file.read_blocks(0, Arena(6 * BLOCK).bytes, "byte {}".format)
    file.close()
    with pytest.raises(CheckpointError, match="reading failed"):
        file.read_blocks(0, Arena(BLOCK).bytes, "byte {}".format)


def test_a_disk_that_fails(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "forced", True)

    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(CheckpointError, match=r"w: byte 0: reading failed .*Input/output error"):
        blocks(path, 0, 6)


def test_more_files_than_the_limit(tmp_path: Path) -> None:
    """The limit of a process is raised as far as the system allows; here in a child."""
    code = (
        "import os, resource, sys\n"
        "from mergekern.checkpoint.direct import open_file\n"
        "soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (60, hard))\n"
        "print(len([open_file(sys.argv[1], os.O_RDONLY) for _ in range(100)]))\n"
    )
    (tmp_path / "w").write_bytes(b"")
    root = str(Path(__file__).parent.parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "w")],
        env=os.environ | {"PYTHONPATH": root},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "100", done.stderr
