"""Merges into folders that run together read their inputs once, and write what each alone would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from folders import Watch, buffers, hashes, tensors, write_model, write_models

import mergekern
from mergekern import engine, sampling, trimming
from mergekern.errors import NonFiniteError, OutputError
from mergekern.journal import Journal
from mergekern.keys import Key

BUFFERS = 7_000_000
LOCK = "mergekern.lock.json"
Recipes = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_models(tmp_path_factory.mktemp("four"), 3)


def recipe(models: list[Path], method: str, experts: str = "123", **parameters: Any) -> Any:
    based = {} if method == "linear" else {"base_model": str(models[0])}
    experts_ = [{"model": str(models[int(number)])} for number in experts]
    return {"merge_method": method, "models": experts_, "parameters": parameters, **based}


def mixed(models: list[Path]) -> Recipes:
    """Other experts, orders and methods: with and without statistics, of tensors and the model."""
    return {
        "linear": recipe(models, "linear", "12", weight=0.5),
        "model": recipe(models, "ties", "123", density=0.3, scope="model"),
        "half": recipe(models, "ties", "31", density=0.5, scope="model", ties="keep"),
        "ties": recipe(models, "ties", "13", density=0.3),
        "same": recipe(models, "ties", "13", density=0.3, **{"lambda": 0.5}),
        "l1": recipe(models, "ties", "123", density=0.4, scope="model", rescale="l1"),
        "dare": recipe(models, "dare_ties", "231", density=0.4, seed=7),
        "multislerp": recipe(models, "multislerp", "123"),
        "alone": recipe(models, "task_arithmetic", "2") | {"dtype": "float32"},
    }


@pytest.fixture(scope="module")
def wanted(four: list[Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("wanted")
    for name, single in mixed(four).items():
        mergekern.merge(single, output=root / name, threads=2, max_shard_size="2MB")
    return {name: hashes(root / name) for name in mixed(four)}


def together(models: list[Path], out: Path, **options: Any) -> list[Any]:
    recipes = mixed(models)
    options = {"threads": 2, "max_shard_size": "2MB"} | options
    outputs = [out / name for name in recipes]
    return mergekern.merge_many(list(recipes.values()), outputs, **options)


def check(out: Path, wanted: dict[str, Any]) -> None:
    for name, want in wanted.items():
        assert hashes(out / name) == want, name


def stop_after(steps: int, watch: list[Watch]) -> Watch:
    left = [steps]

    def stop() -> None:
        left[0] -= "merge" in watch[0].phases
        if left[0] == 0:
            raise KeyboardInterrupt

    watch.append(Watch(stop))
    return watch[0]


@pytest.mark.parametrize("nbytes", [BUFFERS, 20_000_000, 1 << 27])
@pytest.mark.parametrize("threads", [1, 3])
def test_every_folder_is_that_of_a_merge_of_its_own(
    four, wanted, tmp_path, nbytes, threads, monkeypatch
) -> None:
    buffers(monkeypatch, nbytes)
    watch = Watch()
    together(four, tmp_path, threads=threads, progress=watch)
    check(tmp_path, wanted)
    assert watch.moved == watch.total and watch.done == watch.tensors and watch.stopped == 1


@pytest.mark.parametrize("steps", [1, 2, 4, 7])
@pytest.mark.parametrize("again", [6_500_000, 1 << 27])
def test_an_interrupted_run_goes_on(four, wanted, tmp_path, steps, again, monkeypatch) -> None:
    buffers(monkeypatch, BUFFERS)
    monkeypatch.setattr(sampling, "LEAST", 1 << 12)
    with pytest.raises(KeyboardInterrupt):
        together(four, tmp_path, progress=stop_after(steps, []))
    with monkeypatch.context() as patch:  # one of them is finished before the others
        buffers(patch, BUFFERS)
        first, *_ = mixed(four).items()
        mergekern.merge(first[1], output=tmp_path / first[0], threads=2, max_shard_size="2MB")
    buffers(monkeypatch, again)
    watch = Watch()
    reports = together(four, tmp_path, progress=watch)
    check(tmp_path, wanted)
    assert reports[0].bytes_read == reports[0].bytes_written == 0
    assert sum(report.resumed for report in reports[1:]) >= 4 or steps == 1
    assert watch.moved == watch.total and watch.done == watch.tensors


@pytest.mark.parametrize("nbytes", [5_000_000, 1 << 27])
def test_geometries_have_their_gram_matrices(four, tmp_path, nbytes, monkeypatch) -> None:
    """Of weights and deltas, of other models and orders; buffers smaller than some tensors, too."""
    recipes = {
        "multislerp": recipe(four, "multislerp", "12"),
        "heavier": recipe(four, "multislerp", "12", weight=2, normalize_weights=False),
        "other": recipe(four, "model_stock", "231"),
        "slerp": recipe(four, "slerp", "3", t=0.4),
        "karcher": recipe(four, "karcher", "21"),
    }
    for name, single in recipes.items():
        mergekern.merge(single, output=tmp_path / "alone" / name)
    buffers(monkeypatch, nbytes)
    outputs = [tmp_path / name for name in recipes]
    mergekern.merge_many(list(recipes.values()), outputs, threads=2)
    for name in recipes:
        assert hashes(tmp_path / name) == hashes(tmp_path / "alone" / name), name


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """fp32: hardly any two magnitudes are equal, so that nothing has to be looked up among them."""
    root, g = tmp_path_factory.mktemp("untied"), torch.Generator().manual_seed(0)
    base = {str(n): 0.02 * torch.randn(300_000, generator=g) for n in range(4)}
    states = [base]
    for _ in range(2):
        states.append({n: x + 1e-3 * torch.randn(x.shape, generator=g) for n, x in base.items()})
    return [write_model(root / str(n), state) for n, state in enumerate(states)]


GRIDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "nothing": ({}, {"lambda": [0.5, 1.0, 2.0]}),
    "tensor": ({}, {"density": [0.1, 0.6], "lambda": [0.5, 1.0]}),
    "model": ({"scope": "model"}, {"density": [0.1, 0.6], "weight": [0.5, 1.0]}),
    "keep": ({"scope": "model", "ties": "keep"}, {"density": [0.1, 0.6]}),
}


@pytest.mark.parametrize("case", GRIDS)
def test_a_grid_reads_every_byte_once(untied, tmp_path, case, monkeypatch) -> None:
    buffers(monkeypatch, 16_000_000)
    monkeypatch.setattr(sampling, "LEAST", 1 << 12)
    parameters, axes = GRIDS[case]
    grid = recipe(untied, "ties", "12", **parameters) | {"grid": axes}
    once = mergekern.plan_many(grid).input_bytes
    reports = mergekern.merge_many(grid, tmp_path / "out", threads=2)
    sample = sampling.sample_size(1_200_000) * 3 * 4 if "scope" in parameters else 0
    read = sum(report.bytes_read for report in reports)
    assert once <= read <= once + 1.01 * sample
    assert max(r.bytes_read for r in reports) - min(r.bytes_read for r in reports) <= 1
    monkeypatch.undo()
    for report in reports:
        point = dict(part.split("=") for part in report.output.name.split(","))
        numbers = {name: float(value) for name, value in point.items()}
        one = tmp_path / "one" / report.output.name
        mergekern.merge(recipe(untied, "ties", "12", **parameters, **numbers), output=one)
        assert hashes(report.output) == hashes(one)


def test_a_trial_that_is_lost_costs_no_other(four, wanted, tmp_path, monkeypatch) -> None:
    buffers(monkeypatch, BUFFERS)
    honest, calls = trimming.guess, []

    def mislead_one(*arguments: Any, **options: Any) -> Any:
        calls.append(honest(*arguments, **options))
        if len(calls) > 1:
            return calls[-1]
        return {w: (Key(high.magnitude + 99, 0),) * 2 for w, (high, _) in calls[0].items()}

    monkeypatch.setattr(trimming, "guess", mislead_one)
    watch = Watch()
    together(four, tmp_path, progress=watch)
    check(tmp_path, wanted)
    assert watch.moved == watch.total


def test_a_folder_that_cannot_be_had_stops_all(four, tmp_path) -> None:
    (tmp_path / "same").mkdir()
    held = Journal(tmp_path / "same")
    with pytest.raises(OutputError, match="another process is merging into this folder"):
        together(four, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["same"]
    held.close()


def test_what_does_not_fit_together_runs_one_after_the_other(
    four, wanted, tmp_path, monkeypatch
) -> None:
    runs = []
    honest = engine.budget.memory_estimate

    def at_most_three(plans: Any, *more: Any) -> Any:
        if len(plans) > 3:
            raise mergekern.errors.BudgetError("too many")
        runs.append(len(plans))
        return honest(plans, *more)

    monkeypatch.setattr(engine.budget, "memory_estimate", at_most_three)
    together(four, tmp_path)
    assert runs == [2, 2, 2, 3]
    check(tmp_path, wanted)


def test_an_input_that_must_not_be_merged_stops_all(tmp_path) -> None:
    states = [tensors(0), tensors(1, tensors(0))]
    states[1]["layer.3.up"][7, 7] = torch.nan
    models = [write_model(tmp_path / str(n), state) for n, state in enumerate(states)]
    recipes = [recipe(models, "ties", "1", scope=scope) for scope in ("tensor", "model")]
    outputs = [tmp_path / "a", tmp_path / "b"]
    with pytest.raises(NonFiniteError, match=r"layer.3.up: NaN or Inf in .*tensor layer.3.up"):
        mergekern.merge_many(recipes, outputs)
    for output in outputs:
        assert not (output / LOCK).exists() and not (output / "config.json").exists()
