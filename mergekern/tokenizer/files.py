"""A model's tokenizer files: which they are, and older formats brought to tokenizer.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mergekern.checkpoint.files import read_regular
from mergekern.checkpoint.jsonfile import parse_object
from mergekern.checkpoint.sidefiles import WANTED_FOLDERS, wanted
from mergekern.errors import CheckpointError

TOKENIZER = "tokenizer.json"
CONFIG = "tokenizer_config.json"
SPECIAL_MAP = "special_tokens_map.json"
ADDED = "added_tokens.json"
SAY_TOKENS = (TOKENIZER, CONFIG, SPECIAL_MAP, ADDED)
TEMPLATE = "chat_template.jinja"
TEMPLATE_JSON = "chat_template.json"  # a processor's
NAMED_TEMPLATES = "additional_chat_templates"

# The ordinary tokens again, for loaders that do not read tokenizer.json.
ORDINARY = ("vocab.*", "merges.txt", "*.model", "*.tiktoken", "*.bpe", "*.spm", "tekken.json")
PATTERNS = (
    *("tokenizer*.json", SPECIAL_MAP, ADDED, "normalizer.json", "tokenization_*.py"),
    *("chat_template.*", f"{NAMED_TEMPLATES}/*", *ORDINARY),
)


@dataclass(frozen=True)
class Files:
    """The tokenizer files of one model; where: its folder, for messages."""

    where: Path
    content: Mapping[str, bytes]

    def read_json(self, name: str) -> dict[str, Any]:
        """One of them as an object, {} when it is not there."""
        if name not in self.content:
            return {}
        return parse_object(self.content[name], str(self.where / name), strict=False)


def matches(name: str, patterns: tuple[str, ...] = PATTERNS) -> bool:
    """Whether a side file is one of the tokenizer's."""
    return any(fnmatch(name, pattern) for pattern in patterns)


def read_files(label: str, folder: Path | None) -> Files | None:
    """The tokenizer files in a model's folder, None when there are none.

    Raises CheckpointError for a model that has no folder.
    """
    if folder is None:
        raise CheckpointError(
            f"{label}: is in memory, where it has no tokenizer, and the recipe's tokenizer or "
            "chat_template needs one: save the model with its tokenizer and give the folder"
        )
    content = {name: read_regular(folder / name) for name in _names(folder)}
    known = any(matches(name, (TOKENIZER, CONFIG, *ORDINARY)) for name in content)
    return Files(folder, content) if known else None


def missing(label: str) -> CheckpointError:
    """The error for a model whose tokenizer is needed and not there."""
    return CheckpointError(
        f"{label}: its folder has no tokenizer (no {TOKENIZER}, {CONFIG} or tokenizer.model), and "
        "the recipe's tokenizer or chat_template needs it: save it there"
    )


def with_json(label: str, files: Files) -> Files:
    """The files, with tokenizer.json among them: of older kinds transformers makes one.

    Raises CheckpointError when transformers is needed and missing, or cannot do it.
    """
    return files if TOKENIZER in files.content else _converted(label, files)


def json_bytes(content: Mapping[str, Any], *, large: bool = False) -> bytes:
    """As a file's bytes. large: on one line, which is written several times as fast."""
    layout: dict[str, Any] = {"separators": (",", ":")} if large else {"indent": 2}
    return (json.dumps(content, ensure_ascii=False, **layout) + "\n").encode()


def _names(folder: Path) -> list[str]:
    here = sorted(folder.iterdir())
    names = [entry.name for entry in here if not entry.is_dir()]
    for name in WANTED_FOLDERS:
        names += [f"{name}/{entry.name}" for entry in sorted((folder / name).glob("*.*"))]
    return [name for name in names if wanted(name) and matches(name)]


def _converted(label: str, files: Files) -> Files:
    """Formats older than tokenizer.json, saved anew by transformers, which reads them all."""
    have = f"{label}: its folder {files.where} has no {TOKENIZER}"
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise CheckpointError(
            f"{have}, and reading a tokenizer of another kind needs transformers: "
            "pip install mergekern[tokenizer]"
        ) from error
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        try:
            AutoTokenizer.from_pretrained(files.where).save_pretrained(folder)
        except Exception as error:  # a tokenizer of any kind may fail in any way
            reason = " ".join(str(error).split())
            raise CheckpointError(
                f"{have}, and transformers cannot make one ({reason:.200}); save a fast tokenizer "
                "there (an older kind may need: pip install sentencepiece tiktoken)"
            ) from error
        saved = {name: read_regular(folder / name) for name in _names(folder)}
    if TOKENIZER not in saved:
        raise CheckpointError(
            f"{have}, and its tokenizer has no fast form that transformers could save; those of "
            "slow tokenizers cannot be aligned: leave tokenizer out of the recipe"
        )
    return Files(files.where, {**files.content, **saved})
