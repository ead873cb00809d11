"""What a recipe's tokenizer and chat template make of its models: one vocabulary for all of them.

recipe + tokenizer files -> output tokenizer -> index maps -> checkpoints that read through them
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mergekern.checkpoint.aligned import AlignedCheckpoint, RowMap
from mergekern.checkpoint.base import Checkpoint
from mergekern.recipe.tokenizer import TokenizerSettings
from mergekern.tokenizer.chat import choose_template, with_template
from mergekern.tokenizer.files import Files, missing, read_files
from mergekern.tokenizer.ids import vocab_size, with_rows
from mergekern.tokenizer.maps import narrowed
from mergekern.tokenizer.models import Models
from mergekern.tokenizer.unify import unify

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Alignment:
    """Checkpoints that have one vocabulary, and what a merge of them is to say of it.

    checkpoints: in the order given; the donor's config is the output's
    files:       side files to write in place of the donor's; None: not to be taken from it
    """

    checkpoints: tuple[Checkpoint, ...]
    files: Mapping[str, bytes | None]
    notes: tuple[str, ...]


def align(
    settings: TokenizerSettings | None, chat_template: str | None, models: Models
) -> Alignment:
    """The models of a merge under the tokenizer and the chat template that its recipe asks for.

    Without either they are as they were: padding and side files are the donor's.
    Raises CheckpointError for a tokenizer that is missing or unreadable, MismatchError for models
    without a known embedding, RecipeError for a rule that cannot apply.
    """
    if settings is None and chat_template is None:
        return Alignment(tuple(models.checkpoints), {}, ())
    stored = [read_files(c.label, c.folder) for c in models.checkpoints]
    donor, own = models.checkpoints[models.donor], stored[models.donor]
    notes: list[str] = []
    side: dict[str, bytes] = {} if own is None else dict(own.content)
    maps: Sequence[Mapping[str, RowMap]] = [{} for _ in models.checkpoints]
    config = donor.config
    if settings is not None:
        unified = unify(settings, models, stored)
        maps, config, side = unified.maps, unified.config, dict(unified.files)
        notes += unified.notes
    if chat_template is not None:
        if not side:
            raise missing(donor.label)
        template = choose_template(chat_template, [each for each in stored if each is not None])
        if template is None:
            notes.append("chat_template auto has no effect: no model has a chat template")
        else:
            side = with_template(side, template)
    files = _replaced(own, side)
    return Alignment(_through(models, maps, config, files), files, tuple(notes))


def truncate(models: Models) -> Alignment:
    """Vocabularies of different size cut to the smallest, whatever their tokens are.

    The donor's tokenizer is kept, and may name tokens that have no row any more.
    """
    maps, rows = narrowed(models)
    if not any(maps):
        return Alignment(tuple(models.checkpoints), {}, ())
    config = models.checkpoints[models.donor].config
    old = vocab_size(config)
    notes = [f"vocabularies are cut to the smallest, {rows} rows; tokens beyond have none"]
    if old is not None and old > rows:
        config = with_rows(config, rows)
    return Alignment(_through(models, maps, config, {}), {}, tuple(notes))


def _replaced(own: Files | None, side: Mapping[str, bytes]) -> dict[str, bytes | None]:
    """What differs from the donor's side files."""
    before = {} if own is None else own.content
    gone: dict[str, bytes | None] = dict.fromkeys(before.keys() - side.keys())
    return gone | {name: data for name, data in side.items() if before.get(name) != data}


def _through(
    models: Models,
    maps: Sequence[Mapping[str, RowMap]],
    config: Json,
    files: Mapping[str, bytes | None],
) -> tuple[Checkpoint, ...]:
    """The checkpoints, read through their maps. The donor's tells all maps and files apart."""
    mark = _mark(maps, files, config)
    return tuple(
        AlignedCheckpoint(checkpoint, mine, config=config, mark=mark)
        if place == models.donor
        else (AlignedCheckpoint(checkpoint, mine) if mine else checkpoint)
        for place, (checkpoint, mine) in enumerate(zip(models.checkpoints, maps, strict=True))
    )


def _mark(
    maps: Sequence[Mapping[str, RowMap]], files: Mapping[str, bytes | None], config: Json
) -> str:
    """sha256 of all that decides how rows are gathered and what the side files say."""
    hashed = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name in sorted(files):
        hashed.update(repr((name, files[name])).encode())
    seen: set[int] = set()
    for place, mine in enumerate(maps):
        for name, rows in mine.items():
            parts = [(checkpoint.label, part) for checkpoint, part in rows.fill.parts]
            hashed.update(repr((place, name, rows.source, rows.padded_from, parts)).encode())
            for array in (rows.own, rows.fill.rows):
                if id(array) not in seen:
                    seen.add(id(array))
                    hashed.update(array.tobytes())
    return hashed.hexdigest()
