"""Whole runs over tiny models: what is reported, what is not done twice, what fails on its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from stub_harness import stub_environment
from typer.testing import CliRunner

from mergekern import cli
from mergekern.errors import EvaluationError, MergeError
from mergekern.suite import choosing, load_run, plan_suite, run_suite
from mergekern.suite import run as suite_run
from mergekern.suite.merging import peak_memory
from mergekern.suite.report import write_report
from mergekern.suite.schema import MethodEntry
from mergekern.suite.state import State

RECORDED = Path(__file__).parents[1] / "evaluate" / "recorded"
XSTEST = 0.4022  # in the recorded output
DOMAINS = ["math", "coding", "safety"]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


def test_a_run_is_reported_and_not_repeated(write_run: Any, tmp_path: Path) -> None:
    path = write_run()
    said: list[str] = []
    results = run_suite(load_run(path), tell=said.append)
    assert [row.method for row in results.rows] == ["soup", "ties"]
    assert not any(row.failed for row in results.rows)
    ties = results.rows[1]
    assert ties.chosen is not None and len(ties.chosen.facts["candidates"]) == 4
    scores = [each["surrogate"] for each in ties.chosen.facts["candidates"]]
    places = [each["point"] for each in ties.chosen.facts["candidates"]]
    assert ties.chosen.point == places[scores.index(max(scores))]
    assert 1 << 20 < ties.chosen.facts["peak"] < peak_memory()  # its own, and not that of pytest
    assert ties.seconds > 0
    # Only what was chosen is left on the disk.
    left = [folder.name for folder in (tmp_path / "out/merged/ties").iterdir()]
    assert left == [",".join(f"{k}={v:g}" for k, v in ties.chosen.point.items())]

    written = write_report(results, tmp_path / "out", "run")
    text = written.read_text()
    assert "- ties: " not in text.split("## Notes of the merges")[1]
    noted = "density has no effect: task_arithmetic keeps every delta whole"
    for part in ("| soup |", "expert of coding", "Kept of the base", "peak", noted):
        assert part in text
    content = json.loads((tmp_path / "out/results.json").read_text())
    assert {row["method"] for row in content["methods"]} == {"soup", "ties"}
    assert set(content["experts"]) == {"math", "coding", "safety"}
    page = (tmp_path / "out/report.html").read_text()
    assert "<table>" in page and 'src="data:image/png;base64,' in page
    assert 'src="r' not in page  # nothing beside it is needed

    state = (tmp_path / "out/state.jsonl").read_text()
    again: list[str] = []
    repeated = run_suite(load_run(path), tell=again.append)
    assert not [line for line in again if "merg" in line.split(":")[0] or "…" in line], again
    assert (tmp_path / "out/state.jsonl").read_text() == state
    assert repeated.as_json() == content
    assert any("merged before" in line for line in plan_suite(load_run(path)))


def test_what_was_not_finished_goes_on(
    write_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the second group of merges: the first is neither merged nor judged again."""
    path = write_run(forgetting=None)
    whole, merged = choosing.merge_apart, []

    def killed(recipes: Any, *rest: Any) -> Any:
        if merged:
            raise KeyboardInterrupt
        merged.extend(recipes)
        return whole(recipes, *rest)

    monkeypatch.setattr(choosing, "merge_apart", killed)
    run = load_run(path)
    run = run.model_copy(update={"methods": {"ties": run.methods["ties"]}})
    with pytest.raises(KeyboardInterrupt):
        run_suite(run)
    assert len(merged) == 3
    later: list[Any] = []
    monkeypatch.setattr(
        choosing, "merge_apart", lambda r, *rest: [later.extend(r), whole(r, *rest)][1]
    )
    said: list[str] = []
    results = run_suite(run, tell=said.append)
    assert len(later) == 1 and not results.rows[0].failed
    judged = [line for line in said if "/surrogate" in line and "…" in line]
    assert len(judged) == 3  # tasks of the one candidate that was left


def test_a_method_that_fails_does_not_stop_the_others(
    write_run: Any, models: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(models / "c", other)
    broken = other / "model.safetensors"
    path = write_run(
        surrogate=None,
        forgetting=None,
        methods={
            "soup": {"merge_method": "linear"},
            "sum": {"merge_method": "task_arithmetic"},
        },
    )
    run = load_run(path)
    run = run.model_copy(update={"experts": {**run.experts, "safety": str(other)}})
    data = bytearray(broken.read_bytes())
    data[-4:] = b"\xff\x7f\xff\x7f" if data[-4:] != b"\xff\x7f\xff\x7f" else b"\0\0\0\0"
    broken.write_bytes(bytes(data))  # NaN in bf16 or fp32
    results = run_suite(run)
    assert all("NaN" in row.failed for row in results.rows)
    report = write_report(results, tmp_path / "out").read_text()
    assert "What is missing" in report and "NaN" in report


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": {"x": {"merge_method": "tise"}}}, "ties"),
        ({"methods": {"x": {"parameters": {}}}}, "want merge_method, or a preset"),
        ({"methods": {}}, "methods"),
        ({"experts": {"maths": "a"}}, "no domain 'maths'"),
        ({"evaluation": {"suite": "lokal"}}, "local"),
        ({"surrogate": None}, "nothing to choose by"),
        ({"methods": {"x": {"merge_method": "ties", "grid": {"desnity": [0.1]}}}}, "density"),
        ({"togehter": 2}, "togehter"),
        ({"plain": "soop"}, "plain is 'soop'; there are soup, ties"),
        ({"methods": {"x": {"merge_method": "linear", "experts": ["maths"]}}}, "x names maths"),
        ({"evaluation": {"suite": "local", "domains": ["maths"]}}, "no domain 'maths'"),
        ({"base": "nowhere"}, "nowhere"),
        ({"methods": {"base": {"merge_method": "linear"}}}, "base: is what the models are called"),
        ({"weaker": "nope.yml"}, "nope.yml"),
        ({"evaluate": {"devce": "cpu"}}, "evaluate.devce is no option .*device"),
        ({"evaluate": {"device": "tpu"}}, "device is 'tpu'"),
        ({"merge_device": "tpu"}, "device is 'tpu'"),
        ({"max_memory": "lots"}, "max_memory is 'lots'"),
    ],
)
def test_what_makes_no_sense_is_told_before_anything_runs(
    write_run: Any, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(MergeError, match=message):
        run_suite(load_run(write_run(**changes)))
    assert not (tmp_path / "out/merged").exists()


def test_some_of_the_experts_are_merged_and_judged_on_their_own_domains(
    write_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods = {
        "soup": {"merge_method": "linear"},
        "pair": {"merge_method": "linear", "experts": ["coding", "safety"]},
    }
    path = write_run(methods=methods, surrogate=None, plain="soup", whole_experts=True)
    run = load_run(path)
    assert [model["model"] for model in run.recipe(run.methods["pair"], {})["models"]] == [
        run.experts["coding"],
        run.experts["safety"],
    ]
    results = run_suite(run)
    [pair] = results.parts
    assert pair.evaluation is not None and list(pair.evaluation.scores) == ["coding", "safety"]
    assert all(list(found.scores) == DOMAINS for found in results.experts.values())
    assert set(results.expert_forgetting) == set(DOMAINS)
    fewer = next(each for each in results.findings if each.claim.startswith("More experts"))
    assert [each.what for each in fewer.evidence] == ["linear: 2 less 3"]
    report = write_report(results, tmp_path / "out").read_text()
    assert "| pair | coding, safety |" in report and "holds here" in report
    assert report.count("| expert of math |") == 2  # scores, and what it has kept

    weaker = tmp_path / "weaker.yml"
    weaker.write_text(path.read_text().replace("output: out", "output: weak"))
    again = load_run(write_run(methods=methods, surrogate=None, weaker="weaker.yml"))
    compared: list[Any] = []
    monkeypatch.setattr(suite_run, "find", lambda found, plain, weaker: compared.append(weaker))
    run_suite(again)
    (tmp_path / "weak").mkdir()
    shutil.copy(tmp_path / "out/results.json", tmp_path / "weak")
    run_suite(again)
    assert compared[0] is None  # the other run has not been made
    assert [row["method"] for row in compared[1]["methods"]] == ["soup", "pair"]


def test_points_of_a_grid_have_names() -> None:
    entry = MethodEntry(merge_method="ties", grid={"density": [0.1, 1.0], "weight": [[1, 2.5]]})
    assert list(entry.points) == ["density=0.1,weight=1_2.5", "density=1,weight=1_2.5"]
    assert list(MethodEntry(merge_method="ties").points) == ["given"]


def test_statistics_go_with_their_expert(write_run: Any, tmp_path: Path) -> None:
    (tmp_path / "b.fisher").touch()
    entry = {"merge_method": "fisher", "statistics": {"coding": "b.fisher", "math": "org/a"}}
    run = load_run(write_run(methods={"fisher": entry}))
    assert run.recipe(run.methods["fisher"], {})["base_model"] == run.base
    models = run.recipe(run.methods["fisher"], {})["models"]
    assert [model.get("statistics") for model in models] == [
        "org/a",
        str(tmp_path / "b.fisher"),
        None,
    ]
    entry["statistics"] = {"codign": "b.fisher"}
    with pytest.raises(EvaluationError, match=r"methods\.fisher names codign"):
        load_run(write_run(methods={"fisher": entry}))


def test_a_state_line_that_was_cut_short_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "state.jsonl"
    State(path).add("a", "1", "done", seconds=2.0)
    State(path).add("b", "1", "begun")
    with path.open("a") as file:
        file.write('{"cell": "b", "key')
    with path.open("ab") as file:
        file.write("é".encode()[:1])
    state = State(path)
    assert state.done("a", "1") and not state.done("a", "2") and not state.done("b", "1")
    assert state.of("b") == {"cell": "b", "key": "1", "status": "begun"}
    state.add("c", "1", "done")
    state.add("d", "1", "done")
    again = State(path)
    assert again.done("a", "1") and again.done("c", "1") and again.done("d", "1")
    path.write_bytes(path.read_bytes()[:-1])  # the last line is whole but for its end
    State(path).add("e", "1", "done")
    assert State(path).done("d", "1") and State(path).done("e", "1")


def test_the_command(write_run: Any, tmp_path: Path) -> None:
    path = write_run(methods={"soup": {"merge_method": "linear"}}, forgetting=None)
    planned = CliRunner().invoke(cli.app, ["suite", str(path), "--dry-run"])
    assert planned.exit_code == 0 and "soup/given: to be merged" in planned.output
    found = CliRunner().invoke(cli.app, ["suite", str(path), "--quiet"])
    assert found.exit_code == 0, found.output
    assert "| soup |" in found.output and (tmp_path / "out/report.html").is_file()
    path.write_text("base: [")
    bad = CliRunner().invoke(cli.app, ["suite", str(path)])
    assert bad.exit_code == 1 and "run.yml" in bad.output


def test_a_run_file_is_one_mapping(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="cannot be read"):
        load_run(tmp_path / "none.yml")
    (tmp_path / "two.yml").write_text("a: 1\n---\nb: 2\n")
    with pytest.raises(EvaluationError, match="one mapping"):
        load_run(tmp_path / "two.yml")


def test_a_harness_that_dies_half_way_fails_its_cell_alone(write_run: Any, tmp_path: Path) -> None:
    """Its log is named; when it is mended, nothing else runs again."""
    suite = {
        "description": "one task of lm-eval, one of a program of another environment",
        "domains": {
            "math": [
                {"task": "mergekern_math", "shots": 0, "metrics": ["exact_match,answer"]},
            ],
            "safety": [
                {"task": "xstest", "harness": "safety", "metrics": ["overall_accuracy,none"]},
            ],
        },
    }
    (tmp_path / "both.yaml").write_text(json.dumps(suite))
    output = {
        "--report_output_path": json.loads((RECORDED / "safety.json").read_text()),
        "--save_individual_results_path": {"xstest": [{}] * 450},
    }
    harness = stub_environment(tmp_path / "safety", "python", output, code=7)
    path = write_run(
        experts={"math": "a", "safety": "c"},
        methods={"soup": {"preset": "mergebench/model_soup"}},
        surrogate=None,
        forgetting=None,
        evaluation={"suite": str(tmp_path / "both.yaml")},
        evaluate={"device": "cpu", "environments": {"safety": str(harness)}},
    )
    results = run_suite(load_run(path))
    (row,) = results.rows
    assert row.evaluation is not None and not row.failed
    failed = row.evaluation.of("safety")[0]
    assert failed.status == "failed" and row.evaluation.of("math")[0].status == "done"
    assert "ended with code 7" in failed.reason and ".log ends: " in failed.reason
    report = write_report(results, tmp_path / "out").read_text()
    assert "What is missing" in report and "ended with code 7" in report

    shutil.rmtree(harness)
    stub_environment(harness, "python", output)
    said: list[str] = []
    (mended,) = run_suite(load_run(path), tell=said.append).rows
    assert mended.evaluation is not None and mended.evaluation.complete
    assert mended.evaluation.of("safety")[0].score.value == pytest.approx(XSTEST)
    assert not [line for line in said if "mergekern_math" in line and "…" in line], said


def test_the_local_suite_gives_the_same_numbers_twice(write_run: Any) -> None:
    """Merged, evaluated and compared anew."""
    told: list[Any] = []
    for name in ("once", "twice"):
        path = write_run(surrogate=None, methods={"soup": {"merge_method": "linear"}}, output=name)
        content = run_suite(load_run(path)).as_json()
        (row,) = content["methods"]
        evaluated = [content["base"], content["base_forgetting"], *content["experts"].values()]
        evaluated += [row["evaluation"], row["forgetting"]]
        told.append([(each["domains"], each["tasks"]) for each in evaluated])
        told[-1] += [content["base_performance"], row["performance"], row["kept"]]
    assert told[0] == told[1]
