"""How much memory this machine has, and this process holds, as far as the system tells."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

UNKNOWN = 512 << 20  # what a process holds, where nobody says: assume much rather than little


def resident_bytes() -> int:
    """What this process holds now."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return UNKNOWN
    return pages * os.sysconf("SC_PAGE_SIZE")


def available_bytes() -> int:
    """Memory that can be had without swapping: the machine's, or less in a control group."""
    free = 4 << 30
    with contextlib.suppress(OSError, ValueError):
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
    return min([free, *_cgroup_free()])


def _cgroup_free() -> list[int]:
    """What each control group above this process has left; its page cache counts as free."""
    found = []
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                names = ("memory.max", "memory.current", "file")
                found += _limits(Path("/sys/fs/cgroup"), path, names)
            elif "memory" in controllers.split(","):
                names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache")
                found += _limits(Path("/sys/fs/cgroup/memory"), path, names)
    return found


def _limits(root: Path, path: str, names: tuple[str, str, str]) -> list[int]:
    limit, usage, cache = names
    found = []
    parts = [part for part in path.split("/") if part and part != ".."]
    for depth in range(len(parts) + 1):
        group = root.joinpath(*parts[:depth])
        with contextlib.suppress(OSError, ValueError, KeyError):  # "max", or not to be seen here
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            used = int((group / usage).read_text()) - int(stat[cache])
            found.append(max(0, int((group / limit).read_text()) - used))
    return found
