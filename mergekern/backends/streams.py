"""Orders of work on a device, and what waits for what."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from mergekern.lazily import torch


class Stream:
    """An order of work on a device; where the device is the host, all is done at once."""

    def __init__(self, device: torch.device, current: bool = False) -> None:
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = (
                torch.cuda.current_stream(device) if current else torch.cuda.Stream(device)
            )

    def on(self) -> AbstractContextManager[object]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def mark(self) -> torch.cuda.Event | None:
        """What has been asked for so far."""
        return None if self._stream is None else self._stream.record_event()

    def finish(self) -> None:
        """Wait on the host for all that was asked for."""
        if self._stream is not None:
            self._stream.synchronize()

    def wait(self, mark: torch.cuda.Event | None) -> None:
        """Do nothing more before what was marked is done."""
        if self._stream is not None and mark is not None:
            self._stream.wait_event(mark)
