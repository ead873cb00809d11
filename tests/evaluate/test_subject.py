import copy
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from speakers import speaker

import mergekern
from mergekern.errors import EvaluationError, MergeError
from mergekern.evaluate.subject import Subject, subject_of

IGNORED = ("DeprecationWarning", "UserWarning", "FutureWarning")  # transformers' and peft's
pytestmark = [pytest.mark.filterwarnings(f"ignore::{name}") for name in IGNORED]


def logits(subject: Subject) -> torch.Tensor:
    model, tokenizer = subject.load("auto", "cpu")
    with torch.no_grad():
        return model(**tokenizer("so 4 + 4", return_tensors="pt")).logits


def test_a_recipe_is_what_its_folder_would_be(tmp_path: Path, recipe: dict[str, Any]) -> None:
    (tmp_path / "soup.yml").write_text(json.dumps(recipe))
    mergekern.merge(recipe, output=tmp_path / "merged")
    merged = subject_of(tmp_path / "merged")
    in_memory = subject_of(str(tmp_path / "soup.yml"))
    assert in_memory.folder is None and in_memory.label == "soup"
    assert torch.equal(logits(in_memory), logits(merged))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merged", "soup.yml"]
    # What a folder was merged from stays with its results.
    assert merged.origin["lock"]["plan"] == in_memory.origin["plan"]
    assert in_memory.origin["recipe"]["parameters"]["lambda"] == 1.0  # resolved


def test_a_recipes_identity_is_its_meaning_and_its_inputs(
    tmp_path: Path, recipe: dict[str, Any]
) -> None:
    first = subject_of(recipe)
    (tmp_path / "a.yml").write_text(json.dumps(recipe))
    spelt_out = {**recipe, "parameters": {**recipe["parameters"], "lambda": 1.0}}
    assert subject_of(str(tmp_path / "a.yml")).identity == first.identity
    assert subject_of(spelt_out).identity == first.identity
    other = copy.deepcopy(recipe)
    other["parameters"]["density"] = 0.4
    assert subject_of(other).identity != first.identity
    again = shutil.copytree(recipe["models"][0]["model"], tmp_path / "a")
    changed = copy.deepcopy(recipe)
    changed["models"][0]["model"] = str(again)
    before = subject_of(changed).identity
    speaker(again, seed=5)  # the same headers, other weights
    os.utime(again / "model.safetensors", ns=(1, 1))
    assert subject_of(changed).identity != before


def test_a_folders_identity_is_of_weights_and_tokenizer(
    tmp_path: Path, speakers: dict[str, Path]
) -> None:
    one = shutil.copytree(speakers["a"], tmp_path / "one")
    two = shutil.copytree(speakers["a"], tmp_path / "two")  # with the times of change
    assert subject_of(one).identity == subject_of(two).identity
    assert subject_of(one).name != subject_of(two).name
    config = json.loads((two / "tokenizer_config.json").read_text())
    (two / "tokenizer_config.json").write_text(json.dumps({**config, "eos_token": "<pad>"}))
    assert subject_of(one).identity != subject_of(two).identity
    (one / "README.md").write_text("no model answers otherwise for this")
    assert subject_of(one).identity == subject_of(speakers["a"]).identity


def test_tensors_in_memory_take_config_and_tokenizer_from_a_folder(
    speakers: dict[str, Path],
) -> None:
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(speakers["a"])
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    subject = subject_of(state, like=speakers["base"])
    assert torch.equal(logits(subject), logits(subject_of(speakers["a"])))
    assert subject_of(model, like=speakers["base"]).identity == subject.identity
    next(iter(state.values()))[0, 0] += 1
    assert subject_of(state, like=speakers["base"]).identity != subject.identity
    with pytest.raises(EvaluationError, match="is tensors in memory: give like="):
        subject_of(state)
    with pytest.raises(EvaluationError, match="leave out like="):
        subject_of(speakers["a"], like=speakers["base"])


def test_a_base_with_an_adapter_is_merged_in_memory(
    tmp_path: Path, speakers: dict[str, Path]
) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    base = LlamaForCausalLM.from_pretrained(speakers["base"], dtype=torch.float32)
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    adapted = get_peft_model(base, config)
    adapted.save_pretrained(tmp_path / "adapter")
    subject = subject_of(f"{speakers['base']}+{tmp_path / 'adapter'}")
    found, plain = logits(subject), logits(subject_of(speakers["base"]))
    _, tokenizer = subject.load("auto", "cpu")
    with torch.no_grad():
        whole = adapted.merge_and_unload().bfloat16()
        wanted = whole(**tokenizer("so 4 + 4", return_tensors="pt")).logits
    off = [(found - other).abs().max().item() for other in (wanted, plain)]
    assert 10 * off[0] < off[1], off  # peft rounds in another order


def test_what_cannot_be_evaluated_is_said_before_anything_is_read(
    tmp_path: Path, speakers: dict[str, Path], recipe: dict[str, Any]
) -> None:
    grid = copy.deepcopy(recipe)
    grid["grid"] = {"density": [0.2, 0.5]}
    del grid["parameters"]["density"]
    with pytest.raises(EvaluationError, match="has a grid, so it is many models"):
        subject_of(grid)
    (tmp_path / "stages.yml").write_text(
        "\n---\n".join([json.dumps({"name": "one", **recipe}), json.dumps(recipe)])
    )
    with pytest.raises(EvaluationError, match="has stages, which are merged into folders"):
        subject_of(str(tmp_path / "stages.yml"))
    bare = shutil.copytree(speakers["a"], tmp_path / "bare")
    (bare / "config.json").unlink()
    with pytest.raises(MergeError, match=r"bare: has no config\.json"):
        subject_of(bare)
    with pytest.raises(MergeError, match="no such file or folder"):
        subject_of(str(tmp_path / "none"))
    with pytest.raises(EvaluationError, match="model is a int; want a folder"):
        subject_of(3)
    (bare / "config.json").write_text('{"model_type": "nonesuch"}')
    with pytest.raises(EvaluationError, match="cannot be loaded by transformers"):
        subject_of(bare).load("auto", "cpu")


def test_merges_of_one_moment_are_told_apart(tmp_path: Path, recipe: dict[str, Any]) -> None:
    """Equal headers and sizes, and the clock's ticks are as long as it takes to write both."""
    found = []
    for density in (0.3, 0.5):
        given = {**recipe, "parameters": {**recipe["parameters"], "density": density}}
        folder = tmp_path / str(density)
        mergekern.merge(given, output=folder)
        for path in folder.glob("*.safetensors"):
            os.utime(path, ns=(1, 1))
        found.append(subject_of(folder))
    assert found[0].identity != found[1].identity
