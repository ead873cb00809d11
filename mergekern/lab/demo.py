"""`mergekern demo`: a small lab of three domains, three merges of it, and what comes of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from mergekern.lab.lab import Settings, default_cache, open_lab
from mergekern.lab.make import Made, ready
from mergekern.lab.runs import demo_run
from mergekern.suite.report import report_text, write_report
from mergekern.suite.results import Results
from mergekern.suite.run import run_suite
from mergekern.suite.schema import load_run

SETTINGS = Settings(
    domains=("math", "coding", "safety"),
    general_share=0.0,  # too few steps to learn it
    base_steps=320,
    expert_steps=120,
    expert_batch=48,
)


@dataclass(frozen=True)
class DemoResult:
    """What the demo made: models and gains of the experts, scores of all, and the report."""

    made: Made
    results: Results
    report: Path


def run_demo(
    output: Path = Path("mergekern-demo"),
    cache: Path | None = None,
    threads: int | None = None,
    console: Console | None = None,
    settings: Settings = SETTINGS,
    limit: int | None = None,
) -> DemoResult:
    """Merge three small experts and show what comes of it; nothing is downloaded.

    The first run trains the models and keeps them in `cache`. Merged models, scores, charts and the
    report go to `output`. limit: items of each task that are asked; all of them when not given
    """
    console = console or Console()
    lab = open_lab((cache or default_cache()).absolute(), settings)
    made = ready(lab, demo_run(lab, limit), output / "demo.yml", threads, console)
    run = load_run(made.run)
    results = run_suite(run, tell=console.print)
    report = write_report(results, run.output, "Three experts and their merges")
    console.print(report_text(results, "Three experts and their merges"), soft_wrap=True)
    console.print(f"models: {lab.folder}\nreport: {report}", soft_wrap=True)
    return DemoResult(made, results, report)
