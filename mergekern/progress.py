"""How a long merge shows that it is alive: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Protocol, TextIO

from mergekern.sizes import format_size

SECONDS_BETWEEN_LINES = 10.0


class Progress(Protocol):
    """What the engine tells: bytes moved and tensors finished, in which phase."""

    def start(self, total_bytes: int, tensors: int) -> None: ...

    def more(self, nbytes: int) -> None:
        """So much is to be moved beyond what was announced."""

    def advance(self, nbytes: int, tensors: int, phase: str) -> None: ...

    def stop(self) -> None: ...


class Silent:
    """Shows nothing."""

    def start(self, total_bytes: int, tensors: int) -> None: ...

    def more(self, nbytes: int) -> None: ...

    def advance(self, nbytes: int, tensors: int, phase: str) -> None: ...

    def stop(self) -> None: ...


class Lines:
    """A plain line every few seconds, and one at the end; for logs."""

    def __init__(self, stream: TextIO, every: float = SECONDS_BETWEEN_LINES) -> None:
        self._stream = stream
        self._every = every

    def start(self, total_bytes: int, tensors: int) -> None:
        self._total, self._tensors = total_bytes, tensors
        self._bytes = self._done = 0
        self._phase = ""
        self._began = self._last = time.monotonic()

    def more(self, nbytes: int) -> None:
        self._total += nbytes

    def advance(self, nbytes: int, tensors: int, phase: str) -> None:
        self._bytes += nbytes
        self._done += tensors
        self._phase = phase
        if time.monotonic() - self._last >= self._every:
            self._write()

    def stop(self) -> None:
        self._write()

    def _write(self) -> None:
        self._last = time.monotonic()
        seconds = max(self._last - self._began, 1e-9)
        rate = self._bytes / seconds
        left = (self._total - self._bytes) / rate if rate else 0.0
        self._stream.write(
            f"{self._phase or 'merge'}: {self._done}/{self._tensors} tensors, "
            f"{format_size(self._bytes)} of {format_size(self._total)}, "
            f"{format_size(rate)}/s, {max(left, 0):.0f} s left\n"
        )
        self._stream.flush()


def choose_progress(quiet: bool = False) -> Progress:
    """A bar when standard error is a terminal, plain lines when not, nothing when quiet."""
    if quiet:
        return Silent()
    if not sys.stderr.isatty():
        return Lines(sys.stderr)
    from mergekern.bar import Bar  # what draws takes time to load

    return Bar()
