"""regmean: the least squares of plain float64, from tensors and files, however it is streamed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from collected import speaking, texts
from folders import buffers, hashes, load, write_model
from grams import gram_of, write_grams
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

import mergekern
from mergekern.errors import (
    BudgetError,
    CheckpointError,
    MergeError,
    MismatchError,
    NonFiniteError,
    RecipeError,
)
from mergekern.jobs import ready
from mergekern.options import DEFAULT
from mergekern.recipe import read
from mergekern.solutions import Solutions
from mergekern.systems import Workers

State = dict[str, Tensor]
EMBED, NORM = "model.embed_tokens.weight", "norm"
SHAPES = {"a": (37, 61), "b": (61, 61), "c": (530, 20), EMBED: (11, 4), NORM: (5,)}
WIDTHS = {"a": 61, "b": 61, "c": 20}
DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def state(seed: int, dtype: torch.dtype = torch.bfloat16) -> State:
    g = torch.Generator().manual_seed(seed)
    return {n: torch.randn(s, generator=g).to(dtype) for n, s in SHAPES.items()}


def grams(seed: int) -> State:
    return {name: gram_of(seed, width) for name, width in WIDTHS.items()}


def solved(
    weights: Sequence[Tensor],
    matrices: Sequence[Tensor],
    reduction: float,
    weight: Sequence[float] = (1.0, 1.0, 1.0),
    untransposed: bool = False,
) -> Tensor:
    """By torch.linalg, in float64."""
    left, right = 0, 0
    for w, gram, coef in zip(weights, matrices, weight, strict=False):
        g = gram.double()
        reduced = coef * (reduction * g + (1 - reduction) * g.diagonal().diag())
        left = left + reduced
        right = right + reduced @ (w.double() if untransposed else w.double().T)
    found = torch.linalg.solve(left, right)
    return found if untransposed else found.T


def close(got: Tensor, want: Tensor) -> None:
    """But for the one rounding to the output's dtype."""
    tolerance = {"bfloat16": 2**-8, "float16": 2**-11, "float32": 1e-7, "float64": 1e-9}
    rtol = tolerance[str(got.dtype).removeprefix("torch.")]
    torch.testing.assert_close(got.double(), want, rtol=rtol, atol=1e-7)


def merged(models: Sequence[State], statistics: Sequence[State | Path], **more: Any) -> State:
    got = mergekern.merge("regmean", models=models, statistics=statistics, **more)
    assert isinstance(got, dict)
    return got


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_formula(dtype: torch.dtype) -> None:
    base, *models = (state(seed, dtype) for seed in range(4))
    matrices = [grams(seed) for seed in range(3)]
    for reduction, weight in ((0.0, (1, 1, 1)), (0.5, (0.3, 1.0, 0.0)), (1.0, (2, 1, 1))):
        options: dict[str, Any] = {"reduction": reduction, "weight": list(weight)}
        got = merged(models, matrices, base=base, **options)
        for name in WIDTHS:
            assert got[name].dtype == dtype
            wanted = [[each[name] for each in given] for given in (models, matrices)]
            close(got[name], solved(*wanted, reduction, weight))
        mean = sum(w * m[NORM].double() for w, m in zip(weight, models, strict=True)) / sum(weight)
        torch.testing.assert_close(got[NORM].double(), mean, rtol=1e-2, atol=1e-2)
        assert torch.equal(got[EMBED], base[EMBED])
        slow = merged(models, matrices, base=base, backend="reference", **options)
        assert all(torch.equal(got[name], slow[name]) for name in got)


def test_equal_models_stay_as_they_are() -> None:
    """One alone, several alike, and whatever their matrices are."""
    model = state(1)
    for count in (1, 3):
        matrices = [grams(seed) for seed in range(count)]
        got = merged([dict(model) for _ in range(count)], matrices)
        assert all(torch.equal(got[name], model[name]) for name in SHAPES)


def test_matrices_alike_and_orthogonal_inputs() -> None:
    """Matrices that all models share cancel. Models that see different inputs keep their rows."""
    models = [state(seed, torch.float64) for seed in (1, 2)]
    got = merged(models, [grams(1), grams(1)])
    for name in WIDTHS:
        close(got[name], (models[0][name] + models[1][name]) / 2)
    apart = [grams(1), grams(1)]
    for name in WIDTHS:
        apart[0][name][10:], apart[0][name][:, 10:] = 0, 0
        apart[1][name][:10], apart[1][name][:, :10] = 0, 0
    got = merged(models, apart)
    for name in WIDTHS:
        close(got[name][:, :10], models[0][name][:, :10])
        close(got[name][:, 10:], models[1][name][:, 10:])


@pytest.mark.parametrize("untransposed", [False, True])
def test_the_joint_least_squares(untransposed: bool) -> None:
    """What each layer makes of its own data is what the merge fits, over all data."""
    g = torch.Generator().manual_seed(0)
    inputs, outputs = 13, 5
    data = [torch.randn(40, inputs, generator=g).double() for _ in range(3)]
    weights = [torch.randn(inputs, outputs, generator=g).double() for _ in data]
    made = torch.cat([x @ w for x, w in zip(data, weights, strict=True)])
    wanted = torch.linalg.lstsq(torch.cat(data), made).solution
    stored = [{"w": w.clone() if untransposed else w.T.contiguous()} for w in weights]
    got = merged(stored, [{"w": x.T @ x / len(x)} for x in data], reduction=1)["w"]
    close(got if untransposed else got.T, wanted)


def test_dead_inputs_have_the_mean() -> None:
    """Dead in all models: the mean by weight. In one: as the equations say."""
    models = [state(seed, torch.float64) for seed in (1, 2)]
    matrices = [grams(seed) for seed in (1, 2)]
    matrices[0]["a"], matrices[1]["a"] = gram_of(1, 61, (0, 7, 60)), gram_of(2, 61, (7, 60))
    got = merged(models, matrices, weight=[1.0, 3.0])["a"]
    first, second = (model["a"] for model in models)
    alive = [i for i in range(61) if i not in (7, 60)]
    close(got[:, [7, 60]], ((first + 3 * second) / 4)[:, [7, 60]])
    within = [matrix["a"][alive][:, alive] for matrix in matrices]
    close(got[:, alive], solved([first[:, alive], second[:, alive]], within, 0.9, (1.0, 3.0)))


def test_matrices_without_an_inverse() -> None:
    models, matrices = [state(1), state(2)], [grams(1), grams(2)]
    x = torch.randn(2, 9, 61, generator=torch.Generator().manual_seed(0))
    for matrix, seen in zip(matrices, x, strict=True):
        matrix["a"] = seen.T @ seen / 9
    with pytest.raises(MergeError, match=r"tensor a: the sum .* statistics\[1\] .* has no inverse"):
        merged(models, matrices, reduction=1)
    got = merged(models, matrices, reduction=1, singular="mean", weight=[1, 3], dtype="float32")
    close(got["a"], (models[0]["a"].double() + 3 * models[1]["a"].double()) / 4)
    close(got["b"], solved([m["b"] for m in models], [m["b"] for m in matrices], 1.0, (1.0, 3.0)))
    merged(models, matrices)  # the diagonal's share makes it regular
    for matrix in matrices:
        matrix["c"][3, 3] = 0  # and what lies beside it is not
    with pytest.raises(MergeError, match=r"tensor c: .* input 3 is, but for 0"):
        merged(models, matrices)


def test_what_cannot_be_solved() -> None:
    models, matrices = [state(1), state(2)], [grams(1), grams(2)]
    options: dict[str, Any] = {"models": models, "statistics": matrices}
    for name, wrong, complaint in (
        ("a", torch.ones(37, 61), r"a: .* float32 \[37, 61\]; want floats of \[61, 61\] or"),
        (NORM, torch.ones(5, 5), r"norm: .* \[5, 5\]; want floats of none, as it is no matrix"),
        ("a", torch.ones(61, 61, dtype=torch.int64), r"int64 \[61, 61\]"),
    ):
        statistics = [{**matrix, name: wrong} for matrix in matrices]
        with pytest.raises(MismatchError, match=complaint):
            mergekern.plan("regmean", models=models, statistics=statistics)
    square = [{**matrix, "a": torch.eye(37)} for matrix in matrices]
    with pytest.raises(MismatchError, match="tensor b: is square, and others"):
        mergekern.plan("regmean", models=models, statistics=square)
    with pytest.raises(RecipeError, match="weights of regmean are all 0"):
        mergekern.merge("regmean", weight=0, **options)
    matrices[1]["a"][4, 4] = float("inf")
    with pytest.raises(NonFiniteError, match=r"a: NaN or Inf in statistics\[1\] \(tensor a\)"):
        mergekern.merge("regmean", **options)
    models[0]["b"][3, 3] = float("nan")
    del matrices[0]["a"], matrices[1]["a"]
    with pytest.raises(NonFiniteError, match=r"b: NaN or Inf in models\[0\] \(tensor b\)"):
        mergekern.merge("regmean", **options)
    del matrices[0]["b"]
    with pytest.raises(MismatchError, match=r"tensor b: the statistics .* and .* lack it"):
        mergekern.merge("regmean", **options)


LAYER = {
    "l.0.q": (2600, 64),
    "l.0.v": (40, 64),
    "l.0.down": (96, 200),
    "l.0.conv": (200, 96),
    "l.1.q": (2600, 64),
}


@pytest.fixture(scope="module")
def layers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three models with layers of several kinds on disk, and a file of matrices of each."""
    root, found = tmp_path_factory.mktemp("layers"), {}
    for seed, name in enumerate("abc"):
        g = torch.Generator().manual_seed(seed)
        weights = {n: torch.randn(s, generator=g).bfloat16() for n, s in LAYER.items()}
        found[name] = write_model(root / name, {**weights, NORM: torch.ones(96)})
        matrices = {"l.0.q": 64, "l.0.down": 200, "l.0.conv": 200, "l.1.q": 64}
        found[f"{name}.gram"] = write_grams(
            root / f"{name}.gram.safetensors",
            found[name],
            {n: gram_of(seed + width, width, (5,)) for n, width in matrices.items()},
            shares={"l.0.v": "l.0.q"},
            untransposed=["l.0.conv"],
        )
    return found


def asked(layers: dict[str, Path], names: str = "abc", **more: Any) -> dict[str, Any]:
    given = {
        "models": [str(layers[name]) for name in names],
        "statistics": [layers[f"{name}.gram"] for name in names],
    }
    return given | more


def test_from_files_in_tiles_of_any_size(
    layers: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = asked(layers, reduction=0.6, weight=[1, 2, 0.5])
    report = mergekern.merge("regmean", output=tmp_path / "out", threads=2, **options)
    assert isinstance(report, mergekern.MergeReport) and not report.dropped
    got, models = load(tmp_path / "out"), [load(layers[name]) for name in "abc"]
    files = [load_file(layers[f"{name}.gram"]) for name in "abc"]
    alive = [i for i in range(200) if i != 5]
    for name, shape in LAYER.items():
        matrix = "l.0.q" if name == "l.0.v" else name
        conv = name == "l.0.conv"
        kept = [i for i in alive if i < shape[0 if conv else 1]]
        weights = [m[name][kept] if conv else m[name][:, kept] for m in models]
        matrices = [file[matrix][kept][:, kept] for file in files]
        here = got[name][kept] if conv else got[name][:, kept]
        close(here, solved(weights, matrices, 0.6, (1, 2, 0.5), conv))
    lock = json.loads((tmp_path / "out" / "mergekern.lock.json").read_text())
    mergekern.merge(lock["recipe"], tmp_path / "again", threads=1)
    assert hashes(tmp_path / "again") == hashes(tmp_path / "out")
    for nbytes, tile in ((1 << 20, 4096), (1 << 23, None)):
        with monkeypatch.context() as patch:
            buffers(patch, nbytes, tile=tile)
            patch.setattr(import_module("mergekern.plan"), "SOLVED", 128)
            patch.setattr("mergekern.solutions.ROWS", 7)
            patch.setattr("mergekern.solutions.SOLVED", 30)
            mergekern.merge("regmean", output=tmp_path / str(nbytes), threads=1, **options)
        assert hashes(tmp_path / str(nbytes)) == hashes(tmp_path / "out")


def recipe(layers: dict[str, Path], names: str = "ab") -> dict[str, Any]:
    pairs = [(str(layers[name]), str(layers[f"{name}.gram"])) for name in names]
    models = [{"model": model, "statistics": file} for model, file in pairs]
    return {"merge_method": "regmean", "models": models}


def test_one_factor_serves_its_tensors(
    layers: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """q and v have one matrix."""
    made: list[int] = []
    factorise = Workers.factorise

    def counted(self: Workers, a: Any, *more: Any) -> None:
        made.append(len(a))
        factorise(self, a, *more)

    monkeypatch.setattr(Workers, "factorise", counted)
    with (
        ready([read(recipe(layers))], [tmp_path / "out"], DEFAULT) as (job,),
        closing(Solutions(job.plan, job.checkpoints, Workers())) as solutions,
    ):
        for name in ("l.0.q", "l.0.v", "l.0.q", "l.1.q", "l.0.conv"):
            solutions.read(name, 5, 900, None)
    assert made == [64, 64, 200]


def test_plans_account_for_all(layers: dict[str, Path], tmp_path: Path) -> None:
    plan = mergekern.plan("regmean", **asked(layers, "ab"))
    assert "solves   5 tensors, with matrices of 64, 200 rows" in str(plan)
    assert str(layers["a.gram"]) in str(plan) and "solutions of" not in str(plan)
    weights = sum(2 * a * b for a, b in LAYER.values()) + 4 * 96
    square = 4 * (2 * 64**2 + 2 * 200**2)  # q and v share one
    assert plan.input_bytes == 2 * (weights + square)
    least = plan.memory.least
    with pytest.raises(BudgetError, match=r"are what l\.\d\.\w+ is solved for with"):
        mergekern.merge(
            "regmean", output=tmp_path / "out", max_memory=least - (1 << 20), **asked(layers, "ab")
        )


def test_a_grid_and_its_single_merges(layers: dict[str, Path], tmp_path: Path) -> None:
    grid = {"grid": {"reduction": [0.0, 0.5, 0.9]}}
    mergekern.merge_many(recipe(layers) | grid, outputs=tmp_path / "grid")
    for folder in sorted((tmp_path / "grid").iterdir()):
        value = float(folder.name.rpartition("=")[2])
        alone = tmp_path / f"alone{value}"
        mergekern.merge("regmean", output=alone, **asked(layers, "ab", reduction=value))
        assert load(alone).keys() == load(folder).keys()
        assert hashes(alone)["model.safetensors"] == hashes(folder)["model.safetensors"]


def test_an_interrupted_merge_goes_on(
    layers: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mergekern.merge("regmean", output=tmp_path / "whole", **asked(layers))
    solve, calls = Solutions.read, []

    def stopping(self: Solutions, *given: Any) -> Any:
        calls.append(given)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return solve(self, *given)

    with monkeypatch.context() as patch:
        buffers(patch, 1 << 20)
        patch.setattr(import_module("mergekern.plan"), "SOLVED", 128)
        patch.setattr(Solutions, "read", stopping)
        with pytest.raises(KeyboardInterrupt):
            mergekern.merge("regmean", output=tmp_path / "out", **asked(layers))
    report = mergekern.merge("regmean", output=tmp_path / "out", **asked(layers))
    assert isinstance(report, mergekern.MergeReport) and report.resumed
    assert hashes(tmp_path / "out") == hashes(tmp_path / "whole")


def test_files_that_are_refused(layers: dict[str, Path], tmp_path: Path) -> None:
    path, matrices = tmp_path / "a.safetensors", load_file(layers["a.gram"])

    def plan(file: Path) -> Any:
        options = asked(layers, "ab")
        return mergekern.plan("regmean", **{**options, "statistics": [file, layers["b.gram"]]})

    with pytest.raises(MismatchError, match="made from another model"):
        plan(layers["c.gram"])
    with pytest.raises(CheckpointError, match="holds fisher; want a file of gram"):
        plan(write_grams(path, layers["a"], matrices, kind="fisher"))
    with pytest.raises(CheckpointError, match=r"l\.0\.v shares the matrix of l\.9, which"):
        plan(write_grams(path, layers["a"], matrices, shares={"l.0.v": "l.9"}))
    with pytest.raises(MismatchError, match=r"l\.0\.conv: .* \[200, 200\]; want .* \[96, 96\]"):
        plan(write_grams(path, layers["a"], matrices, shares={"l.0.v": "l.0.q"}))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_from_collected_files(kind: str, tmp_path: Path) -> None:
    """Collected, merged and loaded; Conv1D's weights are [inputs, outputs], square ones too."""
    from transformers import AutoModelForCausalLM

    data, folders, statistics = texts(tmp_path), {}, {}
    for seed, name in enumerate(("base", "a", "b")):
        folders[name] = speaking(tmp_path / name, kind, seed)
        if seed:
            statistics[str(folders[name])] = tmp_path / f"{name}.gram.safetensors"
            options: dict[str, Any] = {"samples": 12, "device": "cpu"}
            mergekern.collect(
                "gram", folders[name], data, output=statistics[str(folders[name])], **options
            )
    mergekern.merge(
        "regmean",
        base=folders["base"],
        models=list(statistics),
        statistics=statistics,
        output=tmp_path / "out",
    )
    got = load(tmp_path / "out")
    models = [load(folders[name]) for name in ("a", "b")]
    files = [load_file(path) for path in statistics.values()]
    with safe_open(next(iter(statistics.values())), "pt") as file:
        said = json.loads(file.metadata()["mergekern"])
    names = files[0].keys() | said["shares"].keys()
    assert len(names) == (14 if kind == "llama" else 8)
    for name in names:
        matrices = [file[said["shares"].get(name, name)] for file in files]
        wanted = solved(
            [m[name] for m in models], matrices, 0.9, untransposed=name in said["untransposed"]
        )
        torch.testing.assert_close(got[name].double(), wanted, rtol=1e-6, atol=1e-6)
    embed = next(name for name in got if "embed" in name or "wte" in name)
    assert torch.equal(got[embed], load(folders["base"])[embed])
    norm = next(name for name in got if "norm" in name or "ln_1.bias" in name)
    close(got[norm], (models[0][norm].double() + models[1][norm].double()) / 2)
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_slices_pair_layers_with_their_own_matrices(tmp_path: Path) -> None:
    """Layer 0 of one model beside layer 1 of the other."""
    data, given = texts(tmp_path), {}
    for seed, name in enumerate("ab"):
        folder = speaking(tmp_path / name, "llama", seed)
        path = tmp_path / f"{name}.gram.safetensors"
        mergekern.collect("gram", folder, data, samples=12, device="cpu", output=path)
        given[name] = {"model": str(folder), "statistics": str(path)}
    pairs = [{"a": [0, 1], "b": [1, 2]}, {"a": [1, 2], "b": [0, 1]}]
    slices = [
        {"sources": [given[name] | {"layer_range": layers} for name, layers in pair.items()]}
        for pair in pairs
    ]
    mergekern.merge({"merge_method": "regmean", "slices": slices}, tmp_path / "out")
    a, b = (load(tmp_path / name) for name in "ab")
    matrices = [load_file(tmp_path / f"{name}.gram.safetensors") for name in "ab"]
    first, second = (f"model.layers.{n}.mlp.down_proj.weight" for n in (0, 1))
    wanted = solved([a[first], b[second]], [matrices[0][first], matrices[1][second]], 0.9)
    got = load(tmp_path / "out")[first].double()
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6)
