"""From what was asked for to what will be done: inputs told apart, every parameter given a value.

A parameter's value is the first found among: the call's or command line's arguments, the model's
parameters (weight, density, gamma only), the recipe's top-level parameters, the preset, the
method's default.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mergekern.dtypes import parse_dtype
from mergekern.errors import RecipeError
from mergekern.methods import Method, get_method
from mergekern.recipe.recipe import Entry, Level, Part, Recipe
from mergekern.recipe.schema import ModelEntry, RecipeFile
from mergekern.recipe.setting import Setting, parse_setting
from mergekern.recipe.source import Source


def resolve(
    file: RecipeFile, arguments: Mapping[str, Any] | None = None, seed: int | None = None
) -> Recipe:
    """The file's recipe under a call's arguments: numbers, or lists of one number per expert.

    Raises RecipeError for methods, parameters and models that cannot be what was meant.
    """
    method = get_method(file.merge_method)
    given = _named(method, arguments or {}, "")
    top = _named(method, file.parameters, "parameters: ")
    notes = []
    if seed is not None:
        if any(parameter.name == "seed" for parameter in method.parameters):
            given.setdefault("seed", seed)
        elif not isinstance(seed, int) or seed < 0:
            raise RecipeError(f"seed is {seed!r}; want a whole number")
        elif seed:
            notes.append(f"seed has no effect: {method.name} draws no random numbers")
    entries, base = _inputs(method, file, top | given, notes)
    models = tuple(entry.model for entry in entries)
    each = [_of_model(method, entry) for entry in entries]
    preset = {} if file.preset is None else method.preset(file.preset)
    for name, why in method.inert.items():
        if any(level.get(name) for level in (given, top, *each)):
            notes.append(f"{name} has no effect: {why}")
    experts = tuple(
        Entry(model, None, _level(method, own, f"model {model.label}: "))
        for model, own in zip(models, each, strict=True)
    )
    recipe = Recipe(
        method=method,
        parts=(Part(entries=experts, experts=experts, base=base),),
        experts=models,
        base=base,
        given=_given(method, given, models),
        settings=_level(method, top, ""),
        preset=_level(method, preset, ""),
        dtype=None if file.dtype is None else parse_dtype(file.dtype),
        out_dtype=None if file.out_dtype is None else parse_dtype(file.out_dtype),
        notes=tuple(notes),
    )
    recipe.check()
    return recipe


def _level(method: Method, values: Mapping[str, Any], where: str) -> Level:
    """Values written at one place of a recipe as settings."""
    found = {name: parse_setting(method.parameter(name), v, where) for name, v in values.items()}
    return {name: setting for name, setting in found.items() if setting.cases}


def _given(
    method: Method, values: Mapping[str, Any], models: Sequence[Source]
) -> dict[str, Setting | tuple[Setting, ...]]:
    """A call's arguments: a list of plain values is one for each model."""
    found: dict[str, Setting | tuple[Setting, ...]] = {}
    for name, value in values.items():
        parameter = method.parameter(name)
        if not parameter.per_model or not isinstance(value, (list, tuple)):
            found[name] = parse_setting(parameter, value, "")
            continue
        if len(value) != len(models):
            labels = ", ".join(model.label for model in models)
            raise RecipeError(f"{name} has {len(value)} values for {len(models)} models ({labels})")
        found[name] = tuple(
            parse_setting(parameter, one, f"model {model.label}: ")
            for one, model in zip(value, models, strict=True)
        )
    return found


def _named(method: Method, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Values under the parameters' own names; None counts as not given."""
    named: dict[str, Any] = {}
    for key, value in values.items():
        name = method.parameter(key).name
        if value is None:
            continue
        if name in named:
            raise RecipeError(f"{where}{name} is given twice, as {name} and {name}_")
        named[name] = value.tolist() if hasattr(value, "tolist") else value  # arrays, tensors
    return named


def _of_model(method: Method, entry: ModelEntry) -> dict[str, Any]:
    label = entry.model.label
    for key in entry.parameters:
        if not method.parameter(key).per_model:
            raise RecipeError(
                f"model {label}: {key} is one for the whole merge; "
                f"put `{key}` under the top-level parameters"
            )
    return _named(method, entry.parameters, f"model {label}: ")


def _inputs(
    method: Method, file: RecipeFile, shared: Mapping[str, Any], notes: list[str]
) -> tuple[list[ModelEntry], Source | None]:
    """The entries to merge and the base; a base among the models is told apart."""
    entries = list(file.models)
    seen: dict[Any, Source] = {}
    for entry in entries:
        if entry.model.key in seen:
            raise RecipeError(
                f"model {entry.model.label} is listed twice; list it once, with the sum of weights"
            )
        seen[entry.model.key] = entry.model
    base = file.base_model
    if base is None:
        if method.base:
            raise RecipeError(
                f"{method.name} needs a base model: name the one the models were fine-tuned from "
                "(base_model in a recipe, base= in Python, --base on the command line)"
            )
        return entries, None
    if not method.base:
        return _with_base(method, entries, base, shared)
    experts = [entry for entry in entries if entry.model.key != base.key]
    if not experts:
        raise RecipeError(f"no models to merge besides the base {base.label}")
    if any(entry.parameters for entry in entries if entry.model.key == base.key):
        notes.append(f"parameters of {base.label} have no effect: it is the base")
    return experts, base


def _with_base(
    method: Method, entries: list[ModelEntry], base: Source, shared: Mapping[str, Any]
) -> tuple[list[ModelEntry], Source]:
    """A base named for a method that has none: one input more, if a weight reaches it."""
    for entry in entries:
        if entry.model.key == base.key:
            return entries, entry.model
    if isinstance(shared.get("weight"), (list, tuple)) or "weight" not in shared:
        raise RecipeError(
            f"{method.name} treats base_model {base.label} as one more input, and it has no "
            f"weight: list it under models with a weight (0 to leave it out of the average), "
            "or drop base_model"
        )
    return [*entries, ModelEntry(model=base)], base
