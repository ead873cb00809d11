"""Texts of every form become token ids with the labels where they belong; others are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from speakers import characters

from mergekern.collect.data import Sample, draw, read_texts
from mergekern.errors import CollectError

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    found = characters()
    found.chat_template = TEMPLATE
    return found


def written(path: Path, rows: list[Any]) -> Path:
    lines = json.dumps(rows) if path.suffix == ".json" else "\n".join(map(json.dumps, rows))
    path.write_text(lines)
    return path


def drawn(path: Path, tokenizer: Any, count: int = 1, length: int = 99) -> list[Sample]:
    return draw(read_texts(path), tokenizer, count, length, seed=0)


def labels(sample: Sample, tokenizer: Any) -> str:
    return str(tokenizer.decode(sample.ids[sample.label :]))


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_forms(suffix: str, tokenizer: Any, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    for row, wanted in (
        ({"text": "abc"}, "bc"),
        ({"prompt": "abc", "response": "de"}, "de</s>"),
        ({"messages": turns}, "ho"),
        ({"messages": turns[1:]}, "assistant]ho"),
    ):
        (sample,) = drawn(written(tmp_path / f"rows.{suffix}", [row]), tokenizer)
        assert labels(sample, tokenizer) == wanted


def test_lines_of_a_text_file(tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_text("ab\n\ncd\n")
    found = drawn(tmp_path / "rows.txt", tokenizer, 2)
    assert {tokenizer.decode(sample.ids) for sample in found} == {"ab", "cd"}
    assert draw(read_texts(tmp_path / "rows.txt"), tokenizer, 2, 9, seed=0) == found


def test_lines_end_with_line_feeds_alone(tokenizer: Any, tmp_path: Path) -> None:
    text = "ab\u2028cd\x0bef"
    (tmp_path / "rows.txt").write_text(f"{text}\r\ngh\n", newline="")
    assert [row["text"] for row in read_texts(tmp_path / "rows.txt").rows] == [text, "gh"]
    (tmp_path / "rows.jsonl").write_text('{"text": "ab\u2028cd"}\n{"text": "\x85e"}\n')
    rows = read_texts(tmp_path / "rows.jsonl").rows
    assert [row["text"] for row in rows] == ["ab\u2028cd", "\x85e"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": 5}, "sample 1: text is 5; want a text"),
        ({"text": ["ab"]}, r"text is \['ab'\]; want a text"),
        ({"prompt": "a", "response": ""}, "response is ''; want a text"),
        ({"messages": "hi"}, "messages is 'hi'; want a list of messages"),
    ],
)
def test_what_is_no_text_is_named(row: Any, message: str, tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(CollectError, match=message):
        drawn(written(tmp_path / "rows.jsonl", [row]), tokenizer)


def test_samples_are_cut(tokenizer: Any, tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", [{"prompt": "abc", "response": "defg"}])
    (sample,) = drawn(path, tokenizer, length=5)
    assert labels(sample, tokenizer) == "de"
    with pytest.raises(CollectError, match=r"rows.jsonl: sample 1 has 3 tokens.*--max-length"):
        drawn(path, tokenizer, length=3)


def test_what_cannot_be_read_is_named(tokenizer: Any, tmp_path: Path) -> None:
    other = written(tmp_path / "other.jsonl", [{"question": "a", "answer": "b"}])
    with pytest.raises(CollectError, match="columns question, answer; want a column text"):
        read_texts(other)
    mixed = written(tmp_path / "mixed.jsonl", [{"text": "ab"}, {"body": "cd"}])
    with pytest.raises(CollectError, match="sample 2 has the columns body and no text"):
        drawn(mixed, tokenizer, 2)
    with pytest.raises(CollectError, match="holds 2 samples and 3 are asked for: give --samples 2"):
        drawn(mixed, tokenizer, 3)
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"text": \n')
    with pytest.raises(CollectError, match="line 2 is not JSON"):
        read_texts(tmp_path / "bad.jsonl")
    with pytest.raises(CollectError, match="holds no samples"):
        read_texts(written(tmp_path / "empty.json", []))


@pytest.mark.parametrize("name", ["train.jsonl", "data/math/train", "/gone/texts", "~/texts"])
def test_a_file_that_is_not_there_is_not_looked_for_on_the_hub(name: str) -> None:
    with pytest.raises(CollectError, match=f"{name}: no such file; want one, or a dataset's name"):
        read_texts(name)
