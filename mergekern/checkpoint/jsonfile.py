"""JSON as checkpoints hold it: strictly read, and every fault a CheckpointError."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from mergekern.checkpoint.files import read_regular
from mergekern.errors import CheckpointError


def parse_object(data: bytes, what: str, *, strict: bool = True) -> dict[str, Any]:
    """The JSON object in `data`; `what` names it in messages.

    strict: refuse keys given twice, and NaN and Infinity, which JSON does not have; a config.json
    may hold them all, and Python's reader, which transformers uses, takes the last of two keys.
    Raises CheckpointError for anything that is not one object.
    """
    hooks: Any = {"object_pairs_hook": _unique, "parse_constant": _refuse_constant}
    try:
        found = json.loads(data.decode("utf-8"), **(hooks if strict else {}))
    except (ValueError, RecursionError) as error:  # ValueError covers JSON, UTF-8 and huge numbers
        raise CheckpointError(f"{what}: is not valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{what}: holds a {type(found).__name__}, wanted a JSON object")
    return found


def read_object(path: Path, *, strict: bool = True) -> dict[str, Any]:
    """The JSON object in a file. Raises CheckpointError when it is missing or not one."""
    return parse_object(read_regular(path), str(path), strict=strict)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"key {twice!r} is there more than once")
    return found


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is not a JSON number")
