"""A grid: one recipe that stands for many, one for every combination of some parameters' values.

    grid:
      density: [0.1, 0.2]
      weight: [0.5, [0.3, 0.7]]    # a list inside is one value per model

A parameter is on the grid or given elsewhere, never both, so that no value is lost to another.
Only a preset's gives way, as it does to everything else.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

from mergekern.errors import RecipeError
from mergekern.methods import Method, Parameter, get_method
from mergekern.recipe.recipe import Recipe
from mergekern.recipe.resolve import resolve
from mergekern.recipe.schema import ModelEntry, RecipeFile
from mergekern.recipe.text import spell

Axes = dict[str, tuple[Any, ...]]  # parameter -> its values, as written


def expand(
    file: RecipeFile, arguments: Mapping[str, Any] | None = None, seed: int | None = None
) -> dict[str, Recipe]:
    """Every recipe of a grid by its name, like `density=0.1,lambda=0.5`; the last axis runs first.

    Raises RecipeError naming the axis that cannot be what was meant.
    """
    method = get_method(file.merge_method)
    axes = _axes(method, file.grid)
    _check_given_once(axes, file, arguments or {}, seed)
    plain = file.model_copy(update={"grid": None})
    found: dict[str, Recipe] = {}
    names: dict[str, str] = {}  # by what a recipe resolves to
    for values in product(*axes.values()):
        point = dict(zip(axes, values, strict=True))
        recipe = resolve(plain, {**(arguments or {}), **point}, seed)
        name = ",".join(f"{axis}={_text(method, axis, value)}" for axis, value in point.items())
        other = names.setdefault(repr(recipe.parameters), name)
        if other != name:
            raise RecipeError(f"grid: {other} and {name} are the same merge; leave one out")
        found[name] = recipe
    return found


def _axes(method: Method, grid: Any) -> Axes:
    if not isinstance(grid, Mapping) or not grid:
        raise RecipeError(f"grid is {grid!r}; want a mapping of parameters to lists of values")
    axes: Axes = {}
    for key, values in grid.items():
        parameter = _parameter(method, str(key))
        axis = f"grid.{parameter.name}"
        if parameter.name in axes:
            raise RecipeError(f"{axis} is given twice, as {parameter.name} and {parameter.name}_")
        if not isinstance(values, (list, tuple)) or not values:
            raise RecipeError(f"{axis} is {values!r}; want a list of values, at least one")
        seen = []
        for value in values:
            parsed = _parse(parameter, value)
            if parsed in seen:
                raise RecipeError(f"{axis} holds {value!r} twice; list every value once")
            seen.append(parsed)
        axes[parameter.name] = tuple(values)
    return axes


def _check_given_once(
    axes: Axes, file: RecipeFile, arguments: Mapping[str, Any], seed: int | None
) -> None:
    places: list[tuple[str, Mapping[str, Any]]] = [
        ("the call's arguments", {**arguments, "seed": arguments.get("seed", seed)}),
        *((_place(place), place.parameters) for place in file.places()),
    ]
    for place, given in places:
        for key, value in given.items():
            name = key.removesuffix("_")
            if name in axes and value is not None:
                raise RecipeError(
                    f"grid.{name}: {name} is among {place} too; leave one of them out"
                )


def _place(place: Any) -> str:
    if isinstance(place, ModelEntry):
        return f"the parameters of {place.model.label}"
    return f"the parameters of {spell(place.path)}" if place.path else "the recipe's parameters"


def _parameter(method: Method, name: str) -> Parameter:
    try:
        return method.parameter(name)
    except RecipeError as error:
        raise RecipeError(f"grid: {error}") from error


def _parse(parameter: Parameter, value: Any) -> Any:
    """A point of an axis in the parameter's own type; a tuple where it is one value per model."""
    if parameter.per_model and isinstance(value, (list, tuple)):
        return tuple(parameter.parse(each, "grid: ") for each in value)
    return parameter.parse(value, "grid: ")


def _text(method: Method, axis: str, value: Any) -> str:
    """A value as part of a folder's name: digits enough to tell it from any other."""
    parsed = _parse(method.parameter(axis), value)
    each = parsed if isinstance(parsed, tuple) else (parsed,)
    return "_".join(str(one).lower().removesuffix(".0") for one in each)
