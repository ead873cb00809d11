"""Index maps between vocabularies: for every row of the output, the rows that it comes from.

    own[m, i]  the row that model m has for row i of the output, -1 where it has none
    fill[m, i] the row of model m that takes part in what models without row i get, or -1

What a model lacks is filled, by the first rule that applies, with: what the recipe says of the
token; the row of the only model that has it; the base's row; the mean of all that have it; zeros
when nobody does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat

import numpy as np

from mergekern.errors import RecipeError
from mergekern.recipe import Source
from mergekern.recipe.tokenizer import ModelToken, Token, TokenizerSettings
from mergekern.tokenizer.vocabulary import Vocabulary


@dataclass(frozen=True)
class Rows:
    """The output's rows.

    ids:         every token's;  count: of all
    padded_from: rows from here on are the mean of those before, None where there are none
    """

    ids: Mapping[str, int]
    count: int
    padded_from: int | None = None


@dataclass(frozen=True)
class Rule:
    """A token's rule with its models and rows looked up.

    model: of whose rows one is taken; None for zeros
    """

    row: int
    force: bool
    model: int | None
    model_row: int = -1


def count_rows(ids: Mapping[str, int], settings: TokenizerSettings, start: int) -> Rows:
    """How many rows the output has. start: how many the tokenizer's model has."""
    tokens = 1 + max(ids.values(), default=-1)
    multiple = settings.pad_to_multiple_of
    if multiple:
        count = -(-tokens // multiple) * multiple
        return Rows(ids, count, tokens if count > tokens else None)
    return Rows(ids, tokens if settings.padding == "drop" else max(tokens, start))


def own_rows(rows: Rows, vocabularies: Sequence[Vocabulary]) -> np.ndarray:
    """`own` of these models.

    A row that is no token's, as padding is, comes from the row of the same number, in models where
    that is no token's either.
    """
    tokens = list(rows.ids)
    places = np.fromiter(rows.ids.values(), np.int64, len(tokens))
    own = np.full((len(vocabularies), rows.count), -1, np.int64)
    spare = np.arange(rows.count) < (rows.count if rows.padded_from is None else rows.padded_from)
    spare[places] = False
    for mine, vocabulary in zip(own, vocabularies, strict=True):
        found = map(vocabulary.ids.get, tokens, repeat(-1))
        mine[places] = np.fromiter(found, np.int64, len(tokens))
        same = spare.copy()
        taken = np.fromiter(vocabulary.ids.values(), np.int64, len(vocabulary.ids))
        same[taken[taken < rows.count]] = False
        mine[same] = np.flatnonzero(same)
        mine[mine >= vocabulary.rows] = -1
    return own


def fill_rows(own: np.ndarray, base: int | None, rules: Sequence[Rule]) -> np.ndarray:
    """`fill` for these rows of models. base: its place among them, None when it is not."""
    has = own >= 0
    fill = own.copy()
    if base is not None:
        others = np.arange(len(own)) != base
        fill[np.ix_(others, has[base])] = -1
    for rule in rules:
        fill[:, rule.row] = -1
        if rule.model is not None:
            fill[rule.model, rule.row] = rule.model_row
    return fill


def find_rules(
    settings: TokenizerSettings,
    rows: Rows,
    own: np.ndarray,
    vocabularies: Sequence[Vocabulary],
    sources: Sequence[Source],
) -> list[Rule]:
    """The recipe's rules for single tokens.

    Raises RecipeError for a model that lacks the token it should give.
    """
    places = {source.key: place for place, source in enumerate(sources)}
    found = []
    for token, rule in settings.tokens.items():
        if token not in rows.ids:
            raise RecipeError(f"tokenizer.tokens: {token!r} is not a text that can be a token")
        row = rows.ids[token]
        if rule.source == "zero":
            found.append(Rule(row, rule.force, None))
            continue
        wanted = rule.source.model if isinstance(rule.source, ModelToken) else rule.source
        model = places[wanted.key]
        taken = _row_of(token, rule, vocabularies[model], int(own[model, row]))
        found.append(Rule(row, rule.force, model, taken))
    return found


def _row_of(token: str, rule: Token, vocabulary: Vocabulary, own: int) -> int:
    """The row that a model gives."""
    taken, what = own, repr(token)
    if isinstance(rule.source, ModelToken):
        if rule.source.token is not None:
            taken, what = vocabulary.ids.get(rule.source.token, -1), repr(rule.source.token)
        else:
            assert rule.source.token_id is not None
            taken, what = rule.source.token_id, f"id {rule.source.token_id}"
    if not 0 <= taken < vocabulary.rows:
        raise RecipeError(
            f"tokenizer.tokens: {token!r} is to come from {what} of {vocabulary.label}, which has "
            f"no such row (it has {vocabulary.rows})"
        )
    return taken
