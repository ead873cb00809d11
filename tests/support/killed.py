"""Merges that are killed at chosen calls of the operating system; run as a program.

    killed.py MODELS OUTPUT METHOD BUFFERS CALL …

MODELS are folders joined by commas, METHOD one of folders.METHODS or folders.CONTAINERS. For every
CALL a forked process merges into OUTPUT/CALL and kills itself at its CALL-th call that changes a
file, half way through where it writes. 0 is never reached; the number of calls is then printed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import folders

from mergekern import engine, stream
from mergekern.budget import MemoryEstimate
from mergekern.checkpoint.direct import BLOCK

CALLS = ("pwrite", "write", "rename", "replace", "fsync", "unlink", "ftruncate", "posix_fallocate")


class Killer:
    """Counts calls, and dies at the chosen one."""

    def __init__(self, at: int) -> None:
        self.calls = 0
        self._at = at
        self._lock = threading.Lock()
        for name in CALLS:
            setattr(os, name, self._wrapped(name, getattr(os, name)))

    def _wrapped(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any) -> Any:
            with self._lock:
                self.calls += 1
                last = self.calls == self._at
            if last and name in ("pwrite", "write"):
                half = len(args[1]) // 2
                # Past the page cache only whole blocks can be written; what is refused is not.
                with contextlib.suppress(OSError):
                    half = half // BLOCK * BLOCK if half > BLOCK else half
                    call(args[0], args[1][:half], *args[2:])
            if last:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args)

        return wrapped


def main(models: str, output: str, method: str, buffers: str, *calls: str) -> None:
    engine.budget.memory_estimate = lambda *_: MemoryEstimate(0, 0, int(buffers), 0, None, 1 << 26)  # type: ignore
    stream.REQUEST = 200_000
    for call in calls:
        child = os.fork()
        if child == 0:
            killer = Killer(int(call))
            folders.merge([Path(m) for m in models.split(",")], Path(output) / call, method)
            sys.stdout.write(f"{killer.calls}\n")
            sys.stdout.flush()
            os._exit(0)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
