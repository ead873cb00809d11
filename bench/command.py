"""A command line in a process of its own: its wall time, CPU time and peak memory.

Import nothing large here: a child's peak, as the kernel counts it, starts at that of its parent.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Used:
    wall: float
    cpu: float
    peak: int  # bytes, of the largest process


class CommandFailed(Exception):
    """What it printed says why."""


def timed(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Used:
    """Run it to its end. Raises CommandFailed when that is no good one."""
    started = time.perf_counter()
    child = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, **(environment or {})},
    )
    assert child.stdout is not None
    printed = child.stdout.read()
    _, status, used = os.wait4(child.pid, 0)
    wall = time.perf_counter() - started
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise CommandFailed(f"{' '.join(command)}\n{printed.decode(errors='replace')[-2000:]}")
    return Used(wall, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024)
