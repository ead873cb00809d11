"""Recipes of several documents: stages, of which one may merge what others have made.

    name: first
    merge_method: linear
    models: ...
    ---
    merge_method: slerp
    models:
    - model: first             # the stage, before any path or Hub id of that name
    ...

All but one document have a name. The one without is the result; where every one has a name, it is
the one that no other reads.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from mergekern.errors import RecipeError
from mergekern.recipe.recipe import Recipe
from mergekern.recipe.resolve import resolve
from mergekern.recipe.schema import parse_recipe
from mergekern.recipe.text import Origin

NAME = re.compile(r"\w[\w.-]*")  # of a folder; a + would read as a model and its adapter


@dataclass(frozen=True)
class Stage:
    """One document: its merge, and the stages that it reads. name: "" for the result."""

    name: str
    recipe: Recipe
    needs: tuple[str, ...]


def order_stages(
    found: Sequence[tuple[Any, Origin]], folder: Path, seed: int | None = None
) -> tuple[Stage, ...]:
    """The stages of some documents, each behind those it reads; the last one is the result.

    folder: where all but the result go, each into a folder of its name
    Raises RecipeError for names that are given twice or are no folder's, for stages that read one
    another in a circle, and for a result that is none or several.
    """
    named = _by_name(found)
    folders = {name: str(folder / name) for name in named if name}
    recipes = {name: _recipe(*document, folders, seed) for name, document in named.items()}
    needs = {name: _needs(recipe, folders) for name, recipe in recipes.items()}
    try:
        order = list(TopologicalSorter(needs).static_order())
    except CycleError as error:
        circle = " reads ".join(name or "the result" for name in reversed(error.args[1]))
        raise RecipeError(f"{found[0][1].at()}stages wait for one another: {circle}") from error
    result = _result(needs, found[0][1])
    order = [*(name for name in order if name != result), result]
    return tuple(
        Stage("" if name == result else name, recipes[name], needs[name]) for name in order
    )


def _by_name(found: Sequence[tuple[Any, Origin]]) -> dict[str, tuple[Any, Origin]]:
    named: dict[str, tuple[Any, Origin]] = {}
    for content, origin in found:
        name = (content.get("name") if isinstance(content, Mapping) else None) or ""
        if not isinstance(name, str) or (name and not NAME.fullmatch(name)):
            raise RecipeError(
                f"{origin.at('name')}name is {name!r}; want one that can name a folder"
            )
        if name in named:
            first = named[name][1].at("name").removesuffix(": ")
            what = f"the name {name!r} is" if name else "documents without a name are"
            raise RecipeError(f"{origin.at('name')}{what} given twice (first in {first})")
        named[name] = (content, origin)
    return named


def _recipe(content: Any, origin: Origin, folders: Mapping[str, str], seed: int | None) -> Recipe:
    if isinstance(content, Mapping):
        content = {key: value for key, value in content.items() if key != "name"}
    file = parse_recipe(content, origin)
    if file.grid is not None:
        raise RecipeError(f"{origin.at('grid')}grid: a stage is one merge; write its values out")
    return resolve(file, seed=seed, stages=folders)


def _needs(recipe: Recipe, folders: Mapping[str, str]) -> tuple[str, ...]:
    read = {source.where for source in recipe.sources if not source.in_memory}
    return tuple(name for name, folder in folders.items() if folder in read)


def _result(needs: Mapping[str, tuple[str, ...]], origin: Origin) -> str:
    """The stage without a name, or else the one that no other reads."""
    if "" in needs:
        return ""
    read = {name for each in needs.values() for name in each}
    ends = [name for name in needs if name not in read]
    if len(ends) != 1:
        raise RecipeError(
            f"{origin.at()}no other stage reads {' and '.join(ends)}: leave out the name of the "
            "one that is the result"
        )
    return ends[0]
