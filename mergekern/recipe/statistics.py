"""Which file holds the statistics of which model: named beside the model, never by their order."""

from __future__ import annotations

from collections.abc import Sequence

from mergekern.errors import RecipeError
from mergekern.methods import Method
from mergekern.recipe.recipe import Part
from mergekern.recipe.source import Source


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
