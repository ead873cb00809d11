"""Training with its progress shown: bars on a terminal, a line for each model elsewhere."""

from __future__ import annotations

import os

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from mergekern.lab.lab import Lab, train_missing


def train_shown(lab: Lab, threads: int | None, console: Console) -> None:
    """Train what the lab lacks."""
    totals = {name: lab.settings.schedule(name)[0] for name in lab.missing()}
    with _progress(console) as progress:
        bars = {
            name: progress.add_task(f"train {name}", total=total, start=False)
            for name, total in totals.items()
        }

        def report(name: str, step: int) -> None:
            if step == 1:
                progress.start_task(bars[name])
            progress.update(bars[name], completed=step)
            if progress.disable and step == totals[name]:
                console.print(f"trained {name}")

        train_missing(lab, threads or _cores(), report)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:18}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
