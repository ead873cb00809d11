from pathlib import Path
from typing import get_args

import pytest

from mergekern.errors import EvaluationError
from mergekern.evaluate.command import SuiteName
from mergekern.evaluate.packaged import packaged
from mergekern.evaluate.suites import Task, load_suite, suite_names, suite_of

LANGUAGES = ("fr", "es", "de", "ru")


def test_the_suites_that_come_with_the_package():
    assert suite_names() == [
        "forgetting",
        "lm-eval-only",
        "local",
        "local-forgetting",
        "local-surrogate",
        "mergebench",
        "mergebench-surrogate",
    ]
    for name in suite_names():
        assert name in get_args(SuiteName)[1].help
        suite = load_suite(name)
        assert suite.name == name and suite.description
        assert all(task.metrics for _, task in suite.tasks)


def test_mergebench_is_what_its_scripts_run():
    suite = load_suite("mergebench")
    named = {domain: [task.task for task in its] for domain, its in suite.domains.items()}
    assert named == {
        "math": ["gsm8k_cot"],
        "multilingual": [
            f"{task}_{language}"
            for task in ("m_mmlu", "arc", "hellaswag")
            for language in LANGUAGES
        ],
        "instruction": ["ifeval"],
        "coding": ["humanevalplus", "mbppplus"],
        "safety": ["wildguardtest", "harmbench", "xstest", "do_anything_now"],
    }
    tasks = {task.task: task for _, task in suite.tasks}
    assert (tasks["gsm8k_cot"].shots, tasks["gsm8k_cot"].batch_size) == (8, 16)
    assert {tasks[name].shots for name in named["multilingual"]} == {0}
    for task in suite.domains["coding"]:
        assert task.harness == "bigcode" and task.executes_code and task.batch_size == 10
        assert task.flags == {
            "max_length_generation": 512,
            "precision": "bf16",
            "temperature": 0.2,
            "n_samples": 10,
        }
        assert task.metrics == ("pass@1,none", "pass@10,none")
    lower = [task.task for task in suite.domains["safety"] if task.better == "lower"]
    assert lower == ["wildguardtest", "harmbench", "do_anything_now"]  # harm and attacks


def test_the_local_suites_are_all_there():
    suites = [load_suite(name) for name in suite_names() if name.startswith("local")]
    tasks = [task for suite in suites for _, task in suite.tasks]
    assert sorted(task.task for task in tasks) == sorted(packaged())
    for task in tasks:
        config = packaged()[task.task].config(task.task)
        kept = [each["name"] for each in config.get("filter_list", [{"name": "none"}])]
        assert task.metrics == (f"{config['metric_list'][0]['metric']},{kept[0]}",)
    local, surrogate = load_suite("local"), load_suite("local-surrogate")
    assert local.domains.keys() == surrogate.domains.keys()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_lm_eval_has_every_task():
    from mergekern.evaluate.lmeval import check_names

    for name in suite_names():
        tasks = [task.task for _, task in load_suite(name).tasks if task.harness == "lm-eval"]
        check_names(tasks)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("domains: {m: [{task: x, shot: 3}]}", r":1: domains\.m\[0\]\.shot: Extra inputs"),
        ("domains: {m: []}", r"domains\.m: Tuple should have at least 1 item"),
        ("domains: {m: [{task: x, flags: {a: 1}}]}", "flags are for harnesses with a command line"),
        ("domains: {m: [{task: x, harness: bigcode, shots: 1}]}", "bigcode takes flags, not shots"),
        ("domains: {m: [{task: x}], n: [{task: x}]}", "task 'x' is there twice"),
        ("- x", "want one mapping with description and domains"),
        ("domains: {", "not valid YAML"),
    ],
)
def test_what_is_wrong_with_a_suite_is_named(tmp_path: Path, text: str, fault: str):
    (tmp_path / "my.yaml").write_text(text)
    with pytest.raises(Exception, match=fault) as raised:
        load_suite(tmp_path / "my.yaml")
    assert "my.yaml" in str(raised.value)


def test_names_are_checked_and_the_nearest_is_said():
    with pytest.raises(EvaluationError, match=r"no suite named 'mergbench'; did you mean 'merge"):
        load_suite("mergbench")
    with pytest.raises(EvaluationError, match="no domain 'maths'; did you mean 'math'"):
        load_suite("local").only("maths")
    assert list(load_suite("local").only("math").domains) == ["math"]
    assert list(load_suite("local").only("safety", "math").domains) == ["math", "safety"]
    with pytest.raises(EvaluationError, match="one is there twice"):
        suite_of(["a", "a"])
    with pytest.raises(EvaluationError, match="want names, at least one"):
        suite_of([])
    assert suite_of(["a"]).domains == {"a": (Task(task="a"),)}
