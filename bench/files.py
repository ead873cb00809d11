"""Checkpoints on the disk that is measured: written, pushed out of the page cache, looked for."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from data import model
from safetensors.torch import save_file
from settings import EXPERTS, Settings
from torch import Tensor

WARM = 0.01  # of a file's pages; more of them in memory, and it is not cold


class NotCold(Exception):
    """A file stays in the page cache: what reads it does not read the disk."""


@contextmanager
def scratch_folder(settings: Settings) -> Iterator[Path]:
    settings.scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=settings.scratch) as folder:
        yield Path(folder)


@contextmanager
def checkpoints(settings: Settings) -> Iterator[list[Path]]:
    """Folders of a base and its experts, in bf16."""
    with scratch_folder(settings) as scratch:
        folders = [scratch / name for name in ("base", *(f"expert{k}" for k in range(EXPERTS)))]
        states = model(settings.layers, settings.shape, EXPERTS)
        for folder, state in zip(folders, states, strict=True):
            write(folder, state)
        yield folders


def write(folder: Path, state: dict[str, Tensor]) -> None:
    folder.mkdir()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "dtype": "bfloat16"}))


def weights(folders: list[Path]) -> list[Path]:
    return [file for folder in folders for file in sorted(folder.glob("*.safetensors"))]


def nbytes(folders: list[Path]) -> int:
    return sum(file.stat().st_size for file in weights(folders))


def make_cold(folders: list[Path]) -> None:
    """Written back and dropped from the page cache. Raises NotCold where that does not help."""
    for file in weights(folders):
        handle = os.open(file, os.O_RDONLY)
        try:
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            share = _resident(handle)
        finally:
            os.close(handle)
        if share > WARM:
            raise NotCold(f"{file.name}: {100 * share:.0f} % of its pages stay in memory")


def _resident(handle: int) -> float:
    """The share of a file's pages that the page cache holds."""
    with mmap.mmap(handle, 0, prot=mmap.PROT_READ) as mapped:
        view = np.frombuffer(mapped, np.uint8)
        pages = np.zeros(-(-view.size // mmap.PAGESIZE), np.uint8)
        address, size = ctypes.c_void_p(view.ctypes.data), ctypes.c_size_t(view.size)
        libc = ctypes.CDLL(None, use_errno=True)
        failed = libc.mincore(address, size, pages.ctypes.data_as(ctypes.c_void_p))
        del view
        if failed:
            raise OSError(ctypes.get_errno(), "mincore")
        return float((pages & 1).mean())


def remove(output: Path) -> None:
    """What a run before left, outside of what is timed."""
    shutil.rmtree(output, ignore_errors=True)
