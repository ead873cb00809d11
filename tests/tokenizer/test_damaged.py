"""Tokenizer files that hold something else than what is always written there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mergekern.errors import CheckpointError
from mergekern.tokenizer.build import build
from mergekern.tokenizer.chat import own_template
from mergekern.tokenizer.files import Files
from mergekern.tokenizer.vocabulary import read_vocabulary


def files(**content: Any) -> Files:
    """Of a model in the folder m; the underscores of names are dots."""
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}
    known = {"tokenizer_json": {"model": model, "added_tokens": []}, **content}
    parts = {name.replace("_json", ".json"): value for name, value in known.items()}
    return Files(Path("m"), {name: json.dumps(value).encode() for name, value in parts.items()})


@pytest.mark.parametrize(
    "number", ["7", 1.5, True, None, [1], -1, 10**12, 2**70, float("nan")], ids=str
)
def test_what_is_no_id(number: Any) -> None:
    damaged = files(tokenizer_json={"model": {"vocab": {"a": 0, "bad": number}}})
    with pytest.raises(CheckpointError, match=r"m/tokenizer.json: .*the id of 'bad' is .*again"):
        read_vocabulary("m", damaged, 2)


def test_what_is_no_text() -> None:
    half = files(tokenizer_json={"model": {"vocab": {"\ud800": 0}}})
    with pytest.raises(CheckpointError, match=r"m/tokenizer.json: .*surrogates not allowed"):
        read_vocabulary("m", half, 1)
    for name, content in (
        ("tokenizer", {"model": {"vocab": {}}, "added_tokens": [{"content": 5}]}),
        ("tokenizer_config", {"added_tokens_decoder": {"3": {"content": None}}}),
    ):
        damaged = files(**{f"{name}_json": content})
        with pytest.raises(CheckpointError, match=rf"m/{name}.json: .*wanted a text"):
            read_vocabulary("m", damaged, 1)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config", {"added_tokens_decoder": {"x": {"content": "y"}}}),
        ("tokenizer_config", {"eos_token": 5}),
        ("special_tokens_map", {"eos_token": 5}),
        ("added_tokens", {"<a>": 1, "<b>": None}),
    ],
)
def test_the_damaged_file_is_named(name: str, content: Any) -> None:
    with pytest.raises(CheckpointError, match=rf"m/{name}.json: is not as the tokenizers library"):
        read_vocabulary("m", files(**{f"{name}_json": content}), 3)


@pytest.mark.parametrize("merges", [None, ["a"], [["a", "b", "c"]], [5]])
def test_merges_that_cannot_be_cut(merges: Any) -> None:
    model = {"vocab": {"a": 0, "b": 1, "ab": 2}, "merges": merges}
    start = read_vocabulary("m", files(tokenizer_json={"model": model}), 2)
    with pytest.raises(CheckpointError, match=r"m/tokenizer.json: is not as the tokenizers"):
        build(start, [], [])


def test_what_is_no_template() -> None:
    damaged = Files(Path("m"), {"chat_template.jinja": b"\xff\xfe"})
    with pytest.raises(CheckpointError, match=r"m/chat_template.jinja: is no UTF-8 text"):
        own_template(damaged)
    for template in (5, [{"name": "default", "template": 5}]):
        with pytest.raises(CheckpointError, match=r"m/tokenizer_config.json: chat_template is 5"):
            own_template(files(tokenizer_config_json={"chat_template": template}))
    for template in (None, [], [{"name": "default"}], ["text"], [{"name": "rag", "template": "x"}]):
        assert own_template(files(tokenizer_config_json={"chat_template": template})) is None
