"""`mergekern demo`: make or find the small experts, merge them, evaluate everything, report."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import mergekern
from mergekern.demo import data
from mergekern.demo.lab import Lab, Settings, default_cache, open_lab, train_missing, write_text
from mergekern.demo.scores import Judge
from mergekern.evaluate.harness import Score, Scores, require
from mergekern.evaluate.report import Row, difference, normalised, table, write_chart

LOCK = "mergekern.lock.json"
# name -> (method, whether it needs the base, parameters); fixed beforehand, not searched for.
MERGES: dict[str, tuple[str, bool, dict[str, Any]]] = {
    "soup": ("linear", False, {}),
    "task_arithmetic": ("task_arithmetic", True, {"weight": 1.0, "lambda_": 0.5}),
    "ties": ("ties", True, {"weight": 1.0, "density": 0.3, "lambda_": 1.0}),
}


@dataclass(frozen=True)
class DemoResult:
    """What the demo made: models, scores, the chart, and how far each merge is above base."""

    lab: Path
    merged: dict[str, Path]
    rows: tuple[Row, ...]
    experts: dict[str, Scores]
    gains: dict[str, Score]
    chart: Path


def run_demo(
    output: Path = Path("mergekern-demo"),
    cache: Path | None = None,
    threads: int | None = None,
    console: Console | None = None,
    settings: Settings | None = None,
) -> DemoResult:
    """Merge three small experts and show what comes of it; nothing is downloaded.

    The first run trains the models and keeps them in `cache`; later ones merge and evaluate only.
    Merged models, scores.json and the chart scores.png go to `output`.
    """
    # Read when the Hugging Face libraries are first imported; everything needed is local.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
    console = console or Console()
    require("lm_eval", "transformers", "tokenizers", "matplotlib")  # not after minutes of training
    lab = open_lab(cache or default_cache(), settings or Settings())
    with _progress(console) as progress:
        _train(lab, threads or _cores(), progress)
        merged = _merge_all(lab, output, threads, progress)
        rows, experts = _evaluate(lab, merged, output, progress)
    result = _result(lab, rows, experts, output)
    _show(result, console)
    return result


def merge_one(lab: Lab, name: str, output: Path, threads: int | None = None) -> float:
    """Merge the lab's experts anew into output/NAME; the seconds that took."""
    method, needs_base, parameters = MERGES[name]
    folder = output / name
    if (folder / LOCK).is_file():  # our own from before; anything else is for merge() to refuse
        shutil.rmtree(folder)
    base = lab.base if needs_base else None
    models = list(lab.experts.values())
    start = time.perf_counter()
    mergekern.merge(method, base=base, models=models, output=folder, threads=threads, **parameters)
    return time.perf_counter() - start


def _train(lab: Lab, threads: int, progress: Progress) -> None:
    totals = {name: lab.settings.schedule(name)[0] for name in lab.missing()}
    bars = {
        name: progress.add_task(f"train {name}", total=total, start=False)
        for name, total in totals.items()
    }

    def report(name: str, step: int) -> None:
        progress.start_task(bars[name])
        progress.update(bars[name], completed=step)
        if step == totals[name]:
            _log(progress, f"trained {name}")

    train_missing(lab, threads, report)


def _merge_all(lab: Lab, output: Path, threads: int | None, progress: Progress) -> dict[str, float]:
    """Seconds per merge."""
    bar = progress.add_task("merge", total=len(MERGES))
    seconds = {}
    for name in MERGES:
        seconds[name] = merge_one(lab, name, output, threads)
        progress.advance(bar)
        _log(progress, f"merged {name}")
    return seconds


def _evaluate(
    lab: Lab, seconds: dict[str, float], output: Path, progress: Progress
) -> tuple[list[Row], dict[str, Scores]]:
    """Scores of all models in the order of the table, and the experts' by domain."""
    judge = Judge(lab)
    bar = progress.add_task("evaluate", total=1 + len(data.DOMAINS) + len(seconds))
    rows: list[Row] = []

    def add(name: str, scores: Scores, taken: float | None = None) -> None:
        rows.append(Row(name, scores, taken))
        progress.advance(bar)
        _log(progress, f"evaluated {name}")

    add("base", judge.score_once(lab.base))
    experts: dict[str, Scores] = {}
    for domain, folder in lab.experts.items():
        experts[domain] = judge.score_once(folder)
        add(f"{domain} expert", experts[domain])
    for name, taken in seconds.items():
        add(name, judge.score(output / name), taken)
    return rows, experts


def _result(lab: Lab, rows: list[Row], experts: dict[str, Scores], output: Path) -> DemoResult:
    """Write the chart and scores.json, and compare every merge with base."""
    base = rows[0].scores
    chart = write_chart(rows, output / "scores.png", "Three experts and their merges")
    report = {
        row.name: {
            "scores": {domain: dataclasses.asdict(s) for domain, s in row.scores.items()},
            "normalised": normalised(row.scores, experts),
            "seconds": row.seconds,
        }
        for row in rows
    }
    write_text(output / "scores.json", json.dumps(report, indent=2) + "\n")
    return DemoResult(
        lab=lab.folder,
        merged={name: output / name for name in MERGES},
        rows=tuple(rows),
        experts=experts,
        gains={r.name: difference(r.scores, base) for r in rows if r.seconds is not None},
        chart=chart,
    )


def _show(result: DemoResult, console: Console) -> None:
    console.print(table(result.rows, result.experts, "Score per domain ± standard error"))
    for name, gain in result.gains.items():
        console.print(f"{name}: {gain.value:+.3f} ± {gain.stderr:.3f} over base on average")
    console.print(f"models: {result.lab}", soft_wrap=True)
    console.print(f"chart:  {result.chart}", soft_wrap=True)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:14}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )


def _log(progress: Progress, line: str) -> None:
    """A plain line where there is no terminal to draw bars on."""
    if progress.disable:
        progress.console.print(line)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
