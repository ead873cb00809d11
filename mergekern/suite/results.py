"""What a run came to: of every method its best merge, its scores, and what they cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mergekern.evaluate.evaluation import (
    Evaluation,
    Shares,
    normalised_performance,
    retained,
)
from mergekern.evaluate.score import Score
from mergekern.evaluate.statistics import Interval
from mergekern.suite.state import Facts

if TYPE_CHECKING:
    from mergekern.suite.findings import Finding

MIB = 1 << 20
RESULTS = "results.json"


@dataclass(frozen=True)
class Chosen:
    """The merge that stands for its method.

    facts: of all candidates together: merge_seconds, validation_seconds, peak (bytes of the largest
           process), candidates with their surrogate scores, notes of their merges
    """

    point: Mapping[str, Any]
    merge_method: str
    facts: Facts = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """A method.

    failed:  why it has no evaluation
    experts: the domains whose experts it merges; None: all of them
    """

    method: str
    chosen: Chosen | None = None
    evaluation: Evaluation | None = None
    forgetting: Evaluation | None = None
    evaluation_seconds: float = math.nan
    failed: str = ""
    experts: tuple[str, ...] | None = None

    @property
    def seconds(self) -> float:
        """MergeBench's runtime: merging and validating every candidate."""
        if self.chosen is None:
            return math.nan
        facts = self.chosen.facts
        return float(facts["merge_seconds"] + facts["validation_seconds"])


@dataclass(frozen=True)
class Results:
    """Everything a report says."""

    base: Evaluation | None
    base_forgetting: Evaluation | None
    experts: Mapping[str, Evaluation]
    rows: tuple[Row, ...]
    expert_forgetting: Mapping[str, Evaluation] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()

    @property
    def methods(self) -> tuple[Row, ...]:
        """Those that merge all experts."""
        return tuple(row for row in self.rows if row.experts is None)

    @property
    def parts(self) -> tuple[Row, ...]:
        """Those that merge some of the experts."""
        return tuple(row for row in self.rows if row.experts is not None)

    def performance(self, evaluation: Evaluation | None) -> Shares | None:
        """score / that of the domain's own expert, on the domains that it was evaluated on."""
        if evaluation is None or not self.experts:
            return None
        asked = evaluation.suite.domains
        own = {domain: found for domain, found in self.experts.items() if domain in asked}
        return normalised_performance(evaluation, own)

    def kept(self, forgetting: Evaluation | None) -> Shares | None:
        """score on the general sets / the base's: below 1 is forgotten."""
        if forgetting is None or self.base_forgetting is None:
            return None
        return retained(forgetting, self.base_forgetting)

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "base": _evaluation(self.base),
            "base_forgetting": _evaluation(self.base_forgetting),
            "base_performance": _shares(self.performance(self.base)),
            "experts": {domain: _evaluation(found) for domain, found in self.experts.items()},
            "expert_forgetting": {d: _evaluation(f) for d, f in self.expert_forgetting.items()},
            "methods": [self._row(row) for row in self.rows],
            "findings": [finding.as_json() for finding in self.findings],
        }

    def _row(self, row: Row) -> dict[str, Any]:
        found: dict[str, Any] = {"method": row.method, "failed": row.failed}
        if row.experts is not None:
            found["experts"] = list(row.experts)
        if row.chosen is not None:
            found |= {
                "merge_method": row.chosen.merge_method,
                "parameters": dict(row.chosen.point),
                **row.chosen.facts,
            }
        return found | {
            "evaluation_seconds": number(row.evaluation_seconds),
            "evaluation": _evaluation(row.evaluation),
            "performance": _shares(self.performance(row.evaluation)),
            "forgetting": _evaluation(row.forgetting),
            "kept": _shares(self.kept(row.forgetting)),
        }


def _evaluation(found: Evaluation | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "model": found.model,
        "identity": found.identity,
        "domains": {domain: _score(score) for domain, score in found.scores.items()},
        "tasks": {
            cell.task.task: None if cell.score is None else _score(cell.score)
            for cell in found.cells
        },
        "missing": {cell.task.task: cell.reason for cell in found.cells if cell.stored is None},
        "files": [str(path) for path in found.files],
    }


def _score(score: Score) -> dict[str, Any]:
    return {"value": score.value, "stderr": number(score.stderr), "count": score.count}


def _shares(shares: Shares | None) -> dict[str, Any] | None:
    if shares is None:
        return None
    domains = {domain: _interval(interval) for domain, interval in shares.domains.items()}
    return {"mean": _interval(shares.mean), "least": number(shares.least), "domains": domains}


def _interval(interval: Interval) -> list[float | None]:
    return [number(each) for each in (interval.value, interval.low, interval.high)]


def number(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else value
