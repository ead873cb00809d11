"""Model references: strings, mappings, adapters, and models in memory."""

from __future__ import annotations

import pytest
import torch

from mergekern.errors import RecipeError
from mergekern.recipe import parse_source, read


def test_references(tmp_path) -> None:
    assert parse_source("org/a@v1", "m").where == "org/a"
    assert parse_source("org/a@v1", "m").revision == "v1"
    assert parse_source("org/a@v1", "m").label == "org/a@v1"
    assert parse_source({"model": {"path": "org/a", "revision": "v1"}}, "m").revision == "v1"
    assert parse_source({"path": "org/a@v2"}, "m").revision == "v2"
    odd = tmp_path / "a+b@c"
    odd.mkdir()
    assert parse_source(str(odd), "m").where == str(odd)
    assert parse_source(odd, "m").where == str(odd)
    state = {"w": torch.zeros(1)}
    assert parse_source(state, "models[0]").in_memory
    assert parse_source(state, "models[0]").label == "models[0]"
    for wrong in ("org/a@", "a@b@c", "@v", " ", None, 3, ["a"], {"model": None}):
        with pytest.raises(RecipeError, match=r"^m"):
            parse_source(wrong, "m")


def test_an_adapter_is_part_of_the_model() -> None:
    made = parse_source("org/a@v1+org/l@v2", "m")
    assert (made.where, made.revision, made.label) == ("org/a", "v1", "org/a@v1+org/l@v2")
    assert made.lora is not None
    assert (made.lora.where, made.lora.revision) == ("org/l", "v2")
    parts = {"model": {"path": "org/a", "revision": "v1"}, "lora": "org/l@v2"}
    assert parse_source(parts, "m").key == made.key
    assert parse_source("org/a@v1", "m").key != made.key
    assert parse_source("org/a@v1+org/l", "m").key != made.key


def test_another_architecture_makes_another_model() -> None:
    reference = {
        "model": {"path": "org/a", "revision": None},
        "lora": None,
        "override_architecture": "LlamaForCausalLM",
    }
    made = parse_source(reference, "m")
    assert made.architecture == "LlamaForCausalLM"
    assert made.key != parse_source("org/a", "m").key
    for text in ("org/a", "org/a@v", "org/a@v+org/l@w"):
        plain = parse_source(text, "m")
        assert plain.written == text
        odd = parse_source({"model": text, "override_architecture": "X"}, "m")
        assert parse_source(odd.written, "m").key == odd.key


def test_paths_that_hold_the_signs_of_references_win(tmp_path) -> None:
    model, lora = tmp_path / "a+b@c", tmp_path / "l+m"
    model.mkdir()
    lora.mkdir()
    made = parse_source(f"{model}+{lora}", "m")
    assert made.lora is not None
    assert (made.where, made.lora.where) == (str(model), str(lora))
    made = parse_source(f"{model}+org/l@v", "m")
    assert made.lora is not None
    assert (made.where, made.lora.where, made.lora.revision) == (str(model), "org/l", "v")


@pytest.mark.parametrize(
    "wrong",
    [
        "a+b+c",
        "a+",
        "+b",
        "a@v@w+b",
        {"model": "a+b", "lora": "c"},
        {"model": "a", "lora": "b+c"},
        {"model": "a", "override_architecture": 3},
        {"model": 3},
        {"path": None},
    ],
)
def test_references_that_say_no_one_thing(wrong) -> None:
    with pytest.raises(RecipeError, match=r"want|its LoRA|is empty"):
        parse_source(wrong, "m")


def test_references_stand_in_every_place() -> None:
    reference = {"model": {"path": "org/a", "revision": "v"}}
    made = read(
        {
            "merge_method": "ties",
            "base_model": reference,
            "slices": [
                {
                    "sources": [
                        {"model": "org/b+org/l", "layer_range": [0, 1]},
                        {"model": "org/a@v", "layer_range": [0, 1]},
                    ],
                }
            ],
            "tokenizer": {"source": reference, "tokens": {"<x>": {"source": "org/b+org/l"}}},
        }
    )
    assert [source.label for source in made.sources] == ["org/a@v", "org/b+org/l"]
    assert made.tokenizer is not None
    assert made.tokenizer.source is made.base
    assert made.tokenizer.tokens["<x>"].source is made.experts[0]
