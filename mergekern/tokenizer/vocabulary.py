"""A model's vocabulary as its tokenizer files give it: every token's id, as transformers loads it.

The files are read as JSON, which takes a fraction of a second for 128k tokens; the tokenizers
library would build its automata first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mergekern.collector import collector_paused
from mergekern.errors import CheckpointError
from mergekern.tokenizer.files import ADDED, CONFIG, SPECIAL_MAP, TOKENIZER, Files

Token = Mapping[str, Any]  # an added token as tokenizer.json has it, but for its id

SPECIAL = (  # in the order in which transformers adds those that tokenizer.json lacks
    *("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"),
    *("additional_special_tokens", "extra_special_tokens"),
)
MOST_IDS = 1 << 32  # the tokenizers library holds them in as many bits
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
PLAIN_FLAGS = dict.fromkeys(FLAGS, False) | {"normalized": True}
SPECIAL_FLAGS = dict.fromkeys(FLAGS, False) | {"special": True}


class Tokens:
    """Ordinary tokens with their ids, and those added to them one after the other.

    The tokenizers library numbers added tokens while it loads them, whatever its file says: one
    that is in the vocabulary keeps its id, any other gets the one after the largest so far.
    """

    def __init__(self, ordinary: Mapping[str, int]) -> None:
        self.ids = dict(ordinary)
        self.added: dict[str, Token] = {}
        self._next = len(ordinary)

    def add(self, token: Token) -> None:
        """Add a token, unless there is an added one of that text."""
        content = token["content"]
        if content and content not in self.added:
            number = self.ids.setdefault(content, self._next)
            self._next = max(self._next, number + 1)
            self.added[content] = token


@dataclass(frozen=True)
class Vocabulary:
    """What the tokenizer files of one model say.

    ids:   every token's id;  added: the tokens that are matched before text is split, by text
    rows:  of the model's input embedding; a token whose id is not below has none
    """

    label: str
    files: Files
    tokenizer: Mapping[str, Any]
    ids: Mapping[str, int]
    added: Mapping[str, Token]
    rows: int

    @cached_property
    def by_id(self) -> Mapping[int, str]:
        return dict(zip(self.ids.values(), self.ids, strict=True))

    @cached_property
    def beyond(self) -> list[str]:
        """Tokens that have no row, by id."""
        found = [token for token, number in self.ids.items() if number >= self.rows]
        return sorted(found, key=self.ids.__getitem__)


@collector_paused()
def read_vocabulary(label: str, files: Files, rows: int | None) -> Vocabulary:
    """The vocabulary in a model's tokenizer files.

    rows: of its embedding; None where there is no model to ask: a row for every token.
    Raises CheckpointError when the files are damaged or of an unknown kind.
    """
    tokenizer = files.read_json(TOKENIZER)
    with as_written(label, files, TOKENIZER):
        tokens = Tokens(ordinary(tokenizer))
        _check(tokens.ids)
    for token in _listed(label, tokenizer, files):
        tokens.add(token)
    if rows is None:
        rows = 1 + max(tokens.ids.values(), default=-1)
    return Vocabulary(label, files, tokenizer, tokens.ids, tokens.added, rows)


def ordinary(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    """The ids of the tokens that text is split into; a unigram model lists them with scores."""
    vocabulary = tokenizer["model"]["vocab"]
    if isinstance(vocabulary, Mapping):
        return dict(vocabulary)
    return {piece: number for number, (piece, _) in enumerate(vocabulary)}


def plain_token(content: str, *, special: bool) -> Token:
    """An added token of which nothing else is known."""
    return {"content": content, **(SPECIAL_FLAGS if special else PLAIN_FLAGS)}


def special_texts(value: Any) -> list[str]:
    """The tokens that a special-token field names: one, a list of them, or a mapping to them."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        inner = [value["content"]] if "content" in value else list(value.values())
        return [text for each in inner for text in special_texts(each)]
    return [text for each in value or () for text in special_texts(each)]


@contextmanager
def as_written(label: str, files: Files, name: str) -> Iterator[None]:
    """Where content of a file is taken to be of the form in which it is always written."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{files.where / name}: is not as the tokenizers library writes it "
            f"({type(error).__name__}: {error}); save the tokenizer of {label} again"
        ) from error


def _check(ids: Mapping[str, int]) -> None:
    """Raise ValueError for what can be no id or no text."""
    for token, number in ids.items():
        if type(number) is not int or not 0 <= number < MOST_IDS:
            raise ValueError(f"the id of {token!r} is {number!r:.80}, wanted a whole number")
    "".join(ids).encode()  # JSON can spell half a surrogate pair, which no text has


def _listed(label: str, tokenizer: Mapping[str, Any], files: Files) -> Iterator[Token]:
    """The added tokens, in the order in which they are added."""
    with as_written(label, files, TOKENIZER):
        for entry in tokenizer.get("added_tokens") or ():
            yield _token(entry)
    config, special_map = files.read_json(CONFIG), {}
    decoder = config.get("added_tokens_decoder")
    with as_written(label, files, CONFIG):
        for _, entry in sorted((decoder or {}).items(), key=lambda item: int(item[0])):
            yield _token(entry)
    if decoder is None:
        legacy, special_map = files.read_json(ADDED), files.read_json(SPECIAL_MAP)
        with as_written(label, files, ADDED):
            for content in sorted(legacy, key=legacy.__getitem__):
                yield plain_token(content, special=False)
    for key in SPECIAL:
        where, given = (SPECIAL_MAP, special_map) if key in special_map else (CONFIG, config)
        with as_written(label, files, where):
            for content in special_texts(given.get(key)):
                yield plain_token(content, special=True)


def _token(entry: Mapping[str, Any]) -> Token:
    if not isinstance(entry["content"], str):
        raise ValueError(f"an added token is {entry['content']!r:.80}, wanted a text")
    known = plain_token(entry["content"], special=bool(entry.get("special", False)))
    return {**known, **{flag: bool(entry[flag]) for flag in FLAGS if flag in entry}}
