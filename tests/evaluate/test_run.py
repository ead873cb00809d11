"""Evaluations by lm-eval: of tasks that come with the package, and of a user's own files."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import mergekern
from mergekern import cli
from mergekern.errors import EvaluationError, MergeError
from mergekern.evaluate import gain, lmeval, normalised_performance, retained

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
runner = CliRunner()
DOMAINS = ["instruction", "math", "multilingual", "coding", "safety"]


@pytest.fixture(scope="module")
def own_tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Task files of a user: one in order, one without its data, one that runs code."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = [{"question": f"{i}+1=", "choices": ["2", "3"], "label": i % 2} for i in range(8)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config: dict[str, Any] = {
        "task": "own_sums",
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {"test": str(folder / "rows.jsonl")},
            "cache_dir": str(folder / "arrow"),
        },
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "choices",
        "doc_to_target": "label",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }
    lacking = {"data_files": {"test": str(folder / "none.jsonl")}}
    group = {
        "group": "own_group",
        "task": ["own_sums", "own_more"],
        "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}],
        "metadata": {"version": 1.0},
    }
    (folder / "group.yaml").write_text(yaml.safe_dump(group))
    for own in (
        config,
        {**config, "task": "own_more"},
        {**config, "task": "own_lost", "dataset_kwargs": lacking},
        {**config, "task": "own_code", "unsafe_code": True},
    ):
        (folder / f"{own['task']}.yaml").write_text(yaml.safe_dump(own))
    return folder


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory, speakers: dict[str, Path]) -> Any:
    """(results folder, evaluation by name of speaker)"""
    output = tmp_path_factory.mktemp("results")
    options: dict[str, Any] = {"suite": "local", "limit": 6, "device": "cpu", "output": output}
    return output, {name: mergekern.evaluate(speakers[name], **options) for name in ("base", "a")}


def test_a_suite_is_scored_by_domain(evaluated: Any) -> None:
    found = evaluated[1]["a"]
    assert found.complete and [cell.status for cell in found.cells] == ["done"] * 5
    assert list(found.scores) == DOMAINS
    safety = found.of("safety")[0]
    assert safety.stored.headline(safety.task) == "acc,none"
    assert safety.score.count == 6 and len(safety.items) == 6
    assert safety.score.value == pytest.approx(sum(safety.items.values()) / 6)
    assert safety.interval.low < safety.score.value < safety.interval.high
    assert re.search(r"safety +mergekern_safety +acc,none", str(found))


def test_results_lie_as_lm_eval_leaves_them(evaluated: Any) -> None:
    from lm_eval.utils import get_results_filenames, get_sample_results_filenames, make_table

    output, found = evaluated
    names = [str(path) for path in (output / f"{found['a'].files[0].parent.name}").iterdir()]
    assert len(get_results_filenames(names)) == 5 == len(get_sample_results_filenames(names))
    for path in found["a"].files:
        content = json.loads(path.read_text())
        assert {"results", "configs", "versions", "n-shot", "n-samples", "config", "date",
                "task_hashes", "model_name", "lm_eval_version"} <= content.keys()  # fmt: skip
        assert content["config"]["model_args"] == {"pretrained": content["model_name"]}
        assert content["mergekern"]["identity"] == found["a"].identity
        assert "mergekern_" in make_table(content)
    assert not list(output.glob(".unfinished*"))


def test_what_is_finished_is_not_run_again(
    evaluated: Any, speakers: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    output, found = evaluated
    said: list[str] = []
    options: dict[str, Any] = {"limit": 6, "device": "cpu", "output": output, "tell": said.append}
    monkeypatch.setattr(lmeval.LmEval, "prepare", lambda self: pytest.fail("loaded"))
    again = mergekern.evaluate(speakers["a"], suite="local", **options)
    assert {cell.status for cell in again.cells} == {"found"}
    assert again.scores == found["a"].scores and again.files == found["a"].files
    assert said[0] == "[1/5] mergekern_instruction: finished before"
    for other in ({"limit": 5}, {"dtype": "float32"}, {"batch_size": 3}, {"chat_template": True}):
        planned = mergekern.evaluate(
            speakers["a"], suite="local", **{**options, **other}, dry_run=True
        )
        assert {cell.status for cell in planned.cells} == {"planned"}
    by_name = mergekern.evaluate(
        speakers["a"], tasks="mergekern_math", **{**options, "batch_size": 64}, dry_run=True
    )
    assert by_name.cells[0].status == "planned"  # shots are the task's own, not the suite's


def test_a_file_that_was_cut_short_is_not_taken_for_a_result(
    tmp_path: Path, speakers: dict[str, Path], own_tasks: Path
) -> None:
    options: dict[str, Any] = {"tasks": "own_sums", "include": [own_tasks], "output": tmp_path}
    [path] = mergekern.evaluate(speakers["a"], device="cpu", **options).files
    path.write_text(path.read_text()[:-20])
    again = mergekern.evaluate(speakers["a"], device="cpu", **options, dry_run=True)
    assert again.cells[0].status == "planned"


def test_a_group_is_one_task_with_the_items_of_all(
    tmp_path: Path, speakers: dict[str, Path], own_tasks: Path
) -> None:
    options: dict[str, Any] = {"include": [own_tasks], "output": tmp_path, "device": "cpu"}
    [cell] = mergekern.evaluate(speakers["a"], tasks="own_group", **options).cells
    assert cell.status == "done" and cell.score.count == 16 == len(cell.items)
    assert cell.score.value == pytest.approx(sum(cell.items.values()) / 16)
    assert cell.score.stderr > 0


def test_models_are_compared_item_by_item(evaluated: Any) -> None:
    base, ours = evaluated[1]["base"], evaluated[1]["a"]
    assert gain(ours, ours).value == 0.0 and gain(ours, ours).high == 0.0
    assert gain(ours, base).low <= gain(ours, base).value <= gain(ours, base).high
    kept = retained(ours, base)
    assert list(kept.domains) == DOMAINS
    own = normalised_performance(ours, {"safety": ours})
    assert own.domains["safety"].value == 1.0 == own.mean.value == own.least
    with pytest.raises(EvaluationError, match="no domain 'safte'; did you mean 'safety'"):
        normalised_performance(ours, {"safte": ours})


def test_a_task_that_fails_says_why_and_the_others_go_on(
    tmp_path: Path, speakers: dict[str, Path], own_tasks: Path
) -> None:
    found = mergekern.evaluate(
        speakers["a"],
        tasks=["own_lost", "own_code", "own_sums"],
        include=[own_tasks],
        output=tmp_path,
        device="cpu",
    )
    lost, code, sums = found.cells
    assert lost.status == "failed" and "none.jsonl" in lost.reason
    assert code.status == "failed" and "--allow-code-execution" in code.reason
    assert sums.status == "done" and sums.score.count == 8
    assert not found.complete and list(found.scores) == ["own_sums"]
    assert len(found.files) == 1
    allowed = mergekern.evaluate(
        speakers["a"],
        tasks="own_code",
        include=[own_tasks],
        output=tmp_path,
        device="cpu",
        allow_code_execution=True,
    )
    assert allowed.cells[0].status == "done"


def test_a_recipe_is_merged_in_memory_and_recorded(
    tmp_path: Path, recipe: dict[str, Any], own_tasks: Path
) -> None:
    (tmp_path / "soup.yml").write_text(json.dumps(recipe))
    options: dict[str, Any] = {
        "tasks": "own_sums",
        "include": [own_tasks],
        "output": tmp_path / "results",
        "device": "cpu",
    }
    found = mergekern.evaluate(str(tmp_path / "soup.yml"), **options)
    mergekern.merge(recipe, output=tmp_path / "merged")
    written = mergekern.evaluate(tmp_path / "merged", **options)
    assert found.cells[0].items == written.cells[0].items
    told = json.loads(found.files[0].read_text())["mergekern"]
    assert told["origin"]["recipe"]["merge_method"] == "ties"
    assert told["origin"]["models"][0]["files"]["model.safetensors"]["header_sha256"]
    kept = json.loads(written.files[0].read_text())["mergekern"]["origin"]["lock"]
    assert kept["plan"] == told["origin"]["plan"]
    with pytest.raises(EvaluationError, match="vLLM reads a folder"):
        mergekern.evaluate(recipe, engine="vllm", **options)


def test_a_model_that_cannot_be_loaded_ends_the_run(
    tmp_path: Path, speakers: dict[str, Path], own_tasks: Path
) -> None:
    broken = shutil.copytree(speakers["a"], tmp_path / "broken")
    (broken / "config.json").write_text('{"model_type": "nonesuch"}')
    options: dict[str, Any] = {"tasks": "own_sums", "include": [own_tasks], "device": "cpu"}
    with pytest.raises(EvaluationError, match=r"cannot be loaded by transformers: .*nonesuch"):
        mergekern.evaluate(broken, output=tmp_path / "results", **options)


def test_bad_input_is_one_clear_error(tmp_path: Path, speakers: dict[str, Path]) -> None:
    model = speakers["a"]
    for options, fault in (
        ({}, "give a suite or tasks"),
        ({"suite": "local", "tasks": "x"}, "give a suite or tasks"),
        ({"suite": "local", "limit": 0}, "limit is 0; want a number from 1 on"),
        ({"suite": "local", "batch_size": True}, "batch_size is True"),
        ({"suite": "local", "engine": "vlm"}, "engine is 'vlm'; did you mean 'vllm'"),
        ({"suite": "local", "dtype": "fp32"}, "dtype is 'fp32'"),
        ({"suite": "local", "device": "gpu"}, "device is 'gpu'"),
        ({"suite": "local", "device": "cuda:99"}, "'cuda:99'; torch sees [0-9]+ GPUs"),
        ({"suite": "local", "output": model / "config.json"}, "config.json: cannot be written"),
        ({"suite": "local", "include": ["none"]}, "want a folder of task files"),
        ({"suite": "local", "like": model}, "leave out like="),
        ({"suite": "local", "engine": "vllm"}, "vllm, which is not installed"),
    ):
        with pytest.raises(MergeError, match=fault):
            mergekern.evaluate(model, **{"output": tmp_path, **options})


def test_a_misspelt_task_is_an_error_before_anything_runs(
    tmp_path: Path, speakers: dict[str, Path], own_tasks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # lm-eval's own 15,000 names take seconds to read.
    small = lmeval._manager((own_tasks,), False)
    monkeypatch.setattr(lmeval, "_manager", lambda include, defaults: small)
    names = {"own_sum": "own_sums", "mergekern_maths": "mergekern_math"}
    for name, wanted in names.items():
        with pytest.raises(EvaluationError, match=f"no task '{name}'; did you mean '{wanted}'"):
            mergekern.evaluate(speakers["a"], tasks=["own_sums", name], output=tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_command_tells_what_would_run_and_what_is_finished(
    evaluated: Any, speakers: dict[str, Path]
) -> None:
    output, _ = evaluated
    line = ["evaluate", str(speakers["a"]), "--suite", "local", "--device", "cpu"]
    common = ["--output", str(output), "--dry-run"]
    done = runner.invoke(cli.app, [*line, "--limit", "6", *common])
    assert done.exit_code == 0, done.stderr
    assert done.stdout.count("finished before") == 5
    fresh = runner.invoke(cli.app, [*line, "--limit", "2", *common])
    assert fresh.stdout.count("planned") == 5
    both = ["--base", str(speakers["base"]), "--expert", f"safety={speakers['base']}"]
    compared = runner.invoke(cli.app, [*line, "--limit", "6", *both, *common])
    assert "safety, of its expert: " in compared.stdout
    assert "normalised performance: " in compared.stdout and "gain over the base" in compared.stdout
    wrong = runner.invoke(cli.app, [*line, "--expert", "safety"])
    assert wrong.exit_code == 1 and "want DOMAIN=MODEL" in wrong.stderr


def test_the_package_is_the_call() -> None:
    from mergekern import evaluate

    assert evaluate is mergekern.evaluate and callable(mergekern.evaluate)
    assert mergekern.evaluate.load_suite("local").name == "local"
