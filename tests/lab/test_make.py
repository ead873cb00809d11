"""A lab that is made and run, over models that know nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from labs import TINY, trained
from rich.console import Console
from typer.testing import CliRunner

from mergekern import cli
from mergekern.collect import collect
from mergekern.errors import EvaluationError
from mergekern.evaluate import Interval
from mergekern.lab import make, make_lab, run_demo, statistics
from mergekern.lab.lab import open_lab
from mergekern.suite import load_run, plan_suite

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the lab of TINY, and the weaker one."""
    folder = tmp_path_factory.mktemp("cache")
    trained(open_lab(folder, TINY))
    trained(open_lab(folder, replace(TINY, base_steps=1)))
    return folder


@pytest.fixture(scope="module", autouse=True)
def few_samples() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "SAMPLES", 3)
        yield


@pytest.fixture(scope="module")
def made(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> make.Made:
    output = tmp_path_factory.mktemp("made")
    return make_lab(output, cache, 1, QUIET, TINY, weaker_base=True, limit=3)


def test_what_is_made_runs_as_it_is(made: make.Made) -> None:
    run = load_run(made.run)
    lines = plan_suite(run)
    for method in ("soup", "ties", "dare", "consensus", "fisher", "localize_and_stitch"):
        assert method in run.methods
        assert any(line.startswith(f"{method}/") for line in lines)
    assert run.weaker == made.run.parent / "weaker.yml" and load_run(run.weaker).plain == "soup"
    # Each expert is in as many merges of every size.
    fewer = [entry.experts for entry in run.methods.values() if entry.experts is not None]
    assert sorted(map(len, fewer)) == [2] * 5 + [3] * 5 + [4] * 5
    for domain in run.experts:
        assert [sum(domain in its for its in fewer if len(its) == n) for n in (2, 3, 4)] == [
            2,
            3,
            4,
        ]
    assert len(set(map(frozenset, fewer))) == 15


def test_the_items_to_choose_by_are_not_those_that_are_reported(made: make.Made) -> None:
    run = load_run(made.run)
    assert run.surrogate is not None and run.surrogate.suite == "local-surrogate"
    assert run.evaluation.suite == "local"


def test_what_is_finished_is_not_done_again(
    made: make.Made, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_again(*_: Any, **__: Any) -> None:
        pytest.fail("done again")

    monkeypatch.setattr(statistics.mergekern, "collect", not_again)
    monkeypatch.setattr("mergekern.evaluate.lmeval.LmEval.prepare", not_again)
    again = make_lab(made.run.parent, cache, 1, QUIET, TINY, weaker_base=True, limit=3)
    assert again.gains == made.gains


def test_experts_that_are_none_are_told(made: make.Made, cache: Path) -> None:
    assert made.short == list(TINY.domains)  # they know nothing
    with pytest.raises(EvaluationError, match=r"experts of instruction.*not above base by 0\.15"):
        made.check()
    wide = {domain: Interval(0.5, 0.4, 0.6) for domain in TINY.domains}
    replace(made, gains=wide).check()
    assert replace(made, gains={**wide, "math": Interval(0.5, 0.1, 0.9)}).short == ["math"]


def test_statistics_are_of_what_the_expert_was_taught(made: make.Made) -> None:
    path = statistics.path_of(made.lab, "math", "fisher")
    data = made.lab.folder / "data" / "math.jsonl"
    found = collect(
        "fisher", made.lab.experts["math"], data, samples=3, output=path, embeddings=True
    )
    assert found.found  # the very same question


def test_the_command_says_what_is_wrong(
    made: make.Made, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(make, "Settings", lambda: TINY)
    line = ["lab", "make", "--output", str(made.run.parent), "--cache", str(cache), "--limit", "3"]
    found = CliRunner().invoke(cli.app, line)
    assert found.exit_code == 1 and "too close" in found.stdout
    assert "error: the experts of instruction" in found.stderr


def test_the_demo_is_a_run_on_a_small_lab(tmp_path: Path) -> None:
    small = replace(TINY, domains=("math", "coding"))
    trained(open_lab(tmp_path / "cache", small))
    result = run_demo(tmp_path / "out", tmp_path / "cache", 1, QUIET, small, limit=3)
    assert [row.method for row in result.results.rows] == ["soup", "task_arithmetic", "ties"]
    assert not any(row.failed for row in result.results.rows)
    text = result.report.read_text()
    for part in ("| soup |", "| expert of coding |", "Kept of the base", "what holds here"):
        assert part in text
