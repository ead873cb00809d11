"""Tables of scores: per domain with standard errors, means, shares of the experts."""

from __future__ import annotations

import math
from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from mergekern.evaluate.evaluation import (
    Cell,
    Evaluation,
    Shares,
    gain,
    normalised_performance,
    retained,
)
from mergekern.evaluate.score import Score, Scores, mean_of
from mergekern.evaluate.statistics import Interval

WIDTH = 160  # of the table of tasks, whose reasons are long
# The Okabe-Ito colours, which stay apart for colour-blind readers.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")


def mean_score(scores: Scores) -> Score:
    """The mean over domains."""
    return mean_of(list(scores.values()))


def _short(value: float) -> str:
    """.545 for 0.545"""
    return f"{value:.3f}".removeprefix("0")


def cells_text(evaluation: Evaluation) -> str:
    """A line for every task, then the domains and their mean; paths of results come last."""
    rows = Table(box=None, pad_edge=False, show_header=True)
    for column in ("domain", "task", "metric", "score", "95 %", "items", ""):
        rows.add_column(column, no_wrap=column != "")
    for cell in evaluation.cells:
        rows.add_row(cell.domain, cell.task.task, *_cell_columns(cell))
    lines = [_rendered(rows)]
    for domain, score in evaluation.scores.items():
        lines.append(f"{domain}: {_with_error(score)}")
    if len(evaluation.scores) > 1:
        of = f"mean of {len(evaluation.scores)} of {len(evaluation.suite.domains)} domains"
        lines.append(f"{of}: {_with_error(mean_score(evaluation.scores))}")
    lines += [f"note: {note}" for note in evaluation.notes]
    folders = sorted({str(path.parent) for path in evaluation.files})
    lines += [f"results: {folder}" for folder in folders]
    title = f"{evaluation.model} ({evaluation.identity[:12]}), {evaluation.suite.name}"
    return "\n".join([title, *lines])


def shares_text(
    merged: Evaluation, base: Evaluation | None, experts: Mapping[str, Evaluation]
) -> str:
    """What a merge has kept of its experts and of its base; "" without either."""
    lines = []
    if experts:
        shares = normalised_performance(merged, experts)
        lines += _share_lines("of its expert", shares)
        lines.append(f"normalised performance: {_with_interval(shares.mean)}")
    if base is not None:
        shares = retained(merged, base)
        lines += _share_lines("of the base", shares)
        lines.append(f"of the base on average (below 1: forgotten): {_with_interval(shares.mean)}")
        if shares.domains:
            lines.append(f"gain over the base: {_with_interval(gain(merged, base), sign='+')}")
    return "\n".join(lines)


def _share_lines(of: str, shares: Shares) -> list[str]:
    return [f"{domain}, {of}: {_with_interval(i)}" for domain, i in shares.domains.items()]


def _cell_columns(cell: Cell) -> tuple[str, ...]:
    if cell.score is None or cell.stored is None:
        return "", "", "", "", f"{cell.status}: {cell.reason}" if cell.reason else cell.status
    between = cell.interval
    return (
        cell.stored.headline(cell.task),
        _with_error(cell.score),
        "" if between is None else f"{_short(between.low)}–{_short(between.high)}",
        str(cell.score.count or ""),
        "finished before" if cell.status == "found" else "",
    )


def _with_error(score: Score) -> str:
    error = "" if math.isnan(score.stderr) else f" ±{_short(score.stderr)}"
    return f"{_short(score.value)}{error}"


def _with_interval(interval: Interval, sign: str = "") -> str:
    value = format(interval.value, f"{sign}.3f")
    if math.isnan(interval.low):
        return value
    return f"{value} [{interval.low:{sign}.3f}, {interval.high:{sign}.3f}]"


def _rendered(rows: Table) -> str:
    console = Console(width=WIDTH, highlight=False)
    with console.capture() as capture:
        console.print(rows)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())
