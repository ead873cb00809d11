"""One vocabulary for all models of a merge: the output's tokenizer, its rows, its configs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mergekern.checkpoint.aligned import RowMap
from mergekern.checkpoint.base import Checkpoint, listing
from mergekern.checkpoint.jsonfile import read_object
from mergekern.checkpoint.sidefiles import GENERATION
from mergekern.recipe import Source
from mergekern.recipe.tokenizer import TokenizerSettings
from mergekern.tokenizer.build import Output, build, counted
from mergekern.tokenizer.files import (
    SAY_TOKENS,
    Files,
    json_bytes,
    missing,
    with_json,
)
from mergekern.tokenizer.ids import is_id, with_ids, with_rows
from mergekern.tokenizer.maps import row_maps
from mergekern.tokenizer.models import Models
from mergekern.tokenizer.rows import Rows, count_rows, find_rules, own_rows
from mergekern.tokenizer.tensors import doubtful, embedding_rows, vocab_size
from mergekern.tokenizer.vocabulary import Vocabulary, read_vocabulary

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Unified:
    """maps: of each model's tensors;  files, config: the output's;  notes: what is worth saying."""

    maps: Sequence[Mapping[str, RowMap]]
    files: Mapping[str, bytes]
    config: Json
    notes: tuple[str, ...]


def unify(settings: TokenizerSettings, models: Models, stored: Sequence[Files | None]) -> Unified:
    """The models' vocabularies made one. stored: the tokenizer files of each model."""
    notes: list[str] = []
    place = _place(settings, models)
    vocabularies = _vocabularies(models, stored, place, notes)
    start = vocabularies[place]
    others = [vocabularies[model] for model in sorted(models.merged - {place})]
    output = build(start, others if settings.source == "union" else [], settings.tokens)
    rows = count_rows(output.ids, settings, start.rows)
    own = own_rows(rows, vocabularies)
    rules = find_rules(settings, rows, own, vocabularies, models.sources)
    maps = row_maps(models, [_sizes(v) for v in vocabularies], rows, own, rules)
    notes += output.notes
    merged = sorted(models.merged)
    notes += _row_notes(others, rows, own[merged], {rule.row for rule in rules})
    notes += _doubts(models.checkpoints[models.donor], maps[models.donor])
    config, generation = _configs(models, vocabularies[models.donor], place, output, notes)
    if rows.count != vocab_size(config):
        config = with_rows(config, rows.count)
    return Unified(maps, {**output.files, **generation}, config, tuple(notes))


def _place(settings: TokenizerSettings, models: Models) -> int:
    """Which of the models the output's tokenizer begins with."""
    if not isinstance(settings.source, Source):
        return models.donor
    return [source.key for source in models.sources].index(settings.source.key)


def _vocabularies(
    models: Models, stored: Sequence[Files | None], like: int, notes: list[str]
) -> list[Vocabulary]:
    """Each model's; those without a tokenizer are taken to have that of `like`."""
    found: list[Vocabulary] = []
    known: dict[tuple[bytes | None, ...], Vocabulary] = {}
    for checkpoint, files in zip(models.checkpoints, stored, strict=True):
        lent = files if files is not None else stored[like]
        if lent is None:
            raise missing(models.labels[like])
        if files is None:
            notes.append(
                f"{checkpoint.label}: has no tokenizer, its rows are taken to be for the tokens of "
                f"{models.labels[like]}"
            )
        rows = embedding_rows(checkpoint)
        key = tuple(map(lent.content.get, SAY_TOKENS))
        if key not in known:
            files = with_json(checkpoint.label, lent)
            known[key] = read_vocabulary(checkpoint.label, files, rows)
        same = replace(known[key].files, where=lent.where)
        found.append(replace(known[key], label=checkpoint.label, files=same, rows=rows))
    return found


def _sizes(vocabulary: Vocabulary) -> set[int]:
    """How many rows a tensor may have that has one for every token."""
    return {vocabulary.rows, 1 + max(vocabulary.ids.values(), default=-1)}


def _configs(
    models: Models, donor: Vocabulary, start: int, output: Output, notes: list[str]
) -> tuple[Json, dict[str, bytes]]:
    """The donor's config with the token ids of the output, and generation_config.json if it
    changes. Ids are those of the model whose tokenizer is taken, where it has them."""
    checkpoint = models.checkpoints[models.donor]
    mine = start == models.donor
    other = models.checkpoints[start]

    def translate(number: int) -> int | None:
        token = donor.by_id.get(number)
        if token is None:
            return number if mine else None
        return output.ids.get(token)

    lost: dict[str, None] = {}
    like = {} if mine else other.config
    config = with_ids(checkpoint.config, like, translate, lost)
    before, theirs = _generation(checkpoint.folder), _generation(other.folder)
    ids = {key: value for key, value in like.items() if is_id(key)}
    generation = with_ids(before, {**ids, **({} if mine else theirs)}, translate, lost)
    generation = generation or dict(theirs)
    if lost:
        notes.append(
            f"{donor.label}: {listing(lost)} left out of its configs, naming no token of the output"
        )
    return config, {GENERATION: json_bytes(generation)} if generation != before else {}


def _generation(folder: Path | None) -> Json:
    path = None if folder is None else folder / GENERATION
    return read_object(path, strict=False) if path is not None and path.exists() else {}


def _row_notes(
    others: Sequence[Vocabulary], rows: Rows, own: np.ndarray, ruled: set[int]
) -> Iterator[str]:
    """What is worth knowing of rows that are not simply there."""
    for vocabulary in others:
        if vocabulary.beyond:
            yield (
                f"{vocabulary.label}: {counted(vocabulary.beyond)} taken as absent, having no row "
                f"among its {vocabulary.rows}"
            )
    nobody = np.all(own < 0, axis=0).tolist()
    zeros = [token for token, row in rows.ids.items() if nobody[row] and row not in ruled]
    if zeros:
        yield f"{counted(zeros)} in no model: their rows are zeros"


def _doubts(checkpoint: Checkpoint, maps: Mapping[str, RowMap]) -> Iterator[str]:
    """Tensors that might be vocabulary-indexed and are merged as they lie, where that matters."""
    names = doubtful(checkpoint, embedding_rows(checkpoint)) if maps else []
    if names:
        yield (
            f"{checkpoint.label}: {listing(names)} of as many rows as there are tokens, but not "
            "known to be indexed by them, and merged as they are"
        )
