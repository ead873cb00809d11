"""What the figures were taken on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

from mergekern.backends.cores import available_cores
from mergekern.backends.cpu import instruction_sets

PACKAGES = ("mergekern", "torch", "numpy", "safetensors")


def describe() -> dict[str, object]:
    return {
        "cpu": _cpu(),
        "cores": available_cores(),
        "instruction_set": instruction_sets()[-1],
        "kernel": platform.release(),
        "memory_GiB": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "huge_pages": _read("/sys/kernel/mm/transparent_hugepage/enabled"),
        "file_system": _file_system(),
        "compiler": _compiler(),
        "python": platform.python_version(),
        "load_at_start": round(os.getloadavg()[0], 2),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
    }


def _cpu() -> str:
    """The model, with the numbers that tell generations of one name apart."""
    fields = dict(
        (key.strip(), value.strip())
        for key, _, value in (line.partition(":") for line in _read("/proc/cpuinfo").splitlines())
    )
    name = fields.get("model name") or platform.machine()
    numbers = [f"{key} {fields[key]}" for key in ("cpu family", "model") if key in fields]
    return ", ".join([name, *numbers])


def _compiler() -> str:
    command = [os.environ.get("CXX", "c++"), "--version"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return printed.splitlines()[0]


def _file_system() -> str:
    """The kind of the one that the current folder lies on."""
    mounts = (line.split()[1:3] for line in _read("/proc/mounts").splitlines())
    here = Path.cwd()
    found = [(len(where), kind) for where, kind in mounts if here.is_relative_to(where)]
    return max(found)[1] if found else "unknown"


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
