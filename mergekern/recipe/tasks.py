"""What the tasks of a container are called: `task:` beside a model, else the model's own name."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence

from mergekern.errors import RecipeError
from mergekern.methods import Method
from mergekern.recipe.recipe import Part
from mergekern.recipe.source import Source

NAME = re.compile(r"\w[\w.-]*")  # of a folder, and behind the @ of a reference
OTHER = re.compile(r"[^\w.-]+")


def tasks_of(
    method: Method, parts: Sequence[Part], experts: Sequence[Source]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The name of every expert's task, none where the method makes no container; notes on names
    without effect.

    Names that several models share are numbered. Raises RecipeError for one that is given twice,
    and for what is no folder's name.
    """
    every = {
        id(entry.source): entry
        for part in parts
        for entry in part.entries
        if entry.task is not None
    }
    if not method.container:
        why = f"{method.name} writes one model"
        return (), tuple(f"task {entry.task} has no effect: {why}" for entry in every.values())
    own = set(map(id, experts))
    notes = tuple(
        f"task {entry.task} has no effect: {entry.source.label} is the base"
        for place, entry in every.items()
        if place not in own
    )
    named = {place: str(entry.task) for place, entry in every.items() if place in own}
    for name in named.values():
        if not NAME.fullmatch(name):
            raise RecipeError(f"task is {name!r}; want letters, digits, _, - and ., without /")
    count = Counter(named.values()).most_common(1)
    if count and count[0][1] > 1:
        raise RecipeError(f"task {count[0][0]} is given to {count[0][1]} models: want one for each")
    unnamed = Counter(_own_name(expert) for expert in experts if id(expert) not in named)
    shared = {name for name, times in unnamed.items() if times > 1}
    taken, found = set(named.values()), []
    for expert in experts:
        name = named.get(id(expert)) or _own_name(expert)
        if id(expert) not in named:
            name = _free(name, taken, numbered=name in shared)
        taken.add(name)
        found.append(name)
    return tuple(found), notes


def _own_name(source: Source) -> str:
    """The last part of a path or id; of an adapter's, where there is one; a container's task."""
    given = source if source.lora is None else source.lora
    if given.in_memory:
        return "task"
    path = os.path.abspath(os.path.expanduser(given.where))
    name = os.path.basename(path)
    if given.revision is not None and os.path.isdir(path):  # a task of a container
        name = given.revision
    return OTHER.sub("-", name).strip("-.") or "task"


def _free(name: str, taken: set[str], numbered: bool) -> str:
    if not numbered and name not in taken:
        return name
    number = 1
    while f"{name}-{number}" in taken:
        number += 1
    return f"{name}-{number}"
