"""What a call names beside the models of a recipe: the statistics or the task of each."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
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
    if isinstance(given, Pairs):
        given = _by_label(given, _labels(file))
    if isinstance(given, Mapping):
        named = _named(given, _labels(file), key)
        found = {label: read(value, key) for label, value in named.items()}
        modules = {name: _told(module, key, found) for name, module in file.modules.items()}
        return _told(file, key, found).model_copy(update={"modules": modules})
    values = _listed(given, key)
    if len(values) != len(file.models):
        of = ", ".join(entry.model.label for entry in file.models)
        raise RecipeError(f"{key} has {len(values)} values for {len(file.models)} models ({of})")
    models = tuple(
        entry if value is None else entry.model_copy(update={key: read(value, f"{key}[{place}]")})
        for place, (entry, value) in enumerate(zip(file.models, values, strict=True))
    )
    return file.model_copy(update={"models": models})


def _listed(given: Any, key: Key) -> list[Any]:
    """One value for each model, in an order."""
    if isinstance(given, (str, os.PathLike)):
        return [given]
    if isinstance(given, Iterable) and not isinstance(given, Set):
        return [str(each) if isinstance(each, str) else each for each in given]  # numpy's, too
    raise RecipeError(
        f"{key} is {given!r:.60}; want a list, with one for each model, or one by each model's name"
    )


def _labels(file: RecipeFile) -> list[str]:
    entries = [place for place in file.places() if isinstance(place, ModelEntry)]
    return list(dict.fromkeys(entry.model.label for entry in entries))


def _label(name: str, labels: Sequence[str]) -> str | None:
    """The model that a name means, which may spell its folder otherwise."""
    if name in labels:
        return name
    return next((label for label in labels if _place(label) == _place(name)), None)


def _place(name: str) -> str:
    return os.path.abspath(os.path.expanduser(name))


def _named(given: Mapping[Any, Any], labels: Sequence[str], key: Key) -> dict[str, Any]:
    """The values by the models' labels."""
    found: dict[str, Any] = {}
    for name, value in given.items():
        label = _label(str(name), labels)
        if label is None:
            raise RecipeError(f"{key} of {name}: the models are {', '.join(labels)}")
        if label in found:
            raise RecipeError(f"{key} of {label} are given twice")
        found[label] = value
    return found


def _by_label(pairs: Pairs, labels: Sequence[str]) -> dict[str, str]:
    """The files by model: the longest name of a model that a pair begins with."""
    found: dict[str, str] = {}
    for pair in pairs:
        ends = [place for place, letter in enumerate(pair) if letter == "="]
        known = [end for end in ends if end and _label(pair[:end], labels)]
        end = max(known or ends[:1], default=0)
        name, file = pair[:end], pair[end + 1 :]
        if not name or not file:
            raise RecipeError(f"--statistics {pair!r}; want MODEL=FILE")
        label = _label(name, labels) or name
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
