"""What a call names beside the models of a recipe: the statistics or the task of each."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

from mergekern.errors import RecipeError
from mergekern.recipe.schema import ModelEntry, Module, RecipeFile

Key = Literal["statistics", "task"]
Holder = TypeVar("Holder", RecipeFile, Module)


class Pairs(tuple[str, ...]):
    """MODEL=FILE, as --statistics has them; either may hold more of =."""


def with_beside(
    file: RecipeFile, key: Key, given: Any, read: Callable[[Any, str], Any]
) -> RecipeFile:
    """The file with what a call gives: one value for each of `models`, in their order, or by a
    model's label, which holds in slices and modules too.

    read: makes of a value and the name to call it by what the file holds
    Raises RecipeError for another number of them, and labels that no model has.
    """
    if given is None:
        return file
    labels = _labels(file)
    if isinstance(given, Pairs):
        given = _by_label(given, labels)
    if isinstance(given, Mapping):
        for label in given:
            if label not in labels:
                raise RecipeError(f"{key} of {label}: the models are {', '.join(labels)}")
        found = {label: read(value, key) for label, value in given.items()}
        modules = {name: _told(module, key, found) for name, module in file.modules.items()}
        return _told(file, key, found).model_copy(update={"modules": modules})
    values = [given] if isinstance(given, (str, os.PathLike)) else given
    if len(values) != len(file.models):
        of = ", ".join(entry.model.label for entry in file.models)
        raise RecipeError(f"{key} has {len(values)} values for {len(file.models)} models ({of})")
    models = tuple(
        entry if value is None else entry.model_copy(update={key: read(value, f"{key}[{place}]")})
        for place, (entry, value) in enumerate(zip(file.models, values, strict=True))
    )
    return file.model_copy(update={"models": models})


def _labels(file: RecipeFile) -> list[str]:
    entries = [place for place in file.places() if isinstance(place, ModelEntry)]
    return list(dict.fromkeys(entry.model.label for entry in entries))


def _by_label(pairs: Pairs, labels: Sequence[str]) -> dict[str, str]:
    """The files by model: the longest label that a pair begins with; a folder's name may end
    in /, as shells complete it."""
    found: dict[str, str] = {}
    for pair in pairs:
        first, equals, _ = pair.partition("=")
        fitting = [
            (begin, label)
            for label in labels
            for begin in (label.rstrip("/"), label.rstrip("/") + "/")
            if pair.startswith(f"{begin}=")
        ]
        begin, label = max(fitting, key=lambda fit: len(fit[0]), default=(first, first))
        file = pair[len(begin) + 1 :]
        if not equals or not label or not file:
            raise RecipeError(f"--statistics {pair!r}; want MODEL=FILE")
        if label in found:
            raise RecipeError(f"--statistics of {label} are given twice")
        found[label] = file
    return found


def _told(holder: Holder, key: Key, values: Mapping[str, Any]) -> Holder:
    """With what is named beside the models in its lists, for those that have any here."""

    def told(entry: ModelEntry) -> ModelEntry:
        found = values.get(entry.model.label)
        return entry if found is None else entry.model_copy(update={key: found})

    slices = tuple(
        run.model_copy(update={"sources": tuple(map(told, run.sources))}) for run in holder.slices
    )
    return holder.model_copy(update={"models": tuple(map(told, holder.models)), "slices": slices})
