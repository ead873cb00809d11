"""What the disk allows: all inputs read and the output written with O_DIRECT, nothing computed."""

from __future__ import annotations

import ctypes
import os
import subprocess
import tempfile
from functools import cache
from pathlib import Path

THREADS = 4
REQUESTS = (8 << 20, 32 << 20)  # which of them is faster depends on the disk


@cache
def _library() -> ctypes.CDLL:
    source = Path(__file__).with_name("io_floor.cpp")
    target = Path(tempfile.mkdtemp()) / "io_floor.so"
    flags = ["-O2", "-std=c++17", "-shared", "-fPIC", "-pthread"]
    compiler = os.environ.get("CXX", "c++")
    subprocess.run([compiler, *flags, str(source), "-o", str(target)], check=True)
    return ctypes.CDLL(str(target))


def build() -> None:
    _library()


def io_floor(inputs: list[Path], output: Path, request: int) -> None:
    """Reads files of one size and writes one more, preallocated and synced."""
    paths = (ctypes.c_char_p * len(inputs))(*(os.fsencode(path) for path in inputs))
    size, wanted = ctypes.c_int64(inputs[0].stat().st_size), ctypes.c_int64(request)
    name = ctypes.c_char_p(os.fsencode(output))
    failed = _library().io_floor(paths, len(inputs), name, size, wanted, THREADS)
    if failed:
        raise OSError(failed, f"{os.strerror(failed)}, with O_DIRECT in {output.parent}")
