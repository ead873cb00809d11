"""fisher: the formula in float64; statistics are paired by model, checked, and streamed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from collected import speaking, texts
from folders import buffers, hashes, load, write_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

import mergekern
from mergekern.cli import app
from mergekern.errors import CheckpointError, MismatchError, NonFiniteError, RecipeError

State = dict[str, Tensor]
EMBED = "model.embed_tokens.weight"
SHAPES = {"a": (37, 111), "b": (5,), "c": (64, 33), EMBED: (11, 4), "empty": (0, 3)}


def state(seed: int) -> State:
    g = torch.Generator().manual_seed(seed)
    return {n: torch.randn(s, generator=g).bfloat16() for n, s in SHAPES.items()}


def diagonal(seed: int) -> State:
    """From 0 to 1, over many orders of magnitude; none of the embedding."""
    g = torch.Generator().manual_seed(100 + seed)
    found = {n: torch.rand(s, generator=g) ** 30 for n, s in SHAPES.items() if n != EMBED}
    found["b"][:2] = 0
    return found


def mean(weight: list[float], models: list[State], fishers: list[State], name: str) -> Tensor:
    parts = [w * (f[name].double() + 1e-10) for w, f in zip(weight, fishers, strict=True)]
    total = sum(p * x[name].double() for p, x in zip(parts, models, strict=True))
    return total / sum(parts)


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got.double(), want, rtol=2e-6, atol=1e-6)


def test_the_formula() -> None:
    base, *models = (state(seed) for seed in range(4))
    fishers = [diagonal(seed) for seed in range(3)]
    weight = [0.3, 1.0, 0.0]
    options: dict[str, Any] = {"models": models, "statistics": fishers, "weight": weight}
    got = mergekern.merge("fisher", base=base, dtype="float32", **options)
    assert isinstance(got, dict)
    for name in ("a", "b", "c"):
        close(got[name], mean(weight, models, fishers, name))
    assert torch.equal(got[EMBED], base[EMBED].float())
    wide = mergekern.merge(
        "fisher",
        models=models,
        statistics=[{n: f.double() for n, f in one.items()} for one in fishers],
    )
    assert isinstance(wide, dict)
    assert torch.equal(wide["c"], mean([1, 1, 1], models, fishers, "c").bfloat16())
    slow = mergekern.merge("fisher", base=base, dtype="float32", backend="reference", **options)
    assert all(torch.equal(got[name], slow[name]) for name in got)


def test_what_has_no_statistics() -> None:
    base, *models = (state(seed) for seed in range(3))
    fishers = [diagonal(seed) for seed in range(2)]
    for one in fishers:
        del one["a"]
    weighted = {n: (models[0][n].double() + 3 * models[1][n].double()) / 4 for n in ("a", EMBED)}
    options: dict[str, Any] = {"models": models, "statistics": fishers, "weight": [0.25, 0.75]}
    options["dtype"] = "float32"
    for rest, with_base, means in (
        ("base", True, ()),
        ("mean", True, ("a", EMBED)),
        ("vocabulary", True, ("a",)),
        ("base", False, ("a", EMBED)),
    ):
        named = {"base": base} if with_base else {}
        got = mergekern.merge("fisher", rest=rest, **named, **options)
        for name in ("a", EMBED):
            close(got[name], weighted[name] if name in means else base[name].double())


def test_equal_statistics_are_a_mean_and_equal_models_stay() -> None:
    model, other, fisher = state(1), state(2), diagonal(1)
    same = mergekern.merge("fisher", models=[model, dict(model)], statistics=[fisher, diagonal(2)])
    assert all(torch.equal(same[name], model[name]) for name in SHAPES)
    got = mergekern.merge("fisher", models=[model, other], statistics=[fisher, dict(fisher)])
    plain = mergekern.merge("linear", models=[model, other], dtype="float32")
    for name in SHAPES:
        torch.testing.assert_close(got[name].float(), plain[name], rtol=1e-2, atol=1e-6)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two models with their diagonals, of which each is asked to be made from the other's data."""
    root = tmp_path_factory.mktemp("fisher")
    data = texts(root)
    found = {}
    for seed, name in enumerate(("base", "a", "b")):
        found[name] = speaking(root / name, "llama", seed)
        if seed:
            found[f"{name}.fisher"] = root / f"{name}.fisher.safetensors"
            options: dict[str, Any] = {"samples": 4, "output": found[f"{name}.fisher"]}
            mergekern.collect("fisher", found[name], data, device="cpu", **options)
    return found


def recipe(folders: dict[str, Path], **more: str) -> dict[str, Any]:
    models = [
        {"model": str(folders[name]), "statistics": more.get(name, str(folders[f"{name}.fisher"]))}
        for name in ("b", "a")
    ]
    return {"merge_method": "fisher", "base_model": str(folders["base"]), "models": models}


def test_from_files(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By tiles of any size, with the bytes of the formula; every tensor is accounted for."""
    report = mergekern.merge(recipe(folders), tmp_path / "out", threads=2)
    assert isinstance(report, mergekern.MergeReport)
    got = load(tmp_path / "out")
    models = [load(folders[name]) for name in ("a", "b")]
    fishers = [load_file(folders[f"{name}.fisher"]) for name in ("a", "b")]
    for name in got:
        if name in fishers[0]:
            close(got[name], mean([1, 1], models, fishers, name))
    assert torch.equal(got[EMBED], load(folders["base"])[EMBED])
    assert {each.tensor for each in report.dropped} == {EMBED}
    lock = json.loads((tmp_path / "out" / "mergekern.lock.json").read_text())
    again = mergekern.merge(lock["recipe"], tmp_path / "again", threads=1)
    assert hashes(tmp_path / "again") == hashes(tmp_path / "out"), again
    buffers(monkeypatch, 1 << 18, tile=4096)
    mergekern.merge(recipe(folders), tmp_path / "tiles")
    assert hashes(tmp_path / "tiles") == hashes(tmp_path / "out")


def test_the_call_pairs_by_model(folders: dict[str, Path]) -> None:
    models = [str(folders["a"]), str(folders["b"])]
    files = {str(folders[name]): folders[f"{name}.fisher"] for name in ("b", "a")}
    options: dict[str, Any] = {"base": folders["base"], "models": models}
    got = mergekern.plan("fisher", statistics=files, **options)
    listed = mergekern.plan("fisher", statistics=list(files.values())[::-1], **options)
    assert got.digest == listed.digest
    assert got.models == (str(folders["base"]), *models, *(str(files[model]) for model in models))
    otherwise = {Path(models[1]): files[models[1]], f"{models[0]}/": files[models[0]]}
    for given in (otherwise, (each for each in list(files.values())[::-1])):
        assert got.digest == mergekern.plan("fisher", statistics=given, **options).digest
    for wrong in (set(files.values()), 5):
        with pytest.raises(RecipeError, match=r"statistics is .*; want a list"):
            mergekern.plan("fisher", statistics=wrong, **options)
    with pytest.raises(MismatchError, match=r"made from another model, .*b, than .*a"):
        mergekern.plan("fisher", statistics=list(files.values()), **options)
    with pytest.raises(RecipeError, match="statistics has 1 values for 2 models"):
        mergekern.plan("fisher", statistics=files[models[0]], **options)
    with pytest.raises(RecipeError, match="statistics of c: the models are"):
        mergekern.plan("fisher", statistics={"c": "d"}, **options)
    with pytest.raises(RecipeError, match=r"needs statistics of model .*b: .* collect fisher"):
        mergekern.plan("fisher", statistics={models[0]: files[models[0]]}, **options)


def test_the_command_line_pairs_by_model(folders: dict[str, Path], tmp_path: Path) -> None:
    base, a, b = (str(folders[name]) for name in ("base", "a", "b"))
    command = ["merge", "fisher", str(tmp_path / "out"), "--base", base, "-m", a, "-m", b]
    pairs = [f"{folders[name]}={folders[f'{name}.fisher']}" for name in ("b", "a")]
    options = [word for pair in pairs for word in ("--statistics", pair)]
    done = CliRunner().invoke(app, [*command, *options])
    assert done.exit_code == 0, done.output
    mergekern.merge(
        "fisher",
        base=base,
        models=[a, b],
        statistics=[folders["a.fisher"], folders["b.fisher"]],
        output=tmp_path / "called",
    )
    assert hashes(tmp_path / "called") == hashes(tmp_path / "out")
    # Shells complete folders with a / behind them.
    slashes = [word for pair in pairs for word in ("--statistics", pair.replace("=", "/=", 1))]
    line = ["plan", "fisher", "--base", base, "-m", a, "-m", f"{b}/", *slashes]
    assert CliRunner().invoke(app, line).exit_code == 0
    odd = tmp_path / "b=1"
    odd.symlink_to(folders["b"])
    pairs = [f"{odd}={folders['b.fisher']}", f"{a}={folders['a.fisher']}"]
    given = [word for pair in pairs for word in ("--statistics", pair)]
    line = ["plan", "fisher", "--base", base, "-m", a, "-m", str(odd), *given]
    assert CliRunner().invoke(app, line).exit_code == 0
    layers = [{"model": model, "layer_range": [0, 1]} for model in (a, b)]
    content = {"merge_method": "fisher", "base_model": base, "slices": [{"sources": layers}]}
    (tmp_path / "slices.yml").write_text(json.dumps(content))
    done = CliRunner().invoke(app, ["plan", str(tmp_path / "slices.yml"), *options])
    assert done.exit_code == 0, done.output
    for wrong, complaint in (
        (["--statistics", "file"], "want MODEL=FILE"),
        ([*options, *options[:2]], "given twice"),
        (["--statistics", "c=d"], "statistics of c: the models are"),
        (["-p", "statistics=a,b"], "statistics is an option of its own: --statistics"),
    ):
        done = CliRunner().invoke(app, [*command, *wrong])
        assert done.exit_code == 1 and complaint in " ".join(done.stderr.split())


def test_files_that_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    """Of another model, whatever it is called; of a model that has changed; of nothing known."""
    with pytest.raises(MismatchError, match="made from another model"):
        mergekern.plan(recipe(folders, a=str(folders["b.fisher"])))
    weights = load(folders["a"])
    weights["model.norm.weight"][0] += 1
    changed = write_model(tmp_path / "changed", weights)
    (changed / "config.json").write_bytes((folders["a"] / "config.json").read_bytes())
    with pytest.raises(MismatchError, match="or that has changed since"):
        mergekern.plan(recipe(folders | {"a": changed}))
    save_file({"x": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="holds something else; want a file of fisher"):
        mergekern.plan(recipe(folders, a=str(tmp_path / "other.safetensors")))


def test_tensors_that_do_not_go_together() -> None:
    models, fishers = [state(1), state(2)], [diagonal(1), diagonal(2)]
    options: dict[str, Any] = {"models": models, "statistics": fishers}
    fishers[1]["a"] = fishers[1]["a"].T.contiguous()
    with pytest.raises(MismatchError, match=r"tensor a: .* float32 \[111, 37\]; want floats of"):
        mergekern.merge("fisher", **options)
    del fishers[1]["a"]
    with pytest.raises(MismatchError, match=r"tensor a: the statistics .* and .* lack it"):
        mergekern.merge("fisher", **options)
    fishers[:] = [diagonal(1), diagonal(2)]
    fishers[1]["c"][3, 3] = float("nan")
    with pytest.raises(NonFiniteError, match=r"c: NaN or Inf in statistics\[1\]"):
        mergekern.merge("fisher", **options)
    with pytest.raises(RecipeError, match="weights of fisher are all 0"):
        mergekern.merge("fisher", weight=0, **options)


def test_methods_without_statistics_say_so() -> None:
    plan = mergekern.plan("linear", models=[state(1), state(2)], statistics=[diagonal(1), None])
    assert any("linear takes no statistics" in note for note in plan.notes)
