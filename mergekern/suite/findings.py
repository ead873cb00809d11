"""Which known findings about merging hold in a run: each with its evidence and a plain verdict.

Every piece of evidence is a difference with its 95 % interval, paired by item where the models were
given the same ones; above 0 speaks for the claim. Intervals are not widened for their number.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from mergekern.evaluate import statistics
from mergekern.evaluate.evaluation import Evaluation
from mergekern.evaluate.statistics import Interval, Items
from mergekern.suite.results import Results, Row, number

Panel = dict[str, list[Items]]  # domain -> the items of its tasks


@dataclass(frozen=True)
class Evidence:
    """One comparison; above 0 speaks for the claim."""

    what: str
    difference: Interval


@dataclass(frozen=True)
class Finding:
    """A claim, where it comes from, and what the run has to say about it.

    unit:  of the differences
    wants: what a run needs to say something
    """

    claim: str
    source: str
    unit: str
    wants: str
    evidence: tuple[Evidence, ...]

    @property
    def verdict(self) -> str:
        """holds (for all, or for some) | does not hold | not shown | not tested here"""
        if not self.evidence:
            return "not tested here"
        found = [each.difference for each in self.evidence]
        shown, refuted = sum(each.low > 0 for each in found), sum(each.high < 0 for each in found)
        if shown == len(found):
            return "holds"
        if shown:
            contrary = f", the contrary for {refuted}" if refuted else ""
            return f"holds for {shown} of {len(found)}{contrary}"
        return "does not hold" if refuted else "not shown"

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        evidence = [
            {"what": e.what, **{k: number(v) for k, v in vars(e.difference).items()}}
            for e in self.evidence
        ]
        return {
            "claim": self.claim,
            "source": self.source,
            "verdict": self.verdict,
            "unit": self.unit,
            "evidence": evidence,
        }


def find(
    results: Results, plain: str | None = None, weaker: Mapping[str, Any] | None = None
) -> tuple[Finding, ...]:
    """All findings, those that the run cannot speak about included.

    plain: the method that the others are compared with;  weaker: results.json over a weaker base
    """
    return (
        Finding(
            "Tuned merges, sparsified ones among them, beat the plain mean",
            "MergeBench",
            "mean score over domains, the method less the plain mean",
            "plain, and methods with more than one candidate",
            _beat(results, plain, tuned=True),
        ),
        Finding(
            "Merges that nothing was chosen for beat the plain mean",
            "the papers of each method",
            "mean score over domains, the method less the plain mean",
            "plain, and methods with one candidate",
            _beat(results, plain, tuned=False),
        ),
        Finding(
            "Merges forget less of what the base knew than the experts do",
            "MergeBench",
            "score on the general sets, the merge less the experts' mean",
            "forgetting",
            _forget_less(results),
        ),
        Finding(
            "Merges are better than the experts in domains that are not the expert's own",
            "MergeBench",
            "score on a domain, the merge less the mean of the experts of others",
            "whole_experts",
            _better_elsewhere(results),
        ),
        Finding(
            "More experts lower the scores per domain",
            "arXiv:2410.03617",
            "score on the merged experts' domains, fewer experts less more",
            "methods with experts, some of them, beside the same method with all",
            _more_experts(results),
        ),
        Finding(
            "Stronger bases merge better",
            "arXiv:2410.03617, MergeBench",
            "normalised performance, this run less that over the weaker base",
            "weaker, and its run",
            _stronger_base(results, weaker),
        ),
    )


def _beat(results: Results, plain: str | None, tuned: bool) -> tuple[Evidence, ...]:
    reference = next((row for row in results.methods if row.method == plain), None)
    if reference is None:
        return ()
    others = [row for row in results.methods if row is not reference and _is_tuned(row) == tuned]
    than = panel([reference.evaluation])
    return _each((row.method, panel([row.evaluation]), than) for row in others)


def _forget_less(results: Results) -> tuple[Evidence, ...]:
    experts = panel(results.expert_forgetting.values())
    return _each((row.method, panel([row.forgetting]), experts) for row in results.methods)


def _better_elsewhere(results: Results) -> tuple[Evidence, ...]:
    elsewhere: Panel = {}
    for domain in results.experts:
        others = [found for own, found in results.experts.items() if own != domain]
        elsewhere |= {d: its for d, its in panel(others).items() if d == domain}
    return _each((row.method, panel([row.evaluation]), elsewhere) for row in results.methods)


def _more_experts(results: Results) -> tuple[Evidence, ...]:
    found: list[Evidence] = []
    for kind in dict.fromkeys(_kind(row) for row in results.parts if row.chosen):
        by_size: dict[int, list[Row]] = {}
        for row in results.rows:
            if row.chosen is not None and _kind(row) == kind:
                size = len(results.experts if row.experts is None else row.experts)
                by_size.setdefault(size, []).append(row)
        panels = {s: panel(row.evaluation for row in by_size[s]) for s in sorted(by_size)}
        steps = list(pairwise(panels))
        if len(panels) > 2:
            steps.append((min(panels), max(panels)))
        found += _each((f"{kind[0]}: {a} less {b}", panels[a], panels[b]) for a, b in steps)
    return tuple(found)


def _stronger_base(results: Results, weaker: Mapping[str, Any] | None) -> tuple[Evidence, ...]:
    """Different models: their intervals are independent, and half-widths add squared."""
    shares = {row["method"]: row["performance"] for row in (weaker or {}).get("methods", ())}
    found = []
    for row in results.methods:
        ours, theirs = results.performance(row.evaluation), shares.get(row.method)
        if ours is None or theirs is None or None in theirs["mean"] or math.isnan(ours.mean.low):
            continue
        other = Interval(*theirs["mean"])
        value = ours.mean.value - other.value
        below = math.hypot(ours.mean.value - ours.mean.low, other.high - other.value)
        above = math.hypot(ours.mean.high - ours.mean.value, other.value - other.low)
        found.append(Evidence(row.method, Interval(value, value - below, value + above)))
    return tuple(found)


def panel(evaluations: Iterable[Evaluation | None]) -> Panel:
    """The items of several models, each item's score their mean; of the domains that have any."""
    by_domain: dict[str, list[list[Items]]] = {}
    for found in evaluations:
        for domain in () if found is None else found.scores:
            assert found is not None
            by_domain.setdefault(domain, []).append([cell.items for cell in found.of(domain)])
    return {
        domain: [_mean(task) for task in zip(*models, strict=True)]
        for domain, models in by_domain.items()
    }


def _mean(several: Collection[Items]) -> Items:
    first = next(iter(several))
    if any(items.keys() != first.keys() for items in several):
        return {}
    return {item: sum(items[item] for items in several) / len(several) for item in first}


def _each(comparisons: Iterable[tuple[str, Panel, Panel]]) -> tuple[Evidence, ...]:
    """Evidence of the pairs that have domains in common, over these."""
    found = []
    for what, ours, theirs in comparisons:
        pairs = [(ours[d], theirs[d]) for d in ours if d in theirs and _paired(ours[d], theirs[d])]
        if pairs:
            found.append(Evidence(what, statistics.mean_difference(pairs)))
    return tuple(found)


def _paired(ours: Sequence[Items], theirs: Sequence[Items]) -> bool:
    return len(ours) == len(theirs) and all(map(statistics.paired, ours, theirs))


def _is_tuned(row: Row) -> bool:
    return row.chosen is not None and len(row.chosen.facts["candidates"]) > 1


def _kind(row: Row) -> tuple[str, str]:
    """What merges of more and fewer experts have in common."""
    assert row.chosen is not None
    return row.chosen.merge_method, repr(sorted(row.chosen.point.items()))
