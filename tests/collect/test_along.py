"""Matrices along a merge are those of the experts' layers on what the merged layers before make."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from collected import TEXTS, speaking
from folders import hashes, load
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import mergekern
from mergekern.cli import app
from mergekern.collect.along import collect_along
from mergekern.collect.layers import Layers
from mergekern.errors import CollectError, MergeError, MismatchError, OutputError

KINDS = ("llama", "gpt2")
REDUCTION = 0.7
WEIGHT = [1.0, 2.0]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root, found = tmp_path_factory.mktemp("along"), {}
    for kind in KINDS:
        for seed, name in enumerate(("base", "a", "b")):
            found[f"{kind}.{name}"] = speaking(root / kind / name, kind, seed)
    for name, begin in (("a", 0), ("b", 6)):
        lines = [json.dumps({"text": text}) + "\n" for text in TEXTS[begin : begin + 6]]
        found[name] = root / f"{name}.jsonl"
        found[name].write_text("".join(lines))
    return found


def collected(folders: dict[str, Path], kind: str, output: Path, **more: Any) -> list[Any]:
    output.mkdir(exist_ok=True)
    options: dict[str, Any] = {"samples": 6, "device": "cpu", "reduction": REDUCTION}
    options |= {"base": folders[f"{kind}.base"], "weight": WEIGHT, "output": output}
    models = [folders[f"{kind}.{name}"] for name in "ab"]
    return collect_along(models, [folders["a"], folders["b"]], **(options | more))


def merged(folders: dict[str, Path], kind: str, files: Path, output: Path, **more: Any) -> Any:
    options: dict[str, Any] = {"reduction": REDUCTION, "weight": WEIGHT}
    return mergekern.merge(
        "regmean_plusplus",
        base=folders[f"{kind}.base"],
        models=[str(folders[f"{kind}.{name}"]) for name in "ab"],
        statistics=[files / f"{name}.regmean_plusplus.safetensors" for name in "ab"],
        output=output,
        **(options | more),
    )


def said(path: Path) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        found: dict[str, Any] = json.loads(file.metadata()["mergekern"])
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_by_hand(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """The merge with its layer l, and no later one, put back to the expert's is what is run."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    found = collected(folders, kind, tmp_path / "files")
    assert [each.samples for each in found] == [6, 6] and all(each.seconds for each in found)
    merged(folders, kind, tmp_path / "files", tmp_path / "out")
    prefix = "model.layers" if kind == "llama" else "transformer.h"
    tokenizer = AutoTokenizer.from_pretrained(folders[f"{kind}.a"])
    for name, texts in (("a", TEXTS[:6]), ("b", TEXTS[6:])):
        path = tmp_path / "files" / f"{name}.regmean_plusplus.safetensors"
        grams, about = load_file(path), said(path)
        for number in range(2):
            model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float64)
            own = AutoModelForCausalLM.from_pretrained(
                folders[f"{kind}.{name}"], dtype=torch.float64
            )
            layer = model.get_submodule(f"{prefix}.{number}")
            layer.load_state_dict(own.get_submodule(f"{prefix}.{number}").state_dict())
            seen: dict[str, list[torch.Tensor]] = {}

            def keep(weight: str, seen: Any = seen) -> Callable[..., None]:
                return lambda _, args: seen.setdefault(weight, []).append(args[0][0])

            for inner, module in layer.named_modules():
                if type(module).__name__ in ("Linear", "Conv1D"):
                    weight = f"{prefix}.{number}.{inner}.weight"
                    module.register_forward_pre_hook(keep(weight.removeprefix("transformer.")))
            with torch.no_grad():
                for text in texts:
                    model(**tokenizer(text, return_tensors="pt"))
            assert len(seen) == (7 if kind == "llama" else 4)
            for weight, parts in seen.items():
                stored = weight if weight in load(folders[f"{kind}.a"]) else f"transformer.{weight}"
                x = torch.cat(parts)
                got = grams[about["shares"].get(stored, stored)].double()
                torch.testing.assert_close(got, x.T @ x / len(x), rtol=1e-4, atol=1e-5)


def test_a_kill_costs_what_was_not_finished(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collected(folders, "llama", tmp_path / "whole")
    run, calls = Layers.run, []

    def stopping(self: Layers, *given: Any) -> Any:
        calls.append(given)
        if len(calls) == stop:
            raise KeyboardInterrupt
        return run(self, *given)

    # In the first layer of b, in the merged one, in the last layer of b.
    for stop in (9, 20, 33):
        files = tmp_path / str(stop)
        with monkeypatch.context() as patch:
            patch.setattr(Layers, "run", stopping)
            calls.clear()
            with pytest.raises(KeyboardInterrupt):
                collected(folders, "llama", files)
        assert not list(files.glob("*.safetensors"))
        with pytest.raises(OutputError, match="begun with another model, other data or options"):
            collected(folders, "llama", files, reduction=0.1)
        collected(folders, "llama", files)
        assert hashes(files) == hashes(tmp_path / "whole")
    again = collected(folders, "llama", tmp_path / "whole")
    assert all(each.found for each in again)
    (tmp_path / "whole" / "a.regmean_plusplus.safetensors").unlink()
    with pytest.raises(OutputError, match=r"a\.regm.* is gone, and .* remove .*b\.regm.*, too"):
        collected(folders, "llama", tmp_path / "whole")
    collected(folders, "llama", tmp_path / "whole2", dry_run=True)
    assert not list((tmp_path / "whole2").iterdir())


def test_parameters_are_checked_before_anything_is_begun(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    for wrong, message in (
        ({"reduction": 7.0}, "reduction"),
        ({"weight": -1.0}, "weight"),
        ({"weight": 0.0}, "all 0"),
        ({"singular": "x"}, "singular"),
        ({"rest": "x"}, "rest"),
    ):
        with pytest.raises(MergeError, match=message):
            collected(folders, "llama", tmp_path / "files", **wrong)
    assert not list((tmp_path / "files").glob("*"))


def test_sets_that_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    collected(folders, "llama", tmp_path / "files")
    collected(folders, "llama", tmp_path / "others", reduction=0.1)
    file = "b.regmean_plusplus.safetensors"
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for source, name in (("files", "a.regmean_plusplus.safetensors"), ("others", file)):
        (mixed / name).write_bytes((tmp_path / source / name).read_bytes())
    with pytest.raises(MismatchError, match="were collected along different merges"):
        merged(folders, "llama", mixed, tmp_path / "out")
    with pytest.raises(MismatchError, match="along a merge of 2 models, and 1 are merged here"):
        mergekern.plan(
            "regmean_plusplus",
            models=[str(folders["llama.b"])],
            statistics=[tmp_path / "files" / file],
        )
    files = [tmp_path / "files" / f"{name}.regmean_plusplus.safetensors" for name in "ba"]
    models = [str(folders[f"llama.{name}"]) for name in "ba"]
    asked: dict[str, Any] = {"models": models, "statistics": files, "reduction": REDUCTION}
    base = str(folders["llama.base"])
    other = tmp_path / "other"
    shutil.copytree(base, other)
    changed = load(other)
    changed["model.norm.weight"][0] += 1
    save_file(changed, other / "model.safetensors")
    # In another order the weights are those of the models, wherever these stand.
    assert not mergekern.plan("regmean_plusplus", base=base, weight=[2.0, 1.0], **asked).notes
    told = mergekern.plan("regmean_plusplus", base=base, weight=[1.0, 2.0], **asked).notes
    assert any("with weight [2.0, 1.0], and this one has (1.0, 2.0)" in note for note in told)
    with pytest.raises(MismatchError, match="along a merge over a base, and there is none here"):
        mergekern.plan("regmean_plusplus", weight=[2.0, 1.0], **asked)
    with pytest.raises(MismatchError, match="over a base, and here it is"):
        mergekern.plan("regmean_plusplus", base=other, weight=[2.0, 1.0], **asked)
    report = merged(folders, "llama", tmp_path / "files", tmp_path / "out", reduction=0.2)
    assert "collected along a merge with reduction 0.7, and this one has 0.2" in str(report)


def test_the_command(folders: dict[str, Path], tmp_path: Path) -> None:
    collected(folders, "llama", tmp_path / "called")
    (tmp_path / "files").mkdir()
    line = ["collect", "regmean_plusplus", "--output", str(tmp_path / "files"), "--device", "cpu"]
    for name in "ab":
        line += ["--model", str(folders[f"llama.{name}"]), "--data", str(folders[name])]
    line += ["--samples", "6", "--reduction", str(REDUCTION), "--base", str(folders["llama.base"])]
    done = CliRunner().invoke(app, [*line, "--weight", "1", "--weight", "2"])
    assert done.exit_code == 0, done.output
    assert hashes(tmp_path / "files") == hashes(tmp_path / "called")
    for wrong, complaint in (
        ([*line, "--model", "c"], "regmean_plusplus is given 3 models and 2 data"),
        (["collect", "gram", *line[2:14]], "gram is of one model and its data"),
        ([*line, "--weight", "1", "--weight", "2", "--weight", "3"], "weight has 3 values for 2"),
        ([*line, "--model", line[7], "--data", str(folders["a"])], "two models end in one name"),
    ):
        told = CliRunner().invoke(app, wrong)
        assert told.exit_code == 1 and complaint in " ".join(told.output.split()), told.output
    with pytest.raises(CollectError, match="of all models at once"):
        mergekern.collect("regmean_plusplus", folders["llama.a"], folders["a"])
