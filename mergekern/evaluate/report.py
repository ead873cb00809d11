"""Tables and charts of scores: per domain with standard errors, means, shares of the experts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE
from rich.table import Table

from mergekern.errors import MergeError
from mergekern.evaluate.harness import Score, Scores

# The Okabe-Ito colours, which stay apart for colour-blind readers.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")


@dataclass(frozen=True)
class Row:
    """One evaluated model; `seconds` is what merging it took, None when it is no merge."""

    name: str
    scores: Scores
    seconds: float | None = None


def mean_score(scores: Scores) -> Score:
    """The mean over domains; items of different domains are independent, so errors add squared."""
    n = len(scores)
    return Score(
        sum(s.value for s in scores.values()) / n,
        math.sqrt(sum(s.stderr**2 for s in scores.values())) / n,
        sum(s.count for s in scores.values()),
    )


def difference(a: Scores, b: Scores) -> Score:
    """mean(a) - mean(b), with the standard error of unpaired samples.

    Both models answer the same items, so pairing would give a smaller error: this one is careful.
    """
    first, second = mean_score(a), mean_score(b)
    return Score(first.value - second.value, math.hypot(first.stderr, second.stderr), first.count)


def normalised(scores: Scores, experts: Mapping[str, Scores]) -> float:
    """Mean over domains of score / score of that domain's expert: 1 is as good as the experts."""
    missing = sorted(set(scores) - set(experts))
    if missing:
        raise MergeError(f"no expert to normalise the {missing[0]} score by")
    # An expert that scores nothing in its own domain leaves nothing to compare with.
    ratios = [
        score.value / own if (own := experts[domain][domain].value) else math.nan
        for domain, score in scores.items()
    ]
    return sum(ratios) / len(ratios)


def _short(value: float) -> str:
    """.545 for 0.545"""
    return f"{value:.3f}".removeprefix("0")


def table(rows: Sequence[Row], experts: Mapping[str, Scores], title: str = "Scores") -> Table:
    """A rich table with one line per model, narrow enough for a terminal of 80 columns."""
    result = Table(title=title, box=SIMPLE, padding=0, show_edge=False)
    result.add_column("model", no_wrap=True)
    for column in (*rows[0].scores, "mean", "normalised", "merge s"):
        result.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        scores = [*row.scores.values(), mean_score(row.scores)]
        result.add_row(
            row.name,
            *(f"{_short(s.value)} ±{_short(s.stderr)}" for s in scores),
            _short(normalised(row.scores, experts)),
            "" if row.seconds is None else f"{row.seconds:.2f}",
        )
    return result


def write_chart(rows: Sequence[Row], path: Path, title: str = "Scores") -> Path:
    """A bar chart as PNG: models side by side, one bar per domain, standard errors as whiskers."""
    # Not pyplot: a figure of its own leaves the caller's backend and figures alone.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    domains = list(rows[0].scores)
    figure = Figure(figsize=(max(6.0, 1.4 * len(rows)), 4.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    width = 0.8 / len(domains)
    for d, domain in enumerate(domains):
        at = [r + (d - (len(domains) - 1) / 2) * width for r in range(len(rows))]
        scores = [row.scores[domain] for row in rows]
        axes.bar(
            at,
            [s.value for s in scores],
            width,
            yerr=[s.stderr for s in scores],
            capsize=2,
            label=domain,
            color=COLOURS[d % len(COLOURS)],
        )
    means = [mean_score(row.scores).value for row in rows]
    axes.plot(range(len(rows)), means, "kD", markersize=5, label="mean")
    axes.set_xticks(range(len(rows)), [row.name for row in rows])
    axes.set(ylim=(0, 1.08), ylabel="score ± standard error", title=title)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=len(domains) + 1, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path
