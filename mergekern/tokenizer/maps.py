"""Index maps for every vocabulary-indexed tensor of every model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from mergekern.checkpoint.aligned import Fill, RowMap, rows_in
from mergekern.checkpoint.base import TensorInfo
from mergekern.errors import MismatchError
from mergekern.tied import match_names
from mergekern.tokenizer.models import Models
from mergekern.tokenizer.rows import Rows, Rule, fill_rows
from mergekern.tokenizer.tensors import is_vocabulary


class Held(NamedTuple):
    """A model's tensor, and the name under which its rows are to be found in the model."""

    info: TensorInfo
    key: str


Holders = dict[int, Held]  # by model
Maps = list[dict[str, RowMap]]


def row_maps(
    models: Models,
    sizes: Sequence[set[int]],
    rows: Rows,
    own: np.ndarray,
    rules: Sequence[Rule],
) -> Maps:
    """The maps of each model's tensors; those that change nothing are left out.

    sizes: of each model, how many rows such a tensor may have;  own: as rows.own_rows() gives it
    What a model lacks comes from the models that have the same tensor.
    """
    found: Maps = [{} for _ in models.checkpoints]
    known: dict[tuple[tuple[int, int], ...], tuple[np.ndarray, np.ndarray]] = {}
    for name, every in _holders(models).items():
        holders = {m: held for m, held in every.items() if rows_in(held.info) in sizes[m]}
        shape = tuple((model, rows_in(held.info)) for model, held in holders.items())
        if shape not in known:
            known[shape] = _of_holders(models, name, holders, own, rules)
        mine, fill = known[shape]
        parts = tuple((models.checkpoints[m], held.info.name) for m, held in holders.items())
        filled = Fill(parts, fill)
        for place, (model, (info, key)) in enumerate(holders.items()):
            if rows.padded_from is not None or not _same(mine[place], info):
                found[model][key] = RowMap(info.name, mine[place], filled, rows.padded_from)
    return found


def narrowed(models: Models) -> tuple[Maps, int]:
    """Maps that cut vocabularies of different size to the smallest, and its rows."""
    found: Maps = [{} for _ in models.checkpoints]
    smallest = 0
    for holders in _holders(models).values():
        rows = min(rows_in(held.info) for held in holders.values())
        nothing = Fill((), np.empty((0, rows), np.int64))
        for model, (info, key) in holders.items():
            if rows_in(info) > rows and key == info.name:  # what a tie lends is cut already
                found[model][key] = RowMap(info.name, np.arange(rows), nothing)
                smallest = rows
    return found, smallest


def _holders(models: Models) -> dict[str, Holders]:
    """Every vocabulary-indexed tensor, by output name, and the models that have it.

    A tied embedding serves as the head of a model that has one: there it lacks the tokens that the
    other heads have. It is a tensor more then, unless names are mapped to the donor's besides.
    """
    names = match_names(models.checkpoints, models.donor, share=False)
    mapped = {model for model, _ in names.renamed}
    found: dict[str, Holders] = {}
    for model, stored in enumerate(names.stored):
        own: set[str] = set()
        for name, info in stored.items():
            lent = info.name in own
            own.add(info.name)
            if is_vocabulary(name) and info.shape and not (lent and model in mapped):
                held = Held(info, name if lent else info.name)
                found.setdefault(name, {})[model] = held
    return found


def _of_holders(
    models: Models,
    name: str,
    holders: Holders,
    own: np.ndarray,
    rules: Sequence[Rule],
) -> tuple[np.ndarray, np.ndarray]:
    """`own` and `fill` among the models that have a tensor."""
    place = {model: number for number, model in enumerate(holders)}
    mine = own[list(holders)]
    unmerged = [number for number, model in enumerate(holders) if model not in models.merged]
    limit = np.array([rows_in(held.info) for held in holders.values()], np.int64)
    mine[mine >= limit[:, None]] = -1
    local = []
    for rule in rules:
        if rule.model is not None and rule.model not in place:
            raise MismatchError(
                f"tensor {name}: model {models.labels[rule.model]} lacks it, and tokenizer.tokens "
                "takes a row from there; name a model that has it"
            )
        local.append(rule if rule.model is None else replace(rule, model=place[rule.model]))
    base = None if models.base is None else place.get(models.base)
    merged = mine.copy()
    merged[unmerged] = -1
    fill = fill_rows(merged, base, local)
    mine[:, [rule.row for rule in rules if rule.force]] = -1
    return mine, fill


def _same(own: np.ndarray, info: TensorInfo) -> bool:
    """Whether a map gives the tensor as it is."""
    return len(own) == rows_in(info) and bool((own == np.arange(len(own))).all())
