"""A recipe written out as plain data, so that it can be read, published and run again.

Every parameter is there, defaults included: per-model ones at every source, with all levels joined;
those of the whole merge at the top, or where parts differ in them at each part.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mergekern.dtypes import dtype_name

if TYPE_CHECKING:  # recipes write themselves with this module
    from mergekern.recipe.recipe import Part, Recipe


def written(recipe: Recipe) -> dict[str, Any]:
    """The recipe in the format of recipe files."""
    top, own = _shared(recipe)
    content: dict[str, Any] = {"merge_method": recipe.method.name, **_contents(recipe, own)}
    if recipe.base is not None:
        content["base_model"] = recipe.base.written
    if top:
        content["parameters"] = top
    for key, dtype in (("dtype", recipe.dtype), ("out_dtype", recipe.out_dtype)):
        if dtype is not None:
            content[key] = dtype_name(dtype)
    if recipe.tokenizer is not None:
        content["tokenizer"] = recipe.tokenizer.written
    if recipe.chat_template is not None:
        content["chat_template"] = recipe.chat_template
    return content


def _shared(recipe: Recipe) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Parameters of the whole merge: those of all parts alike, and each part's own."""
    top: dict[str, Any] = {}
    own: list[dict[str, Any]] = [{} for _ in recipe.parts]
    for parameter in recipe.method.parameters:
        if parameter.per_model:
            continue
        name = parameter.name
        each = [recipe.setting(part, parameter, None).written for part in recipe.parts]
        if any(value != each[0] for value in each):
            for level, value in zip(own, each, strict=True):
                level |= {} if value is None else {name: value}
        elif name in recipe.parameters:
            top[name] = recipe.parameters[name]
    return top, own


def _contents(recipe: Recipe, own: list[dict[str, Any]]) -> dict[str, Any]:
    """models, slices or modules."""
    modules: dict[str, dict[str, Any]] = {}
    for part, level in zip(recipe.parts, own, strict=True):
        module = modules.setdefault(part.module, {})
        if part.entries[0].layers is not None:
            module.setdefault("slices", []).append(_slice(recipe, part, level))
            continue
        module["models"] = _entries(recipe, part, whole=True)
        module |= _base(recipe, part) | ({"parameters": level} if level else {})
    if list(modules) == [""] and "base_model" not in modules[""]:
        return modules[""]
    return {"modules": {name or "default": module for name, module in modules.items()}}


def _slice(recipe: Recipe, part: Part, level: dict[str, Any]) -> dict[str, Any]:
    content = {"sources": _entries(recipe, part, whole=False), **_base(recipe, part)}
    return content | ({"parameters": level} if level else {})


def _base(recipe: Recipe, part: Part) -> dict[str, Any]:
    own = part.base is not None and part.base is not recipe.base
    return {"base_model": part.base.written} if own and part.base else {}


def _entries(recipe: Recipe, part: Part, whole: bool) -> list[dict[str, Any]]:
    """A part's sources; of a whole model without the base, which is added when it is read."""
    found = []
    for entry in part.experts if whole else part.entries:
        content: dict[str, Any] = {"model": entry.source.written}
        if entry.layers is not None:
            content["layer_range"] = list(entry.layers)
        if entry.statistics is not None and recipe.statistics:
            content["statistics"] = entry.statistics.written
        if entry.source in recipe.experts and recipe.tasks:
            content["task"] = recipe.tasks[recipe.experts.index(entry.source)]
        if any(entry is expert for expert in part.experts):
            values = {
                p.name: recipe.setting(part, p, entry).written
                for p in recipe.method.parameters
                if p.per_model
            }
            content["parameters"] = {k: v for k, v in values.items() if v is not None}
        found.append(content)
    return found
