"""Recipes of several documents as merges one after the other: their folders, and their plans."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergekern.errors import OutputError, RecipeError
from mergekern.folders import check_apart, output_path
from mergekern.lock import LOCK
from mergekern.plan import Plan
from mergekern.recipe import Recipe, has_stages, read, read_stages

if TYPE_CHECKING:
    from mergekern.container.plans import ContainerPlan


@dataclass(frozen=True)
class StagedMerge:
    """One of the merges that a recipe asks for.

    name:   of the stage; "" for the result
    folder: where it goes; None: memory
    needs:  the folders of other stages that it reads
    """

    name: str
    recipe: Recipe
    folder: Path | None
    needs: tuple[Path, ...] = ()

    @property
    def ready(self) -> bool:
        """True when all that it reads has been merged."""
        return all((folder / LOCK).exists() for folder in self.needs)


@dataclass(frozen=True)
class StagePlans:
    """The plans of stages, in the order in which they are merged; str() shows them.

    plans: None for a stage that reads others, as long as they are not merged
    """

    merges: tuple[StagedMerge, ...]
    plans: tuple[Plan | ContainerPlan | None, ...]

    def __str__(self) -> str:
        pairs = zip(self.merges, self.plans, strict=True)
        return "\n\n".join(_text(merge, plan) for merge, plan in pairs)


def _text(merge: StagedMerge, plan: Plan | ContainerPlan | None) -> str:
    title = f"stage {merge.name}" if merge.name else "result"
    if plan is None:
        needs = ", ".join(map(str, merge.needs))
        plan_text = f"planned once {needs} is there: {merge.recipe.method.name}"
    else:
        plan_text = str(plan)
    return f"{title}: {merge.folder}\n{plan_text}"


def staged_merges(
    what: Any, output: Path | None, intermediate: Any, seed: int | None, **options: Any
) -> tuple[StagedMerge, ...]:
    """The merges that a recipe asks for, the result's last; one, unless it has several documents.

    output:       of the result; None: memory
    intermediate: the folder for all others; beside the output, its name with .stages, if None
    options:      of read(); with stages, each of which has its own, none may be given
    Raises RecipeError and OutputError before anything is merged.
    """
    if not has_stages(what):
        if intermediate is not None:
            raise RecipeError(
                "intermediate is for the stages of a recipe of several documents, and this one "
                "has none"
            )
        return (StagedMerge("", read(what, seed=seed, **options), output),)
    parameters = options.get("parameters") or {}
    for name, value in {**options, **parameters, "parameters": None}.items():
        if value is not None:
            raise RecipeError(
                f"{name} is given with a recipe of several documents: write it into the one it is "
                "meant for"
            )
    if output is None:
        raise OutputError("stages are merged into folders: give output=")
    return _staged(what, output, intermediate, seed)


def _staged(
    what: Any, output: Path, intermediate: Any, seed: int | None
) -> tuple[StagedMerge, ...]:
    beside = output if output.name not in ("", "..") else output.resolve()
    folder = (
        beside.with_name(f"{beside.name}.stages")
        if intermediate is None
        else output_path(intermediate)
    )
    merges = tuple(
        StagedMerge(
            stage.name,
            stage.recipe,
            folder / stage.name if stage.name else output,
            tuple(folder / name for name in stage.needs),
        )
        for stage in read_stages(what, folder, seed=seed)
    )
    check_apart(merge.folder for merge in merges if merge.folder is not None)
    return merges
