"""What a model folder holds besides weights: config, tokenizer, templates, processors, code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mergekern.checkpoint.base import Checkpoint
from mergekern.checkpoint.config import CONFIG, with_dtype
from mergekern.checkpoint.files import read_regular, write_whole
from mergekern.dtypes import DType
from mergekern.errors import CheckpointError, OutputError

GENERATION = "generation_config.json"

# Tokenizers, generation and processor configs, chat templates, and the code that auto_map names.
WANTED = ("*.json", "*.jinja", "*.txt", "*.model", "*.py", "*.tiktoken", "*.bpe", "*.spm")
WANTED_FOLDERS = ("additional_chat_templates",)  # a tokenizer's templates besides the default

TOKENIZER = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "chat_template*",
    "*.model",
    "*.tiktoken",
    "*.bpe",
    "*.spm",
)

# Of other weights, of the training, or about the donor alone.
UNWANTED = (
    ".*",
    "*.index.json",
    "adapter_*",
    "trainer_state.json",
    "training_args*",
    "*_results.json",
    "mergekern*",
    "zero_to_fp32.py",
    "readme*",
    "license*",
    "notice*",
    "requirements*.txt",
)


@dataclass(frozen=True)
class SideFiles:
    """Names, sorted: what was written into the output and what stayed with the donor."""

    copied: tuple[str, ...]
    left_out: tuple[str, ...]


def wanted(name: str) -> bool:
    """Whether a file of a model folder, named by its path there, belongs into a merged model."""
    folder, _, file = name.rpartition("/")
    if folder and folder not in WANTED_FOLDERS:
        return False
    return _matches(file, WANTED) and not _matches(file, UNWANTED)


def write_side_files(
    donor: Checkpoint,
    output: Path,
    dtype: DType | None,
    config: Mapping[str, Any] | None = None,
    instead: Mapping[str, bytes | None] = MappingProxyType({}),
) -> SideFiles:
    """Copy everything but weights into an existing folder, config.json with the new dtype.

    dtype:   of the merged weights; None leaves the fields of config.json as they are
    config:  in place of the donor's, where the result is built otherwise
    instead: files to write whatever the donor has; None: not to be taken from it
    config.json comes last, so that a folder without it is known to be unfinished.
    Raises OutputError when something cannot be copied.
    """
    names = _names(donor.folder) if donor.folder is not None else []
    copied = [name for name in names if wanted(name) and name not in (CONFIG, *instead)]
    for name in copied:
        _copy(donor, name, output / name)
    for name, data in instead.items():
        if data is not None:
            _write(output / name, data)
            copied.append(name)
    if donor.generation_config:
        _write(output / GENERATION, _json(donor.label, donor.generation_config))
        copied.append(GENERATION)
    config = config or donor.config
    if config:
        config = config if dtype is None else with_dtype(config, dtype)
        _write(output / CONFIG, _json(donor.label, config))
        copied.append(CONFIG)
    left_out = sorted(set(names) - set(copied) - {CONFIG})
    return SideFiles(tuple(sorted(copied)), tuple(left_out))


def tokenizer_files(donor: Checkpoint) -> list[str]:
    """Those of a model's side files that are its tokenizer's."""
    names = [] if donor.folder is None else _names(donor.folder)
    return [
        name
        for name in names
        if wanted(name) and (name.partition("/")[0] in WANTED_FOLDERS or _matches(name, TOKENIZER))
    ]


def _matches(file: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(file.lower(), pattern) for pattern in patterns)


def _names(folder: Path) -> list[str]:
    """Files as paths below the folder, and folders of no use to us as "name/"."""
    names = []
    for entry in sorted(folder.iterdir()):
        if not entry.is_dir():
            names.append(entry.name)
        elif entry.name in WANTED_FOLDERS:
            names += [f"{entry.name}/{file.name}" for file in sorted(entry.glob("*.*"))]
        else:
            names.append(f"{entry.name}/")
    return names


def _copy(donor: Checkpoint, name: str, target: Path) -> None:
    assert donor.folder is not None
    _write(target, read_regular(donor.folder / name))


def _write(target: Path, data: bytes) -> None:
    try:
        target.parent.mkdir(exist_ok=True)
        write_whole(target, data)
    except OSError as error:
        raise OutputError(
            f"{target}: cannot be written: {error.strerror}; mend that, then run the same command "
            "again: it goes on from here"
        ) from error


def _json(label: str, config: object) -> bytes:
    try:
        return (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{label}: its config cannot be written as JSON: {error}") from error
