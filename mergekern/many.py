"""Many merges asked for at once: their recipes, their folders, and their plans together."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mergekern.errors import OutputError, RecipeError
from mergekern.folders import output_path
from mergekern.jobs import Job
from mergekern.plan import Plan
from mergekern.recipe import Recipe, read, read_grid
from mergekern.report import many_text

LONGEST_NAME = 255  # bytes of a folder's name, on every usual file system


@dataclass(frozen=True)
class Plans:
    """What merge_many() would do; str() shows it, with the first plan in full.

    names:       of a grid's points, or the places in the list of recipes
    input_bytes: what one pass over all inputs reads, however many merges share them
    memory:      the engine's estimate for all of them, where one was made; str() of it is shown
    """

    names: tuple[str, ...]
    plans: tuple[Plan, ...]
    input_bytes: int
    memory: Any = field(default=None, compare=False)

    def __str__(self) -> str:
        return many_text(self.names, self.plans, self.input_bytes, self.memory)

    @property
    def output_bytes(self) -> int:
        return sum(plan.output_bytes for plan in self.plans)


def plans_of(jobs: Mapping[str, Job]) -> Plans:
    """The plans of jobs by name."""
    stored: dict[tuple[int, str], int] = {}
    for job in jobs.values():
        for step in job.plan.steps:
            for given in step.origins:
                checkpoint = job.checkpoints[given.model]
                stored[id(checkpoint), given.name] = checkpoint.tensors[given.name].nbytes
    return Plans(tuple(jobs), tuple(job.plan for job in jobs.values()), sum(stored.values()))


def read_recipes(recipes: Any, **options: Any) -> dict[str, Recipe]:
    """The recipes of a list, or of one recipe with a grid, by name. options: those of read()."""
    if not _is_list(recipes):
        return read_grid(recipes, **options)
    found = {}
    for place, recipe in enumerate(recipes):
        name = f"recipes[{place}]"
        try:
            found[name] = read(recipe, **options)
        except RecipeError as error:
            raise RecipeError(f"{name}: {error}") from error
    if not found:
        raise RecipeError("recipes is empty; give at least one, or a recipe with a grid")
    return found


def output_folders(outputs: Any, recipes: Any, names: Sequence[str]) -> list[Path | None]:
    """A folder for every recipe; for a grid, subfolders of the one given; None for memory."""
    if outputs is None:
        return [None] * len(names)
    if isinstance(outputs, str | os.PathLike):
        if _is_list(recipes):
            raise OutputError(
                f"outputs is one folder, {os.fspath(outputs)}, for {len(names)} recipes; give a "
                "list with a folder for each"
            )
        longest = max(names, key=lambda name: len(name.encode()))
        if len(longest.encode()) > LONGEST_NAME:
            raise OutputError(
                f"{longest} is too long for a folder's name; give outputs a list of folders"
            )
        return [output_path(output_path(outputs) / name) for name in names]
    if not isinstance(outputs, Iterable) or isinstance(outputs, Mapping):
        raise OutputError(f"outputs is {outputs!r}; want a list of folders")
    folders = [output_path(output) for output in outputs]
    if len(folders) != len(names):
        raise OutputError(f"outputs has {len(folders)} folders for {len(names)} recipes")
    return list(folders)


def _is_list(recipes: Any) -> bool:
    """One recipe may be a text or a mapping, which are iterable too."""
    single = isinstance(recipes, str | os.PathLike | Mapping) or hasattr(recipes, "model_dump")
    return isinstance(recipes, Iterable) and not single
