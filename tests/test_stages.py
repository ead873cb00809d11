"""Merging a recipe of several documents: each stage once, into its folder, then the result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from folders import tensors, write_model
from safetensors.torch import load_file
from typer.testing import CliRunner

import mergekern
from mergekern.cli import app
from mergekern.errors import OutputError, RecipeError
from mergekern.staging import StagePlans

STAGES = """
name: first
merge_method: linear
models:
- model: {a}
- model: {b}
dtype: float32
---
merge_method: linear
models:
- model: first
- model: {c}
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> str:
    root = tmp_path_factory.mktemp("inputs")
    made = {name: write_model(root / name, small(seed)) for seed, name in enumerate("abc")}
    return STAGES.format(**made)


def small(seed: int) -> dict[str, torch.Tensor]:
    return {k: v for k, v in tensors(seed).items() if v.numel() < 100}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_stages_are_merged_once_and_the_result_from_them(recipe, tmp_path) -> None:
    out = tmp_path / "out"
    report: Any = mergekern.merge(recipe, output=out)
    assert (report.output, report.stages[0].output) == (out, tmp_path / "out.stages" / "first")
    assert f"note: {out} is whole without the stages in {tmp_path / 'out.stages'}" in str(report)
    a, b, c = (small(seed)["tiny.6"].float() for seed in range(3))
    first = weights(tmp_path / "out.stages" / "first")["tiny.6"]
    assert torch.equal(first, (a + b) / 2)
    assert torch.equal(weights(out)["tiny.6"], (first + c) / 2)
    again: Any = mergekern.merge(recipe, output=out)
    assert [r.bytes_read for r in (again, *again.stages)] == [0, 0]
    (out / "config.json").unlink()
    once: Any = mergekern.merge(recipe, output=out)
    assert once.stages[0].bytes_read == 0


def test_the_folder_for_stages_and_the_command_line(recipe, tmp_path) -> None:
    path = tmp_path / "recipe.yml"
    path.write_text(recipe)
    given = [str(path), str(tmp_path / "out"), "--intermediate-dir", str(tmp_path / "mid")]
    dry = CliRunner().invoke(app, ["merge", *given, "--dry-run"])
    assert dry.exit_code == 0, dry.output
    assert f"stage first: {tmp_path / 'mid' / 'first'}\nmethod" in dry.output
    assert f"planned once {tmp_path / 'mid' / 'first'} is there: linear" in dry.output
    done = CliRunner().invoke(app, ["merge", *given, "--quiet"])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "mid" / "first" / "config.json").exists()
    planned = mergekern.plan(recipe, output=tmp_path / "out", intermediate=tmp_path / "mid")
    assert isinstance(planned, StagePlans)
    assert all(plan is not None for plan in planned.plans)
    assert "output.stages" in CliRunner().invoke(app, ["plan", str(path)]).output


def test_what_stages_do_not_take(recipe, tmp_path) -> None:
    out = tmp_path / "out"
    with pytest.raises(RecipeError, match="weight is given with a recipe of several documents"):
        mergekern.merge(recipe, output=out, weight=1)
    with pytest.raises(RecipeError, match="dtype is given with a recipe of several"):
        mergekern.merge(recipe, output=out, dtype="float32")
    with pytest.raises(OutputError, match="stages are merged into folders: give output="):
        mergekern.merge(recipe)
    with pytest.raises(OutputError, match="lies inside output"):
        mergekern.merge(recipe, output=out, intermediate=out / "mid")
    with pytest.raises(RecipeError, match="intermediate is for the stages"):
        mergekern.merge("linear", models=["a"], output=out, intermediate=out)
    assert not out.exists()
