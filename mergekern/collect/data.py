"""The texts that statistics are collected over: from a file or a dataset to token ids.

{"text": ...}                        every token is a label
{"prompt": ..., "response": ...}     the response's tokens are
{"messages": [{"role", "content"}]}  the last message's are
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergekern.errors import CollectError

FORMS = (("messages",), ("prompt", "response"), ("text",))
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
FILES = (".json", ".jsonl", ".txt", ".csv", ".tsv", ".parquet")  # no names of datasets end so
WANTED = "want a column text, the columns prompt and response, or a column messages"


@dataclass(frozen=True)
class Sample:
    """Token ids; those from `label` on are what the model is asked to predict."""

    ids: tuple[int, ...]
    label: int


@dataclass(frozen=True)
class Texts:
    """Rows of a file or dataset, each with the columns of one of FORMS.

    origin: what is recorded of where they come from; sha256 is that of the file, or the fingerprint
            that a dataset has
    """

    rows: Sequence[Mapping[str, Any]]
    form: tuple[str, ...]
    origin: Mapping[str, str]


def read_texts(data: str | Path, split: str = "train") -> Texts:
    """A .jsonl, .json (a list) or other text file (a text per line), or a dataset's split.

    Raises CollectError naming the file and line, what was found and what is wanted.
    """
    path = Path(data).expanduser()
    if path.is_file():
        content = path.read_bytes()
        rows = _rows(path, _text(path, content))
        origin = {"name": path.name, "sha256": hashlib.sha256(content).hexdigest()}
    else:
        rows, fingerprint = _dataset(str(data), split)
        origin = {"name": str(data), "split": split, "fingerprint": fingerprint}
    if not len(rows):
        raise CollectError(f"{data}: holds no samples; {WANTED}")
    return Texts(rows, _form(data, rows[0]), origin)


def draw(texts: Texts, tokenizer: Any, count: int, max_length: int, seed: int) -> list[Sample]:
    """That many rows at random, by the seed alone, cut to max_length tokens.

    Raises CollectError for too few rows, and a row that cannot be read or has nothing to predict.
    """
    name = texts.origin["name"]
    if count > len(texts.rows):
        raise CollectError(
            f"{name}: holds {len(texts.rows)} samples and {count} are asked for: give "
            f"--samples {len(texts.rows)}, or more data"
        )
    places = random.Random(seed).sample(range(len(texts.rows)), count)
    samples = []
    for place in places:
        row = texts.rows[place]
        _check(row, texts.form, f"{name}: sample {place + 1}")
        ids, label = _encoded(row, texts.form, tokenizer, f"{name}: sample {place + 1}")
        ids, label = ids[:max_length], max(label, 1)  # nothing predicts the first token
        if label >= len(ids):
            raise CollectError(
                f"{name}: sample {place + 1} has {len(ids)} tokens, none of which is to be "
                f"predicted: give a longer --max-length than {max_length}, or leave it out"
            )
        samples.append(Sample(tuple(ids), label))
    return samples


def _check(row: Mapping[str, Any], form: tuple[str, ...], where: str) -> None:
    """Raise CollectError for a row that lacks a column, or has nothing or no text in it."""
    if not all(column in row for column in form):
        raise CollectError(
            f"{where} has the columns {', '.join(row) or 'none'} and no {' or '.join(form)}, as "
            "the first one has"
        )
    wanted = list if form == ("messages",) else str
    for column in form:
        if not isinstance(row[column], wanted) or not row[column]:
            want = "a list of messages" if wanted is list else "a text"
            raise CollectError(f"{where}: {column} is {row[column]!r:.60}; want {want}")


def _text(path: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CollectError(f"{path}: is not text: {error.reason} at byte {error.start}") from error


def _rows(path: Path, text: str) -> list[Mapping[str, Any]]:
    # Not splitlines(): it cuts at what JSON and texts may hold, like U+2028.
    lines = [(n, line) for n, line in enumerate(re.split(r"\r\n|\r|\n", text), 1) if line.strip()]
    if path.suffix == ".json":
        found = _parsed(path, text, 1)
        entries = list(enumerate(found, 1)) if isinstance(found, list) else [(1, found)]
    elif path.suffix == ".jsonl":
        entries = [(number, _parsed(path, line, number)) for number, line in lines]
    else:
        entries = [(number, {"text": line}) for number, line in lines]
    for number, entry in entries:
        if not isinstance(entry, Mapping):
            raise CollectError(f"{path}: entry {number} is {entry!r:.60}; want an object; {WANTED}")
    return [entry for _, entry in entries]


def _parsed(path: Path, text: str, line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        number = line + error.lineno - 1
        raise CollectError(f"{path}: line {number} is not JSON: {error.msg}") from error


def _dataset(name: str, split: str) -> tuple[Any, str]:
    is_file = not HUB_ID.fullmatch(name) or Path(name).suffix in FILES
    if is_file and not Path(name).expanduser().is_dir():
        raise CollectError(f"{name}: no such file; want one, or a dataset's name on the Hub")
    try:
        import datasets
    except ImportError as error:
        raise CollectError(
            f"{name}: no such file, and a dataset of the Hub needs `pip install datasets`"
        ) from error
    try:
        found = datasets.load_dataset(name, split=split)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise CollectError(
            f"{name}: no such file, and no dataset with a split {split!r}: {reason:.200}"
        ) from error
    return found, found._fingerprint


def _form(data: str | Path, row: Mapping[str, Any]) -> tuple[str, ...]:
    for form in FORMS:
        if all(column in row for column in form):
            return form
    raise CollectError(f"{data}: has the columns {', '.join(row) or 'none'}; {WANTED}")


def _encoded(
    row: Mapping[str, Any], form: tuple[str, ...], tokenizer: Any, where: str
) -> tuple[list[int], int]:
    """Token ids, and where the labels begin."""
    if form == ("text",):
        return list(tokenizer(row["text"])["input_ids"]), 1
    if form == ("prompt", "response"):
        prompt = list(tokenizer(row["prompt"])["input_ids"])
        response = tokenizer(row["response"], add_special_tokens=False)["input_ids"]
        end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        return [*prompt, *response, *end], len(prompt)
    return _conversation(row["messages"], tokenizer, where)


def _conversation(messages: Any, tokenizer: Any, where: str) -> tuple[list[int], int]:
    try:
        whole = tokenizer.apply_chat_template(messages, tokenize=False)
        before = ""
        if len(messages) > 1:
            before = tokenizer.apply_chat_template(
                messages[:-1], tokenize=False, add_generation_prompt=True
            )
    except Exception as error:
        reason = " ".join(str(error).split())
        raise CollectError(
            f"{where}: its messages do not go through the tokenizer's chat template: {reason:.200}"
        ) from error
    ids = list(tokenizer(whole, add_special_tokens=False)["input_ids"])
    known = list(tokenizer(before, add_special_tokens=False)["input_ids"])
    if ids[: len(known)] != known:
        raise CollectError(
            f"{where}: the chat template writes what comes before the last message otherwise when "
            "that is still to come: give prompt and response instead"
        )
    return ids, len(known)
