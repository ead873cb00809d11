"""What a run says about known findings, over results that are made up."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from made_results import result

from mergekern.evaluate import Cell, Evaluation, Interval, Suite, Task
from mergekern.suite.findings import Evidence, Finding, find
from mergekern.suite.results import Chosen, Results, Row

ITEMS = 60
NAMES = ("math", "coding", "safety")


@pytest.fixture
def evaluated(tmp_path: Path):
    """(share of right answers by domain) -> an evaluation; the same items are easy for all"""
    count = iter(range(1000))

    def make(**right: float) -> Evaluation:
        domains = {domain: (Task(task=domain),) for domain in right}
        cells = []
        for domain, share in right.items():
            scores = [float(item < share * ITEMS) for item in range(ITEMS)]
            mean = {"acc,none": sum(scores) / ITEMS, "acc_stderr,none": 0.01}
            stored = result(tmp_path / str(next(count)), domain, mean, {"acc,none": scores})
            cells.append(Cell(domain, Task(task=domain), "done", stored=stored))
        return Evaluation("model", "id", Suite(name="s", domains=domains), tuple(cells))

    return make


def everywhere(share: float) -> dict[str, float]:
    return dict.fromkeys(NAMES, share)


def chosen(candidates: int = 1, method: str = "linear") -> Chosen:
    return Chosen({}, method, {"candidates": [{}] * candidates})


def claims(results: Results, **options: object) -> Mapping[str, Finding]:
    found = find(results, **options)  # type: ignore[arg-type]
    return dict(
        zip(("tuned", "untuned", "forget", "elsewhere", "more", "base"), found, strict=True)
    )


def test_methods_are_compared_with_the_plain_one_item_by_item(evaluated) -> None:
    rows = [
        Row("soup", chosen(), evaluated(**everywhere(0.5))),
        Row("ties", chosen(4), evaluated(**everywhere(0.8))),
        Row("dare", chosen(2), evaluated(**everywhere(0.2))),
        Row("fisher", chosen(), evaluated(**everywhere(0.5))),
        Row("lost", failed="why"),
    ]
    found = claims(Results(None, None, {}, tuple(rows)), plain="soup")
    ties, dare = found["tuned"].evidence
    assert ties.what == "ties" and ties.difference.value == pytest.approx(0.3)
    assert 0.2 < ties.difference.low < 0.3 < ties.difference.high < 0.4
    assert dare.difference.value == pytest.approx(-0.3)
    assert found["tuned"].verdict == "holds for 1 of 2, the contrary for 1"
    assert [e.what for e in found["untuned"].evidence] == ["fisher"]
    assert found["untuned"].verdict == "not shown"
    assert not claims(Results(None, None, {}, tuple(rows)))["tuned"].evidence  # nothing is plain


def test_what_is_forgotten_is_compared_with_the_experts_mean(evaluated) -> None:
    experts = {
        domain: evaluated(general=share)
        for domain, share in zip(NAMES, (0.2, 0.4, 0.6), strict=True)
    }
    row = Row("soup", chosen(), forgetting=evaluated(general=0.7))
    found = claims(Results(None, None, {}, (row,), experts))["forget"]
    [evidence] = found.evidence
    assert evidence.difference.value == pytest.approx(0.3) and found.verdict == "holds"


def test_elsewhere_is_where_an_expert_is_none(evaluated) -> None:
    experts = {domain: evaluated(**{**everywhere(0.3), domain: 1.0}) for domain in NAMES}
    row = Row("soup", chosen(), evaluated(**everywhere(0.5)))
    [evidence] = claims(Results(None, None, experts, (row,)))["elsewhere"].evidence
    assert evidence.difference.value == pytest.approx(0.2)
    alone = {domain: evaluated(**{domain: 1.0}) for domain in NAMES}
    found = claims(Results(None, None, alone, (row,)))["elsewhere"]
    assert found.verdict == "not tested here"


def test_more_experts_are_compared_on_the_domains_that_are_merged(evaluated) -> None:
    experts = {domain: evaluated(**{domain: 1.0}) for domain in NAMES}
    pairs = [("math", "coding"), ("coding", "safety"), ("safety", "math")]
    rows = [Row("soup", chosen(), evaluated(**everywhere(0.6)))]
    rows += [
        Row(f"soup-{n}", chosen(), evaluated(**dict.fromkeys(pair, 0.8)), experts=pair)
        for n, pair in enumerate(pairs)
    ]
    rows.append(Row("ties", chosen(method="ties"), evaluated(**everywhere(0.1))))
    found = claims(Results(None, None, experts, tuple(rows)))["more"]
    [evidence] = found.evidence
    assert evidence.what == "linear: 2 less 3" and evidence.difference.value == pytest.approx(0.2)
    assert found.verdict == "holds"


def test_a_stronger_base_is_compared_with_a_weaker_ones_results(evaluated) -> None:
    experts = {domain: evaluated(**{domain: 0.8}) for domain in NAMES}
    row = Row("soup", chosen(), evaluated(**everywhere(0.6)))
    weaker = {
        "methods": [
            {"method": "soup", "performance": {"mean": [0.5, 0.4, 0.6]}},
            {"method": "gone", "performance": None},
        ]
    }
    found = claims(Results(None, None, experts, (row,)), weaker=weaker)["base"]
    [evidence] = found.evidence
    assert evidence.difference.value == pytest.approx(0.25)
    # Half-widths of independent intervals add squared: wider than either.
    assert evidence.difference.low < 0.15 and evidence.difference.high > 0.35
    assert claims(Results(None, None, experts, (row,)))["base"].verdict == "not tested here"


@pytest.mark.parametrize(
    ("intervals", "verdict"),
    [
        ([], "not tested here"),
        ([(0.1, 0.2)], "holds"),
        ([(0.1, 0.2), (-0.1, 0.1)], "holds for 1 of 2"),
        ([(-0.1, 0.1)], "not shown"),
        ([(-0.1, 0.1), (-0.2, -0.1)], "does not hold"),
    ],
)
def test_verdicts_are_plain(intervals: list[tuple[float, float]], verdict: str) -> None:
    evidence = tuple(Evidence("x", Interval((a + b) / 2, a, b)) for a, b in intervals)
    finding = Finding("claim", "paper", "unit", "wants", evidence)
    assert finding.verdict == verdict == finding.as_json()["verdict"]
