"""The live bar of a merge, on a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)


class Bar:
    """A progress.Progress that shows tensors, GB/s, time left."""

    def __init__(self, console: Console | None = None) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[done]}/{task.fields[tensors]} tensors"),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console or Console(stderr=True),
        )

    def start(self, total_bytes: int, tensors: int) -> None:
        self._done, self._total = 0, total_bytes
        self._bar.start()
        self._task: TaskID = self._bar.add_task("merge", total=total_bytes, done=0, tensors=tensors)

    def more(self, nbytes: int) -> None:
        self._total += nbytes
        self._bar.update(self._task, total=self._total)

    def advance(self, nbytes: int, tensors: int, phase: str) -> None:
        self._done += tensors
        self._bar.update(self._task, advance=nbytes, description=phase, done=self._done)

    def stop(self) -> None:
        self._bar.stop()
