"""The command line: what it prints, where, and with which exit code."""

from __future__ import annotations

from pathlib import Path

import pytest
from models import tiny_llama
from typer.testing import CliRunner

import mergekern
from mergekern import api, cli

runner = CliRunner()


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("inputs")
    return {name: str(tiny_llama(root / name, seed)) for seed, name in enumerate(["base", "a"])}


def run(*arguments: object, code: int = 0):
    result = runner.invoke(cli.app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def ties(folders: dict[str, str]) -> list[str]:
    return ["--base", folders["base"], "--model", folders["a"], "-p", "density=0.5"]


def test_merge_writes_a_folder_and_says_so(folders, tmp_path) -> None:
    result = run("merge", "ties", tmp_path / "o", *ties(folders))
    assert "21 tensors merged, 0 copied, 0 left out" in result.stdout
    assert "tensors" in result.stderr  # progress, as there is no terminal
    assert (tmp_path / "o" / "model.safetensors").exists()


def test_quiet_says_nothing(folders, tmp_path) -> None:
    assert run("merge", "ties", tmp_path / "o", *ties(folders), "--quiet").output == ""


def test_a_preset_may_say_the_method(folders, tmp_path) -> None:
    preset = ("--preset", "mergebench/task_arithmetic", *ties(folders)[:4])
    result = run("merge", tmp_path / "o", *preset)
    assert "21 tensors merged, 0 copied, 0 left out" in result.stdout
    named = run("merge", "task_arithmetic", tmp_path / "n", *preset)
    shards = [(tmp_path / name / "model.safetensors").read_bytes() for name in "on"]
    assert shards[0] == shards[1] and named.exit_code == 0
    assert "task_arithmetic" in run("plan", *preset).stdout
    assert "name the folder to write" in run("merge", "ties", *preset, code=1).stderr
    assert "name the folder to write" in run("merge", "r.yml", code=1).stderr


def test_a_dry_run_prints_the_plan_and_writes_nothing(folders, tmp_path) -> None:
    shown = run("merge", "ties", tmp_path / "o", *ties(folders), "--dry-run", "--threads", 1)
    assert "21 merged, 0 copied, 0 left out" in shown.stdout
    assert not (tmp_path / "o").exists()
    # The memory that Python itself takes grows from one call to the next.
    again = run("plan", "ties", *ties(folders)).stdout
    assert [x for x in again.splitlines() if "memory" not in x] == [
        x for x in shown.stdout.splitlines() if "memory" not in x
    ]


def test_a_dry_run_refuses_the_folder_that_the_merge_would_refuse(folders, tmp_path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    result = run("merge", "ties", tmp_path, *ties(folders), "--dry-run", code=1)
    assert "holds other files (thesis.txt); remove them" in result.stderr


def test_parameters_are_parsed_by_the_method(folders, tmp_path) -> None:
    recipe = tmp_path / "r.yml"
    recipe.write_text(
        f"merge_method: ties\nmodels: [{{model: {folders['a']}}}]\nbase_model: {folders['base']}\n"
    )
    pairs = ("-p", "weight=0.5", "-p", "lambda=2", "-p", "normalize=false", "-p", "rescale=l1")
    text = run("plan", recipe, *pairs).stdout
    assert "lambda=2  normalize=false  rescale=l1" in text
    assert "weight=0.5" in text
    paper = run("plan", "ties", *ties(folders)[:4], "--preset", "paper").stdout
    assert "scope=model" in paper


def test_a_grid_is_merged_and_planned(folders, tmp_path) -> None:
    recipe = tmp_path / "r.yml"
    recipe.write_text(
        f"merge_method: ties\nmodels: [{{model: {folders['a']}}}]\nbase_model: {folders['base']}\n"
        "grid: {density: [0.1, 0.5], lambda: [1]}\n"
    )
    names = ["density=0.1,lambda=1", "density=0.5,lambda=1"]
    for arguments in (["plan", recipe], ["merge", recipe, tmp_path / "o", "--dry-run"]):
        shown = run(*arguments, "-p", "weight=0.5").stdout
        assert "merges  2" in shown and "weight=0.5" in shown
        assert all(name in shown for name in names)
    assert not (tmp_path / "o").exists()
    told = run("merge", recipe, tmp_path / "o").stdout
    assert sorted(folder.name for folder in (tmp_path / "o").iterdir()) == names
    assert told.count("21 tensors merged") == 2
    result = run("plan", recipe, "-p", "density=0.1", code=1)
    assert "error: grid.density: density is among the call's arguments too" in result.stderr
    assert "a recipe lists its own" in run("plan", recipe, "--model", "a", code=1).stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan", "tise"], "error: unknown method 'tise'; did you mean 'ties'?"),
        (["plan", "ties", "-m", "a"], "error: ties needs a base model"),
        (["plan", "missing.yml"], "error: recipe missing.yml cannot be read: No such file"),
        (["plan", "linear", "-m", "a", "-p", "weight"], "error: --param 'weight'; want name=value"),
        (["plan", "linear", "-m", "a", "-p", "weight=1", "-p", "weight=2"], "is given twice"),
        (["plan", "linear", "-m", "a", "-p", "seed=1"], "seed is an option of its own: --seed"),
        (["plan", "linear", "-m", "a", "-p", "normalise=1"], "did you mean 'normalize'?"),
        (["plan", "linear", "-m", "/nowhere"], "error: /nowhere: no such file or folder"),
        (["merge", "linear", "out", "-m", "a", "--device", "tpu"], "error: device is 'tpu'"),
        (["methods", "tise"], "did you mean 'ties'?"),
    ],
)
def test_errors_are_one_line(arguments, message) -> None:
    result = run(*arguments, code=1)
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_debug_shows_the_trace() -> None:
    stderr = run("plan", "tise", "--debug", code=1).stderr
    assert stderr.startswith("Traceback")
    assert stderr.splitlines()[-1].startswith("error: unknown method")


def test_what_was_not_foreseen_is_one_line_too(monkeypatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("w")

    monkeypatch.setattr(api, "plan", broken)
    assert run("plan", "ties", code=1).stderr == (
        "error: unexpected KeyError: 'w' (--debug shows where)\n"
    )


def test_an_interrupt_says_how_to_go_on(monkeypatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "plan", interrupted)
    assert "the same command again goes on" in run("plan", "ties", code=130).stderr


def test_methods_lists_and_tells() -> None:
    listed = run("methods").stdout
    for method in mergekern.methods():
        assert method.name in listed
    told = run("methods", "ties").stdout
    for word in ("arXiv:2306.01708", "out = base + lambda", "density", "[0, 1]", "preset paper"):
        assert word in told


@pytest.mark.parametrize("name", ["merge", "plan", *cli.ELSEWHERE])
def test_every_command_is_listed_and_tells_what_it_takes(name) -> None:
    assert f"{name} " in run("--help").stdout
    assert name in run(name, "--help").stdout.partition("--help")[0]


@pytest.mark.parametrize("wrong, meant", [("merg", "merge"), ("colect", "collect")])
def test_a_misspelt_command_names_the_nearest(wrong, meant) -> None:
    assert f"Did you mean '{meant}'?" in run(wrong, code=2).stderr


def test_version() -> None:
    assert run("--version").stdout.strip() == mergekern.__version__


def test_demo_passes_its_options_on(monkeypatch, tmp_path) -> None:
    import mergekern.lab.demo

    seen: dict[str, object] = {}
    monkeypatch.setattr(mergekern.lab.demo, "run_demo", lambda **given: seen.update(given), False)
    run("demo", "--output", tmp_path, "--threads", 2)
    assert seen == {"output": Path(tmp_path), "cache": None, "threads": 2}


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("models=x", "models is an option of its own: --model\n"),
        ("max_memory=1", "max_memory is an option of its own: --max-memory\n"),
        ("progress=x", "progress is no parameter of a method\n"),
    ],
)
def test_a_parameter_that_is_none(folders, tmp_path, pair, message) -> None:
    result = run("merge", "ties", tmp_path / "o", *ties(folders), "-p", pair, code=1)
    assert message in result.stderr


def test_mergekits_flags_are_taken(folders, tmp_path) -> None:
    flags = ["--lazy-unpickle", "--random-seed", 7, "-j", 1, "--out-shard-size", "1B"]
    result = run("merge", "dare_ties", tmp_path / "o", *ties(folders), *flags)
    assert "--lazy-unpickle has nothing to do: .bin files are mapped" in result.stderr
    assert '"seed": 7' in (tmp_path / "o" / "mergekern.lock.json").read_text()
    assert "--lora-merge-cache" in run("merge", "--help").stdout
    refused = run("merge", "ties", tmp_path / "p", "--no-safe-serialization", code=1)
    assert refused.stderr.startswith("error: models are written as safetensors alone")
