"""Token ids in config.json and generation_config.json, kept true to the output's tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

ENDS = ("_token_id", "_token_ids", "_token_index")
LISTS = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids")

Translate = Callable[[int], int | None]


def is_id(key: str) -> bool:
    """Whether a config's field holds token ids."""
    return key.endswith(ENDS) or key in LISTS


def with_ids(
    config: Mapping[str, Any], like: Mapping[str, Any], translate: Translate, lost: dict[str, None]
) -> dict[str, Any]:
    """A config with its token ids set, in configs inside it too; the rest, and order, kept.

    like:      the config of the model whose tokenizer is taken: its ids hold where it has them
    translate: the id that a token of the config's model has now; None: it has none
    lost:      gets the fields that name no token any more, which are left out
    """
    changed: dict[str, Any] = {}
    for key, value in config.items():
        other = like.get(key)
        if isinstance(value, Mapping) and key.endswith("_config"):
            inner = other if isinstance(other, Mapping) else {}
            changed[key] = with_ids(value, inner, translate, lost)
        elif not is_id(key) or value is None:
            changed[key] = value
        elif other is not None:
            changed[key] = other
        elif (translated := _translated(value, translate)) is None:
            lost[key] = None
        else:
            changed[key] = translated
    return changed


def with_rows(config: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """A config with its vocabulary's size set, wherever it has the present one; the rest kept."""
    old = vocab_size(config)
    if old is None:
        text = config.get("text_config")
        if isinstance(text, Mapping):
            return {**config, "text_config": {**text, "vocab_size": rows}}
        return {**config, "vocab_size": rows}
    return _replaced(config, old, rows)


def vocab_size(config: Mapping[str, Any]) -> int | None:
    """What a config says, for a model of several parts that of its text part."""
    for level in (config, config.get("text_config"), config.get("decoder")):
        if isinstance(level, Mapping) and isinstance(level.get("vocab_size"), int):
            return int(level["vocab_size"])
    return None


def _replaced(config: Mapping[str, Any], old: int, rows: int) -> dict[str, Any]:
    changed: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            changed[key] = _replaced(value, old, rows)
        else:
            changed[key] = rows if key == "vocab_size" and value == old else value
    return changed


def _translated(value: Any, translate: Translate) -> Any:
    """An id, or lists of ids without those that name no token any more; None when none is left."""
    if isinstance(value, list):
        kept = [each for each in (_translated(v, translate) for v in value) if each is not None]
        return kept if kept or not value else None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        return value
    return translate(value)
