"""The report of a run: results.json, report.md and its charts, report.html with all inside."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergekern.evaluate.evaluation import Evaluation, Shares
from mergekern.evaluate.report import COLOURS
from mergekern.evaluate.score import Score
from mergekern.evaluate.statistics import Interval
from mergekern.suite.results import MIB, RESULTS, Results, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RADAR, RUNTIME = "radar.png", "runtime.png"
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem }}
table {{ border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums }}
th, td {{ border-bottom: 1px solid #ccc; padding: .25rem .6rem; text-align: right }}
th:first-child, td:first-child {{ text-align: left }}
img {{ max-width: 100% }}
</style></head><body>
{body}
</body></html>
"""


def write_report(results: Results, folder: Path, title: str = "Merging methods") -> Path:
    """Write all of it; returns the path of report.md."""
    from markdown_it import MarkdownIt

    folder.mkdir(parents=True, exist_ok=True)
    content = json.dumps(results.as_json(), indent=2, ensure_ascii=False) + "\n"
    (folder / RESULTS).write_text(content, encoding="utf-8")
    charts = [_chart(folder / RADAR, results, _radar), _chart(folder / RUNTIME, results, _runtime)]
    text = report_text(results, title)
    text += "".join(f"\n![{chart.stem}]({chart.name})\n" for chart in charts if chart is not None)
    (folder / "report.md").write_text(text, encoding="utf-8")
    body = MarkdownIt("commonmark").enable("table").render(text)
    for chart in charts:
        if chart is not None:
            data = base64.b64encode(chart.read_bytes()).decode()
            body = body.replace(f'src="{chart.name}"', f'src="data:image/png;base64,{data}"')
    (folder / "report.html").write_text(PAGE.format(title=title, body=body), encoding="utf-8")
    return folder / "report.md"


def report_text(results: Results, title: str = "Merging methods") -> str:
    """The tables, in Markdown."""
    lines = [f"# {title}", "", "## Scores by domain, ± standard error", ""]
    lines += _table(*_scores(results))
    lines += ["", "Normalised: the mean over domains of score / score of the domain's own expert,"]
    lines += ["with its 95 % interval where all models were given the same items.", ""]
    if results.parts:
        lines += ["## Merges of some of the experts, on their own domains", ""]
        lines += [*_table(*_parts(results)), ""]
    if any(results.kept(row.forgetting) is not None for row in results.rows):
        lines += ["## Kept of the base on general sets (below 1: forgotten)", ""]
        lines += _table(*_kept(results))
        lines.append("")
    lines += ["## What it took", ""]
    lines += _table(*_costs(results))
    lines += ["", "Merging and validation are of all candidates; candidates that one read of the"]
    lines += ["inputs made share its time. Peak memory is that of the merging process.", ""]
    lines += _findings(results)
    lines += _notes(results)
    lines += _gaps(results)
    return "\n".join(lines) + "\n"


Cells = Sequence[str]


def _scores(results: Results) -> tuple[Cells, list[Cells]]:
    domains = _domains(results)
    heads = ["model", *domains, "mean", "normalised"]
    rows: list[Cells] = []
    for name, found in _models(results):
        scores = {} if found is None else found.scores
        own = [_score(scores.get(domain)) for domain in domains]
        known = [scores[domain].value for domain in domains if domain in scores]
        whole = len(known) == len(domains)
        mean = f"{sum(known) / len(known):.3f}" if known and whole else ""
        of_itself = name.startswith("expert") and not whole
        shares = None if of_itself else results.performance(found)
        rows.append([name, *own, mean, _interval(shares.mean) if shares else ""])
    return heads, rows


def _kept(results: Results) -> tuple[Cells, list[Cells]]:
    assert results.base_forgetting is not None
    domains = list(results.base_forgetting.scores)
    rows: list[Cells] = []
    experts = {f"expert of {domain}": f for domain, f in results.expert_forgetting.items()}
    merges = {row.method: row.forgetting for row in results.methods}
    for name, found in (experts | merges).items():
        shares = results.kept(found)
        own: dict[str, Interval] = dict(shares.domains) if shares else {}
        cells = [_interval(own[domain]) if domain in own else "" for domain in domains]
        rows.append([name, *cells, _interval(shares.mean) if shares else ""])
    return ["model", *domains, "mean"], rows


def _parts(results: Results) -> tuple[Cells, list[Cells]]:
    rows: list[Cells] = []
    for row in results.parts:
        shares = results.performance(row.evaluation)
        told = _interval(shares.mean) if shares else ""
        rows.append([row.method, ", ".join(row.experts or ()), told])
    return ["method", "experts", "normalised"], rows


def _findings(results: Results) -> list[str]:
    """What is known about merging, and whether it shows here."""
    if not any(finding.evidence for finding in results.findings):
        return []
    lines = ["## What is known of merging, and what holds here", ""]
    for finding in results.findings:
        lines.append(f"- **{finding.claim}** ({finding.source}): **{finding.verdict}**.")
        told = [f"{e.what} {_interval(e.difference, '+')}" for e in finding.evidence]
        lines.append(
            f"  {finding.unit}: {'; '.join(told)}." if told else f"  Wants {finding.wants}."
        )
    lines += ["", "Differences with their 95 % intervals, paired by item, not widened for their"]
    return [
        *lines,
        "number: a claim holds where they are above 0, the contrary where they are below.",
        "",
    ]


def _costs(results: Results) -> tuple[Cells, list[Cells]]:
    heads = ["method", "chosen", "candidates", "merging", "validation", "evaluation", "peak"]
    rows: list[Cells] = []
    for row in results.methods:
        if row.chosen is None:
            rows.append([row.method, *[""] * 6])
            continue
        facts = row.chosen.facts
        point = ", ".join(f"{key}={value}" for key, value in row.chosen.point.items())
        rows.append(
            [
                row.method,
                point or "as given",
                str(len(facts["candidates"])),
                *(_seconds(facts[key]) for key in ("merge_seconds", "validation_seconds")),
                _seconds(row.evaluation_seconds),
                f"{facts['peak'] / MIB:.0f} MiB",
            ]
        )
    return heads, rows


def _notes(results: Results) -> list[str]:
    """What the merges had to say."""
    lines = [
        f"- {row.method}: {note}"
        for row in results.rows
        if row.chosen is not None
        for note in row.chosen.facts["notes"]
    ]
    return ["## Notes of the merges", "", *lines, ""] if lines else []


def _gaps(results: Results) -> list[str]:
    """What failed or could not be run, with its reason."""
    lines = [f"- {row.method}: {row.failed}" for row in results.rows if row.failed]
    for name, found in _models(results):
        if found is not None:
            gone = (cell for cell in found.cells if cell.stored is None)
            lines += [f"- {name}, {cell.task.task}: {cell.status}: {cell.reason}" for cell in gone]
    return ["## What is missing", "", *lines, ""] if lines else []


def _domains(results: Results) -> list[str]:
    suites = [found.suite for _, found in _models(results) if found is not None]
    return list(dict.fromkeys(domain for suite in suites for domain in suite.domains))


def _models(results: Results) -> Iterator[tuple[str, Evaluation | None]]:
    yield "base", results.base
    for domain, found in results.experts.items():
        yield f"expert of {domain}", found
    for row in results.methods:
        yield row.method, row.evaluation


def _table(heads: Cells, rows: Sequence[Cells]) -> list[str]:
    ruled = ["---", *["---:"] * (len(heads) - 1)]
    return ["| " + " | ".join(cells).replace("\n", " ") + " |" for cells in (heads, ruled, *rows)]


def _score(score: Score | None) -> str:
    if score is None:
        return ""
    error = "" if math.isnan(score.stderr) else f" ± {score.stderr:.3f}"
    return f"{score.value:.3f}{error}"


def _interval(interval: Interval, sign: str = "") -> str:
    if math.isnan(interval.value):
        return ""
    value, low, high = (format(each, f"{sign}.3f") for each in vars(interval).values())
    return value if math.isnan(interval.low) else f"{value} [{low}, {high}]"


def _seconds(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.1f} s"


def _chart(path: Path, results: Results, draw: Callable[[Any, Results], bool]) -> Path | None:
    """Draw a chart; None, and no file, where there is nothing to draw."""
    # Not pyplot: a figure of its own leaves the caller's backend and figures alone.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 5.0), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    path.unlink(missing_ok=True)
    if not draw(figure, results):
        return None
    figure.savefig(path)
    return path


def _shares_of(results: Results) -> list[tuple[Row, Shares]]:
    pairs = ((row, results.performance(row.evaluation)) for row in results.methods)
    return [(row, shares) for row, shares in pairs if shares is not None and shares.domains]


def _radar(figure: Any, results: Results) -> bool:
    """Normalised performance by domain, a polygon for each method."""
    found = _shares_of(results)
    domains = list(found[0][1].domains) if found else []
    if len(domains) < 3:  # a polygon needs corners
        return False
    axes: Axes = figure.add_subplot(projection="polar")
    angles = [2 * math.pi * place / len(domains) for place in range(len(domains))]
    for number, (row, shares) in enumerate(found):
        values = [shares.domains[domain].value for domain in domains if domain in shares.domains]
        if len(values) == len(domains):
            style = ("-", "--", ":")[number // len(COLOURS) % 3]
            colour = COLOURS[number % len(COLOURS)]
            axes.plot([*angles, 0.0], [*values, values[0]], style, color=colour, label=row.method)
    axes.plot([*angles, 0.0], [1.0] * (len(domains) + 1), color="0.5", linewidth=1, label="experts")
    axes.set_xticks(angles, domains)
    axes.set_ylim(0, None)
    figure.legend(loc="outside right upper", frameon=False)
    figure.suptitle("Score / score of the domain's own expert")
    return True


def _runtime(figure: Any, results: Results) -> bool:
    """Normalised performance against the time to find the merge."""
    found = [(row, shares) for row, shares in _shares_of(results) if row.seconds > 0]
    if not found:
        return False
    axes: Axes = figure.add_subplot()
    for number, (row, shares) in enumerate(found):
        mean, colour = shares.mean, COLOURS[number % len(COLOURS)]
        if not math.isnan(mean.low):
            axes.plot([row.seconds] * 2, [mean.low, mean.high], color=colour, linewidth=1)
        axes.plot([row.seconds], [mean.value], "o", color=colour)
        axes.annotate(
            row.method, (row.seconds, mean.value), (6, 4), textcoords="offset points", fontsize=8
        )
    axes.set_xscale("log")
    axes.set(xlabel="merging and validation, s", ylabel="normalised performance")
    axes.spines[["top", "right"]].set_visible(False)
    return True
