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
from mergekern.methods import all_methods
from mergekern.suite import load_run, plan_suite

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
QUIET = Console(quiet=True)
SMALL = replace(TINY, domains=("math", "coding", "safety"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the lab, and the weaker one."""
    folder = tmp_path_factory.mktemp("cache")
    trained(open_lab(folder, SMALL))
    trained(open_lab(folder, replace(SMALL, base_steps=2)))
    return folder


@pytest.fixture(scope="module", autouse=True)
def few_samples() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "SAMPLES", 3)
        yield


@pytest.fixture(scope="module")
def made(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> make.Made:
    output = tmp_path_factory.mktemp("made")
    return make_lab(output, cache, 1, QUIET, SMALL, weaker_base=True, limit=3)


def test_what_is_made_runs_as_it_is(made: make.Made) -> None:
    run = load_run(made.run)
    lines = plan_suite(run)
    eight = ("soup", "task_arithmetic", "ties", "dare", "consensus", "localize_and_stitch")
    for method in (*eight, "fisher", "regmean", "regmean_plusplus", "stitch"):
        assert method in run.methods
        assert any(line.startswith(f"{method}/") for line in lines)
    assert run.weaker == made.run.parent / "weaker.yml" and load_run(run.weaker).plain == "soup"
    # Every size short of all, and each expert in as many merges of it.
    fewer = [entry.experts for entry in run.methods.values() if entry.experts is not None]
    assert list(map(len, fewer)) == [2] * 3
    assert all(sum(domain in its for its in fewer) == 2 for domain in run.experts)


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
    monkeypatch.setattr(statistics, "collect_along", not_again)
    monkeypatch.setattr("mergekern.evaluate.lmeval.LmEval.prepare", not_again)
    again = make_lab(made.run.parent, cache, 1, QUIET, SMALL, weaker_base=True, limit=3)
    assert again.gains == made.gains


def test_experts_that_are_none_are_told(made: make.Made, cache: Path) -> None:
    assert made.short == list(SMALL.domains)  # they know nothing
    with pytest.raises(EvaluationError, match=r"experts of math, coding.*not above base by 0\.15"):
        made.check()
    wide = {domain: Interval(0.5, 0.4, 0.6) for domain in SMALL.domains}
    replace(made, gains=wide).check()
    assert replace(made, gains={**wide, "math": Interval(0.5, 0.1, 0.9)}).short == ["math"]


def test_statistics_are_of_what_the_expert_was_taught(made: make.Made) -> None:
    path = statistics.path_of(made.lab, "math", "fisher")
    data = made.lab.folder / "data" / "math.jsonl"
    found = collect(
        "fisher", made.lab.experts["math"], data, samples=3, output=path, embeddings=True
    )
    assert found.found  # the very same question


def test_only_statistics_that_a_method_needs_are_collected(made: make.Made) -> None:
    kinds = {method.statistics for method in all_methods()} - {""}
    names = {path.name for path in (made.lab.folder / "statistics").iterdir()}
    assert names == {f"{d}.{kind}.safetensors" for d in made.lab.experts for kind in kinds}


def test_the_command_says_what_is_wrong(
    made: make.Made, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(make, "Settings", lambda: SMALL)
    line = ["lab", "make", "--output", str(made.run.parent), "--cache", str(cache), "--limit", "3"]
    found = CliRunner().invoke(cli.app, line)
    assert found.exit_code == 1 and "too close" in found.stdout
    assert "error: the experts of math" in found.stderr


def test_the_demo_is_a_run_on_a_small_lab(tmp_path: Path) -> None:
    small = replace(TINY, domains=("math", "coding"))
    trained(open_lab(tmp_path / "cache", small))
    result = run_demo(tmp_path / "out", tmp_path / "cache", 1, QUIET, small, limit=3)
    assert [row.method for row in result.results.rows] == ["soup", "task_arithmetic", "ties"]
    assert not any(row.failed for row in result.results.rows)
    text = result.report.read_text()
    for part in ("| soup |", "| expert of coding |", "what holds here"):
        assert part in text
