"""How many cores there are to work on."""

from __future__ import annotations

import math
import os
from pathlib import Path


def available_cores() -> int:
    """The cores this process may use: its affinity mask, less what its control group withholds."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, math.ceil(min(cores, _cgroup_cores())))


def _cgroup_cores() -> float:
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return math.inf if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return math.inf
