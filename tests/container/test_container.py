"""What containers keep of every model, what materialise() makes of them, and what both refuse."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from folders import hashes, load, write_model
from models import tiny_llama
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
)
from typer.testing import CliRunner

import mergekern
from mergekern.checkpoint import open_checkpoint
from mergekern.checkpoint.container import MANIFEST
from mergekern.cli import app
from mergekern.container.materialise import plan_materialise
from mergekern.errors import (
    CheckpointError,
    MismatchError,
    NonFiniteError,
    OutputError,
    RecipeError,
)
from mergekern.evaluate.subject import subject_of

State = dict[str, torch.Tensor]


def noisy(seed: int, near: Mapping[str, torch.Tensor] | None = None, **shapes: Any) -> State:
    """Random tensors of these shapes, or near given ones."""
    g = torch.Generator().manual_seed(seed)
    if near is not None:
        return {n: x + 0.01 * torch.randn(x.shape, generator=g) for n, x in near.items()}
    return {name: torch.randn(shape, generator=g) for name, shape in shapes.items()}


def container(tmp_path: Path, base: State, **models: State) -> Path:
    """One of models by the names of their folders."""
    like = write_model(tmp_path / "base", base)
    folders = [write_model(tmp_path / name, state) for name, state in models.items()]
    mergekern.merge("emr", base=like, models=folders, output=tmp_path / "c")
    return tmp_path / "c"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A container of two models, `math` and `code`, with its models beside it."""
    root = tmp_path_factory.mktemp("small")
    base = noisy(0, a=(70, 9), b=(1001,))
    return container(root, base, math=noisy(1, base), code=noisy(2, base))


def taken(folder: Path, task: str, **options: Any) -> State:
    out = folder.parent / f"{task}.out"
    shutil.rmtree(out, ignore_errors=True)
    mergekern.materialise(folder, out, task=task, **options)
    return load(out)


# what is kept


def test_what_does_not_fit_the_base_is_the_tasks_own(tmp_path: Path) -> None:
    """Heads of their own, a grown vocabulary, what only one has, and what one lacks."""
    base = noisy(0, body=(40, 30), embed=(50, 30), alone=(5,), rest=(6,))
    body, embed = base["body"], base["embed"]
    one = noisy(1, {"body": body, "embed": embed, "alone": base["alone"]}) | noisy(9, head=(2, 30))
    two = noisy(2, {"body": body, "embed": torch.cat([embed, embed[:3]])}) | noisy(8, head=(7, 30))
    three = noisy(3, {"body": body, "embed": embed})
    folder = container(tmp_path, base, one=one, two=two, three=three)
    assert set(load(folder / "unified")) == {"body", "embed"}
    found = {task: taken(folder, task) for task in ("one", "two", "three")}
    for task, state in (("one", one), ("two", two), ("three", three)):
        assert {n: x.shape for n, x in found[task].items()} == {
            n: x.shape for n, x in state.items()
        }
    for name in ("head", "alone"):
        assert torch.equal(found["one"][name], one[name])
    for name in ("head", "embed"):
        assert torch.equal(found["two"][name], two[name])
    stated = json.loads((folder / MANIFEST).read_text())["tasks"]
    assert [set(stated[task]["own"]) for task in stated] == [
        {"head", "alone"},
        {"head", "embed"},
        set(),
    ]
    plan = str(
        mergekern.plan(
            "emr", base=tmp_path / "base", models=[tmp_path / n for n in ("one", "two", "three")]
        )
    )
    for line in (
        "reads       44.7 KB",
        "2 unified, 2 own of one, 2 own of two, 2 left out",
        f"own of two  embed: has shape [53, 30], {tmp_path / 'base'} has [50, 30]",
        f"head: the base {tmp_path / 'base'} lacks it",
        "alone: fits in this model alone",
        f"rest of {tmp_path / 'base'}: no model has it",
        "tasks/three/: 338 B of masks",
        "memory",
    ):
        assert line in plan, plan


def test_integers_and_kinds_that_do_not_merge(tmp_path: Path) -> None:
    ids = {"w": torch.randn(9), "ids": torch.arange(5)}
    other = ids | {"ids": torch.arange(5) + 1}
    folder = container(tmp_path, ids, one=other)
    assert torch.equal(taken(folder, "one")["ids"], other["ids"])
    odd = {"w": torch.randn(9).to(torch.float8_e4m3fn), "v": torch.randn(3)}
    folders = [str(write_model(tmp_path / f"odd{n}", odd)) for n in range(3)]
    with pytest.raises(MismatchError, match=r"tensor w: .* float8_e4m3fn, which does not merge"):
        mergekern.merge("emr", base=folders[0], models=folders[1:], output=tmp_path / "x")


def test_models_load_as_they_did(tmp_path: Path) -> None:
    """Classifiers of one body: their own heads, names, configs."""
    torch.manual_seed(0)
    sizes: dict[str, int] = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(vocab_size=50, intermediate_size=32, **sizes)
    BertModel(config, add_pooling_layer=True).save_pretrained(tmp_path / "base")
    for task, labels in (("mood", 3), ("topic", 11)):
        torch.manual_seed(labels)
        config.num_labels = labels
        model = BertForSequenceClassification(config)
        model.bert.load_state_dict(
            {
                n: x + 0.01 * torch.randn(x.shape) if x.dtype.is_floating_point else x
                for n, x in BertModel.from_pretrained(tmp_path / "base").state_dict().items()
            }
        )
        model.save_pretrained(tmp_path / task)
    models = [tmp_path / "mood", tmp_path / "topic"]
    mergekern.merge("emr", base=tmp_path / "base", models=models, output=tmp_path / "c")
    for task, labels in (("mood", 3), ("topic", 11)):
        mergekern.materialise(tmp_path / "c", tmp_path / "out" / task, task=task)
        model, info = AutoModelForSequenceClassification.from_pretrained(
            tmp_path / "out" / task, output_loading_info=True
        )
        assert not info["missing_keys"] and not info["unexpected_keys"]
        assert load(tmp_path / "out" / task).keys() == load(tmp_path / task).keys()
        want = AutoModelForSequenceClassification.from_pretrained(tmp_path / task)
        assert torch.equal(model.classifier.weight, want.classifier.weight)
        assert model.config.num_labels == labels
        body, like = model.bert.pooler.dense.weight, want.bert.pooler.dense.weight
        assert not torch.equal(body, like) and (body - like).abs().max() < 0.1


def test_one_language_model_runs_as_it_did(tmp_path: Path) -> None:
    base, tuned = tiny_llama(tmp_path / "base", tie=True), tiny_llama(tmp_path / "a", 1, tie=True)
    mergekern.merge("emr", base=base, models=[tuned], output=tmp_path / "c", dtype="float32")
    mergekern.materialise(tmp_path / "c", tmp_path / "out", task="a", dtype="bfloat16")
    found, want = (
        AutoModelForCausalLM.from_pretrained(f, dtype="auto") for f in (tmp_path / "out", tuned)
    )
    tokens = torch.tensor([[1, 2, 3]])
    assert torch.equal(found(tokens).logits, want(tokens).logits)
    subject = subject_of(f"{tmp_path / 'c'}@a")
    assert subject.origin["kind"] == "recipe"
    with pytest.raises(CheckpointError, match="is a container of several models"):
        subject_of(str(tmp_path / "c"))


def test_a_task_is_a_model_wherever_one_is_named(small: Path, tmp_path: Path) -> None:
    want = taken(small, "math")
    mergekern.merge(
        "linear", models=[f"{small}@math", f"{small}@code"], weight=[1, 0], output=tmp_path / "out"
    )
    assert all(torch.equal(x, want[n]) for n, x in load(tmp_path / "out").items())
    with closing(open_checkpoint(small, revision="math")) as checkpoint:  # at any element
        for name, x in want.items():
            flat, info = x.reshape(-1), checkpoint.tensors[name]
            for start in {0, 1, 13, info.numel - 1}:
                stop = min(info.numel, start + 77)
                found = torch.from_numpy(checkpoint.read(name, start, stop, None).copy())
                assert torch.equal(found, flat[start:stop])


# names of tasks


def test_tasks_are_called_as_their_models(tmp_path: Path) -> None:
    base = noisy(0, w=(9,))
    like = write_model(tmp_path / "base", base)
    paths = [tmp_path / "x" / "run", tmp_path / "y" / "run", tmp_path / "my model+v2"]
    models = [str(write_model(path, noisy(n, base))) for n, path in enumerate(paths)]
    mergekern.merge("emr", base=like, models=models, output=tmp_path / "c")
    assert sorted(os.listdir(tmp_path / "c/tasks")) == ["my-model-v2", "run-1", "run-2"]
    named = {"base": like, "models": models, "task": ["a", "b", "run"]}
    assert list(mergekern.plan("emr", **named).tasks) == ["a", "b", "run"]
    recipe = {
        "merge_method": "emr",
        "base_model": str(like),
        "models": [{"model": m, "task": t} for m, t in zip(models[:2], ("one", None), strict=True)],
    }
    assert list(mergekern.plan(recipe).tasks) == ["one", "run"]


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (["a", "a"], "task a is given to 2 models"),
        (["a/b", "c"], "task is 'a/b'; want letters"),
        (["a@b", "c"], "task is 'a@b'"),
        (["..", "c"], r"task is '\.\.'"),
        (["a"], "task has 1 values for 2 models"),
        ({"nobody": "a"}, "task of nobody: the models are"),
    ],
)
def test_names_that_are_none(small: Path, task: Any, message: str) -> None:
    models = [str(small.parent / name) for name in ("math", "code")]
    with pytest.raises(RecipeError, match=message):
        mergekern.plan("emr", base=str(small.parent / "base"), models=models, task=task)


def test_a_name_without_a_container_has_no_effect(small: Path) -> None:
    recipe = {
        "merge_method": "linear",
        "models": [{"model": str(small.parent / "math"), "task": "m"}],
    }
    assert "task m has no effect: linear writes one model" in mergekern.plan(recipe).notes


def test_tasks_of_a_container_keep_their_names(small: Path) -> None:
    base, models = str(small.parent / "base"), [f"{small}@math", f"{small}@code"]
    assert list(mergekern.plan("emr", base=base, models=models).tasks) == ["math", "code"]


def test_plans_count_what_lies_behind_a_task(small: Path) -> None:
    numel = 70 * 9 + 1001
    masks = -(-70 * 9 // 8) + -(-1001 // 8)
    plan = plan_materialise(small, small.parent / "nowhere", task="math")
    assert plan.input_bytes == 2 * 4 * numel + masks


def test_the_base_has_no_task(small: Path) -> None:
    base, math = (str(small.parent / name) for name in ("base", "math"))
    plan = mergekern.plan("emr", base=base, models=[base, math], task=["b", "m"])
    assert list(plan.tasks) == ["m"]
    assert f"task b has no effect: {base} is the base" in plan.notes


# what is refused


def test_unknown_tasks(small: Path, tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"no task 'maths'; did you mean 'math'\? \(tasks: math"
    ):
        mergekern.materialise(small, tmp_path / "x", task="maths")
    with pytest.raises(
        CheckpointError, match=r"several models \(math, code\): name one, as .*@math"
    ):
        open_checkpoint(small)
    with pytest.raises(CheckpointError, match=f"has no {MANIFEST}: want one that a merge by emr"):
        mergekern.materialise(small.parent / "base", tmp_path / "x", task="math")
    assert not (tmp_path / "x").exists()


def test_another_base(small: Path, tmp_path: Path) -> None:
    """A copy of the base will do, whatever it is called; a fine-tune of it will not."""
    root = small.parent
    copy = shutil.copytree(root / "base", tmp_path / "copy")
    want = taken(small, "math")
    found = taken(small, "math", base=str(copy))
    assert all(torch.equal(x, want[n]) for n, x in found.items())
    with pytest.raises(CheckpointError, match=r"was merged with another base than .*math is now"):
        mergekern.materialise(small, tmp_path / "x", task="math", base=str(root / "math"))
    moved = shutil.copytree(small, tmp_path / "moved")
    manifest = json.loads((moved / MANIFEST).read_text())
    manifest["base"]["model"] = str(tmp_path / "gone")
    (moved / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"its base cannot be read .*materialise --base"):
        mergekern.materialise(moved, tmp_path / "x", task="math")
    mergekern.materialise(moved, tmp_path / "x", task="math", base=str(copy))
    with pytest.raises(CheckpointError, match="is no container of several models"):
        open_checkpoint(copy, base=mergekern.checkpoint.container.Base(model="x"))


def test_a_base_named_relatively_is_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = noisy(0, w=(9,))
    write_model(tmp_path / "base", base)
    write_model(tmp_path / "math", noisy(1, base))
    monkeypatch.chdir(tmp_path)
    mergekern.merge("emr", base="base", models=["math"], output="c")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    mergekern.materialise(tmp_path / "c", "out", task="math")
    assert load(tmp_path / "elsewhere/out").keys() == base.keys()


def test_a_base_in_memory_is_given_again(small: Path, tmp_path: Path) -> None:
    root = small.parent
    models = [root / "math", load(root / "code")]
    mergekern.merge("emr", base=load(root / "base"), models=models, output=tmp_path / "c")
    assert sorted(os.listdir(tmp_path / "c/tasks")) == ["math", "task"]
    with pytest.raises(CheckpointError, match=r"with a base in memory: give .* materialise --base"):
        mergekern.materialise(tmp_path / "c", tmp_path / "x", task="math")
    mergekern.materialise(tmp_path / "c", tmp_path / "m", task="math", base=str(root / "base"))
    want = taken(small, "math")
    assert all(torch.equal(x, want[n]) for n, x in load(tmp_path / "m").items())


def test_damaged_containers(small: Path, tmp_path: Path) -> None:
    def damaged(name: str) -> Path:
        return shutil.copytree(small, tmp_path / name)

    def refused(folder: Path, message: str) -> None:
        with pytest.raises(CheckpointError, match=message):
            mergekern.materialise(folder, tmp_path / "x", task="math")

    cut = damaged("cut")
    file = cut / "tasks/math/model.safetensors"
    file.write_bytes(file.read_bytes()[:-3])
    refused(cut, "is cut short")
    other = damaged("other")
    shutil.copy(other / "sums/model.safetensors", other / "tasks/math/model.safetensors")
    refused(other, f"is not the file that {MANIFEST} names")
    gone = damaged("gone")
    (gone / "unified/model.safetensors").unlink()
    refused(gone, "has no weights")
    for number, (change, message) in enumerate(
        [
            ({"version": 2}, "version: Input should be 1"),
            ({"rescaler": "none"}, "rescaler"),
            ({"tasks": {"math": {}}}, r"tasks\.math\.model: Field required"),
        ]
    ):
        folder = damaged(str(number))
        manifest = json.loads((folder / MANIFEST).read_text()) | change
        (folder / MANIFEST).write_text(json.dumps(manifest))
        refused(folder, message)
    (folder / MANIFEST).write_text("{")
    refused(folder, "Invalid JSON")
    (folder / MANIFEST).unlink()
    refused(folder, "it is not finished: run its merge again")


def test_recipes_that_make_no_container(small: Path, tmp_path: Path) -> None:
    root = small.parent
    base, models = str(root / "base"), [str(root / "math"), str(root / "code")]
    given: dict[str, Any] = {"base": base, "models": models}
    for options, message in (
        ({"mismatch": "base"}, "leave mismatch out"),
        ({"truncate_embeddings": True}, "leave truncate_embeddings out"),
        ({"rescaler": "mean"}, "rescaler is 'mean'; want one of paper, code"),
    ):
        with pytest.raises(RecipeError, match=message):
            mergekern.merge("emr", **given, output=tmp_path / "x", **options)
    states = [load(Path(folder)) for folder in models]
    with pytest.raises(
        OutputError, match="emr writes a container of several models: give a folder"
    ):
        mergekern.merge("emr", base=load(root / "base"), models=states)
    recipe = {"merge_method": "emr", "base_model": base, "models": [{"model": m} for m in models]}
    with pytest.raises(RecipeError, match="leave tokenizer"):
        mergekern.merge(recipe | {"tokenizer_source": "union"}, output=tmp_path / "x")
    with pytest.raises(RecipeError, match="merge it by itself"):
        mergekern.merge_many([recipe, recipe], [tmp_path / "x", tmp_path / "y"])
    sources = [{"model": m, "layer_range": [0, 1]} for m in models]
    with pytest.raises(RecipeError, match="without slices and modules"):
        mergekern.merge(
            {"merge_method": "emr", "base_model": base, "slices": [{"sources": sources}]},
            output=tmp_path / "x",
        )
    apart = write_model(tmp_path / "apart", {"z": torch.ones(3)})
    with pytest.raises(MismatchError, match=r"no tensor of .* fits one of the base"):
        mergekern.merge("emr", base=str(apart), models=models, output=tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_folders_that_are_taken(small: Path, tmp_path: Path) -> None:
    root = small.parent
    given: dict[str, Any] = {"base": str(root / "base"), "models": [str(root / "math")]}
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"holds other files \(notes.txt\)"):
        mergekern.merge("emr", **given, output=tmp_path / "full")
    with pytest.raises(OutputError, match=r"tasks: holds other files \(code\)"):
        mergekern.merge("emr", **given, output=small)
    with pytest.raises(OutputError, match="overlaps the folder of input"):
        mergekern.materialise(small, small / "out", task="math")


def test_what_is_no_number_is_named(tmp_path: Path) -> None:
    base = noisy(0, w=(9,))
    bad = {"w": torch.full((9,), torch.nan)}
    with pytest.raises(NonFiniteError, match=r"w: NaN or Inf in .*one"):
        container(tmp_path, base, one=bad, two=base)
    assert not (tmp_path / "c" / MANIFEST).exists()
    large = {"w": torch.full((9,), 1e6)}
    with pytest.raises(NonFiniteError, match="too large for float16"):
        mergekern.merge(
            "emr",
            base=str(tmp_path / "base"),
            models=[str(write_model(tmp_path / "large", large))],
            output=tmp_path / "d",
            out_dtype="float16",
        )


# the command line


def test_the_command_line(small: Path, tmp_path: Path) -> None:
    root, runner = small.parent, CliRunner()
    models = [f"--model={root / name}" for name in ("math", "code")]
    base, out = f"--base={root / 'base'}", str(tmp_path / "c")
    merge = ["merge", "emr", out, base, *models, "--param=task=m,c", "--param=rescaler=code"]
    shown = runner.invoke(app, [*merge, "--dry-run"])
    assert shown.exit_code == 0 and "tasks/m/" in shown.output and not Path(out).exists()
    assert runner.invoke(app, merge).exit_code == 0
    assert json.loads((Path(out) / MANIFEST).read_text())["rescaler"] == "code"
    take = ["materialise", out, str(tmp_path / "m"), "--task=m"]
    shown = runner.invoke(app, [*take, "--dry-run"])
    assert "writes" in shown.output and not (tmp_path / "m").exists()
    done = runner.invoke(app, take)
    assert done.exit_code == 0 and "tensors merged" in done.output, done.output
    again = hashes(tmp_path / "m")
    assert "already merged" in runner.invoke(app, take).output and hashes(tmp_path / "m") == again
    assert runner.invoke(app, [*take[:-1], "--task=x"]).exit_code == 1
    assert (Path(out) / "README.md").read_text().count("--task") == 2
