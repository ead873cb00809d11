"""The output's tokenizer: one model's, or the union of all, less the tokens that have no row.

union: the base's tokens keep their ids. After them come the ordinary tokens that it lacks, model by
model in the recipe's order and by id within each, then the added tokens of all models in the same
order (the first definition of a token counts), then those that only the recipe names.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mergekern.checkpoint.base import listing
from mergekern.collector import collector_paused
from mergekern.tokenizer.files import (
    ADDED,
    CONFIG,
    ORDINARY,
    SPECIAL_MAP,
    TOKENIZER,
    json_bytes,
    matches,
)
from mergekern.tokenizer.vocabulary import (
    SPECIAL,
    Tokens,
    Vocabulary,
    as_written,
    ordinary,
    plain_token,
    special_texts,
)


@dataclass(frozen=True)
class Output:
    """The output's vocabulary: every token's id, its tokenizer files, and what is worth a note."""

    ids: Mapping[str, int]
    files: Mapping[str, bytes]
    notes: tuple[str, ...]


@collector_paused()
def build(start: Vocabulary, others: Sequence[Vocabulary], extra: Collection[str]) -> Output:
    """The tokenizer of `start`, with what it lacks of the others' tokens and of the extra ones."""
    notes: list[str] = []
    gone = set(start.beyond)
    if gone:
        notes.append(
            f"{start.label}: {counted(start.beyond)} left out of the tokenizer, having no row "
            f"among its {start.rows}"
        )
    tokens = Tokens({t: n for t, n in ordinary(start.tokenizer).items() if n < start.rows})
    for content, token in start.added.items():
        if content not in gone:
            tokens.add(token)
    known = len(tokens.ids)
    matched = len(tokens.added)
    _unite(tokens, others, notes)
    for content in extra:
        if content not in tokens.ids:
            tokens.add(plain_token(content, special=False))
    if not gone and len(tokens.ids) == known and len(tokens.added) == matched:
        return Output(start.ids, start.files.content, tuple(notes))
    return Output(tokens.ids, _files(start, tokens, gone, notes), tuple(notes))


def _unite(tokens: Tokens, others: Sequence[Vocabulary], notes: list[str]) -> None:
    """Add what the others have besides: ordinary tokens first, then added ones."""
    every = {content for other in others for content in other.added if _has_row(other, content)}
    for other in others:
        missing = other.ids.keys() - tokens.ids.keys() - every - other.added.keys()
        new = sorted((t for t in missing if _has_row(other, t)), key=other.ids.__getitem__)
        for content in new:
            tokens.add(plain_token(content, special=False))
        if new:
            notes.append(
                f"{other.label}: {counted(new)} of its ordinary vocabulary added, which the "
                "tokenizer now finds wherever they occur in a text, before it splits it"
            )
    settings = dict(tokens.added)
    conflicts: dict[str, None] = {}
    for other in others:
        for content, token in other.added.items():
            if _has_row(other, content):
                tokens.add(token)
                if settings.setdefault(content, token) != token:
                    conflicts[content] = None
    if conflicts:
        notes.append(
            f"{counted(list(conflicts))} added by several models with different settings, of which "
            "the first model's are taken"
        )


def _has_row(vocabulary: Vocabulary, content: str) -> bool:
    return vocabulary.ids[content] < vocabulary.rows


def _files(start: Vocabulary, tokens: Tokens, gone: set[str], notes: list[str]) -> dict[str, bytes]:
    """The files of `start`, saying what the tokens are now."""
    kept = ordinary(start.tokenizer)
    stale = not gone.isdisjoint(kept)
    files = {
        name: content
        for name, content in start.files.content.items()
        if not (stale and matches(name, ORDINARY))
    }
    by_id = sorted(tokens.added, key=tokens.ids.__getitem__)
    added = {content: tokens.added[content] for content in by_id}
    with as_written(start.label, start.files, TOKENIZER):
        tokenizer = _without(start.tokenizer, gone) if stale else dict(start.tokenizer)
    tokenizer["added_tokens"] = [{"id": tokens.ids[c], **token} for c, token in added.items()]
    files[TOKENIZER] = json_bytes(tokenizer, large=True)
    lost: dict[str, None] = {}
    for name in (CONFIG, SPECIAL_MAP):
        if name in files:
            config = _known_only(start.files.read_json(name), tokens.ids, lost)
            if "added_tokens_decoder" in config:
                decoder = {str(tokens.ids[c]): token for c, token in added.items()}
                config["added_tokens_decoder"] = decoder
            files[name] = json_bytes(config)
    if ADDED in files:
        legacy = {c: tokens.ids[c] for c in added if c not in kept or c in gone}
        files[ADDED] = json_bytes(legacy)
    if lost:
        notes.append(f"{start.label}: {listing(lost)} no longer special, having no row")
    return files


def _without(tokenizer: Mapping[str, Any], gone: set[str]) -> dict[str, Any]:
    """A tokenizer less some ordinary tokens, and the merges that make or use them."""
    model = dict(tokenizer["model"])
    if isinstance(model["vocab"], Mapping):
        model["vocab"] = {t: number for t, number in model["vocab"].items() if t not in gone}
    else:
        model["vocab"] = [entry for entry in model["vocab"] if entry[0] not in gone]
    if "merges" in model:
        model["merges"] = [merge for merge in model["merges"] if not _touches(merge, gone)]
    return {**tokenizer, "model": model}


def _touches(merge: str | Sequence[str], gone: set[str]) -> bool:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return not gone.isdisjoint((left, right, left + right))


def _known_only(
    config: Mapping[str, Any], ids: Mapping[str, int], lost: dict[str, None]
) -> dict[str, Any]:
    """A tokenizer's config whose special tokens are all among these; `lost` gets the others."""
    kept = dict(config)
    for key in SPECIAL:
        unknown = [text for text in special_texts(config.get(key)) if text not in ids]
        lost.update(dict.fromkeys(unknown))
        if not unknown:
            continue
        if isinstance(config[key], list):
            kept[key] = [each for each in config[key] if special_texts(each)[0] in ids]
        else:
            del kept[key]
    return kept


def counted(tokens: Sequence[str]) -> str:
    """How many, and the first of them."""
    shown = ", ".join(map(repr, tokens[:4])) + (", …" if len(tokens) > 4 else "")
    return f"{len(tokens)} token{'s are' if len(tokens) > 1 else ' is'} ({shown})"
