"""Which file holds the statistics of which model: named beside the model, never by their order."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from mergekern.errors import RecipeError
from mergekern.methods import Method
from mergekern.recipe.recipe import Part
from mergekern.recipe.schema import ModelEntry, Module, RecipeFile
from mergekern.recipe.source import Source, parse_source

Holder = TypeVar("Holder", RecipeFile, Module)


class Pairs(tuple[str, ...]):
    """MODEL=FILE, as a command line has them; either may hold more of =."""


def with_statistics(file: RecipeFile, given: Any) -> RecipeFile:
    """The file with what a call gives: a source for each of `models`, or by a model's label, which
    holds in slices and modules too.

    Raises RecipeError for another number of them, and labels that no model has.
    """
    if given is None:
        return file
    if isinstance(given, Pairs):
        given = _by_label(given, _labels(file))
    if isinstance(given, Mapping):
        unknown = [label for label in given if label not in _labels(file)]
        if unknown:
            known = ", ".join(_labels(file))
            raise RecipeError(f"statistics of {unknown[0]}: the models are {known}")
        found = {label: parse_source(one, "statistics") for label, one in given.items()}
        modules = {name: _informed(module, found) for name, module in file.modules.items()}
        return _informed(file, found).model_copy(update={"modules": modules})
    if isinstance(given, (str, os.PathLike)):
        given = [given]
    if len(given) != len(file.models):
        labels = [entry.model.label for entry in file.models]
        raise RecipeError(
            f"statistics has {len(given)} values for {len(labels)} models ({', '.join(labels)})"
        )
    models = tuple(
        entry
        if one is None
        else entry.model_copy(update={"statistics": parse_source(one, f"statistics[{place}]")})
        for place, (entry, one) in enumerate(zip(file.models, given, strict=True))
    )
    return file.model_copy(update={"models": models})


def _labels(file: RecipeFile) -> list[str]:
    entries = [place for place in file.places() if isinstance(place, ModelEntry)]
    return list(dict.fromkeys(entry.model.label for entry in entries))


def _by_label(pairs: Pairs, labels: Sequence[str]) -> dict[str, str]:
    """The files by model: the longest label that a pair begins with."""
    files: dict[str, str] = {}
    for pair in pairs:
        first, equals, _ = pair.partition("=")
        fitting = [label for label in labels if pair.startswith(f"{label}=")]
        label = max(fitting, key=len, default=first)
        file = pair[len(label) + 1 :]
        if not equals or not label or not file:
            raise RecipeError(f"--statistics {pair!r}; want MODEL=FILE")
        if label in files:
            raise RecipeError(f"--statistics of {label} are given twice")
        files[label] = file
    return files


def _informed(holder: Holder, files: Mapping[str, Source]) -> Holder:
    """With the statistics of the models in its lists, for those that have any here."""

    def told(entry: ModelEntry) -> ModelEntry:
        found = files.get(entry.model.label)
        return entry if found is None else entry.model_copy(update={"statistics": found})

    slices = tuple(
        run.model_copy(update={"sources": tuple(map(told, run.sources))}) for run in holder.slices
    )
    return holder.model_copy(update={"models": tuple(map(told, holder.models)), "slices": slices})


def statistics_of(
    method: Method, parts: Sequence[Part], experts: Sequence[Source]
) -> tuple[tuple[Source, ...], tuple[str, ...]]:
    """Those of every expert, none where the method takes none, and notes on what has no effect.

    Raises RecipeError for a model without any, or with two.
    """
    found: dict[int, Source] = {}
    for entry in (entry for part in parts for entry in part.entries):
        if entry.statistics is None:
            continue
        known = found.setdefault(id(entry.source), entry.statistics)
        if known.key != entry.statistics.key:
            raise RecipeError(
                f"model {entry.source.label} has two statistics, {known.label} and "
                f"{entry.statistics.label}: name one"
            )
    if not method.statistics:
        why = f"{method.name} takes no statistics"
        notes = (f"statistics {each.label} has no effect: {why}" for each in found.values())
        return (), tuple(notes)
    for expert in experts:
        if id(expert) not in found:
            raise RecipeError(
                f"{method.name} needs statistics of model {expert.label}: make them by `mergekern "
                f"collect {method.statistics} --model {expert.label} --data ...` and name the file "
                f"as `statistics` beside the model (--statistics {expert.label}=FILE, or in Python "
                "statistics=[...], one for each model)"
            )
    return tuple(found[id(expert)] for expert in experts), ()
