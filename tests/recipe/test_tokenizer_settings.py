"""What recipes ask of the tokenizer: every form, what it becomes, and what wrong ones are told."""

from __future__ import annotations

from typing import Any

import pytest

from mergekern.errors import RecipeError
from mergekern.recipe import ModelToken, Recipe, Source, Token, TokenizerSettings, read

FULL = """
merge_method: ties
models:
- model: org/a
- model: org/b
base_model: org/base
tokenizer:
  source: org/c@v1
  pad_to_multiple_of: 64
  tokens:
    <|im_start|>:
      source: org/b
    <|im_end|>:
      source: {kind: model_token, model: org/a, token: </s>}
      force: true
    <|new|>:
      source: {kind: model_token, model: {model: {path: org/d}}, token_id: 7}
    <|zero|>:
      source: {kind: zero}
chat_template: chatml
"""


def made(**tokenizer: Any) -> Recipe:
    return read({"merge_method": "linear", "models": [{"model": "org/a"}], "tokenizer": tokenizer})


def test_every_form() -> None:
    recipe = read(FULL)
    settings = recipe.tokenizer
    assert settings is not None
    assert isinstance(settings.source, Source)
    assert (settings.source.label, settings.pad_to_multiple_of) == ("org/c@v1", 64)
    tokens = settings.tokens
    assert tokens["<|im_start|>"] == Token(recipe.experts[1])
    assert tokens["<|im_end|>"] == Token(ModelToken(recipe.experts[0], token="</s>"), force=True)
    new = tokens["<|new|>"].source
    assert isinstance(new, ModelToken) and (new.token, new.token_id) == (None, 7)
    assert tokens["<|zero|>"] == Token("zero")
    assert recipe.chat_template == "chatml"
    labels = [source.label for source in recipe.sources]
    assert labels == ["org/base", "org/a", "org/b", "org/c@v1", "org/d"]
    assert recipe.notes == ()


def test_the_block_and_the_older_key_mean_the_same() -> None:
    plain = {"merge_method": "linear", "models": [{"model": "org/a"}]}
    assert read(plain).tokenizer is None
    assert made().tokenizer == TokenizerSettings("union")
    for source in ("union", "base"):
        assert read(plain | {"tokenizer_source": source}).tokenizer == TokenizerSettings(source)
    older = read(plain | {"tokenizer_source": "org/a"})
    assert older.tokenizer == TokenizerSettings(older.experts[0])


def test_written_out_it_means_the_same() -> None:
    recipe = read(FULL)
    again = read(recipe.to_dict())
    assert again.to_dict() == recipe.to_dict()
    assert again.tokenizer is not None and recipe.tokenizer is not None
    assert again.tokenizer.written == recipe.tokenizer.written
    assert "pad_to_multiple_of" not in read(made().to_dict()).to_dict()["tokenizer"]


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        ({"tokens": {"x": {"force": True}}}, "tokens.x is .*; want {source: ..., force: ...}"),
        ({"tokens": {"x": "org/a"}}, "tokens.x is 'org/a'; want {source"),
        ({"tokens": ["x"]}, r"tokens is \['x'\]; want a mapping"),
        ({"tokens": {"x": {"source": {"kind": "zeros"}}}}, "'zeros'; did you mean 'zero'"),
        ({"tokens": {"x": {"source": {"kind": "model_token", "model": "a"}}}}, "either token or"),
        (
            {"tokens": {"x": {"source": {"kind": "model_token", "token": "y"}}}},
            "source.model is None; want a path",
        ),
        (
            {"tokens": {"x": {"source": {"kind": "model_token", "model": "a", "token_id": -1}}}},
            "token_id is -1; want a whole number",
        ),
        ({"tokens": {"x": {"source": "a", "force": "yes"}}}, "force is 'yes'; want true or false"),
        ({"tokens": {"x": {"source": "a", "forse": True}}}, "x.forse'; did you mean 'force'"),
        ({"pad_to_multiple_of": 0}, "pad_to_multiple_of is 0; want a whole number >= 1"),
        ({"source": 3}, "tokenizer.source is 3; want a path"),
        ({"pad_to_multiple": 8}, "'tokenizer.pad_to_multiple'; did you mean 'pad_to_multiple_of'"),
    ],
)
def test_wrong_settings_are_told_what_to_mend(tokenizer, message) -> None:
    with pytest.raises(RecipeError, match=message):
        made(**tokenizer)


def test_one_of_the_two_keys() -> None:
    with pytest.raises(RecipeError, match="tokenizer_source and tokenizer are both given"):
        read(
            {
                "merge_method": "linear",
                "models": [{"model": "org/a"}],
                "tokenizer": {"source": "union"},
                "tokenizer_source": "union",
            }
        )
    with pytest.raises(RecipeError, match=r"tokenizer is 'union': .*dictionary"):
        read({"merge_method": "linear", "models": [{"model": "a"}], "tokenizer": "union"})
