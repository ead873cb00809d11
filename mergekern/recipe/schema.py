"""The recipe file: mergekit's format, as far as it is read here, checked key by key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mergekern.errors import RecipeError
from mergekern.methods import nearest
from mergekern.recipe.source import Source, parse_source

# Keys of mergekit's format that have a meaning there and none here so far.
UNREAD = ("slices", "modules", "tokenizer", "tokenizer_source", "chat_template", "name")

Setting = bool | int | float | str


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, frozen=True)


class ModelEntry(_Strict):
    """One entry of `models`."""

    model: Source
    parameters: dict[str, Any] = Field(default_factory=dict)


class RecipeFile(_Strict):
    """A recipe as written. Parameters are checked against the method later, see resolve.py.

    grid: parameters with lists of values; then it stands for many recipes, see grid.py
    """

    merge_method: str
    models: tuple[ModelEntry, ...]
    base_model: Source | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)
    grid: Any = None
    preset: str | None = None
    dtype: str | None = None
    out_dtype: str | None = None


def parse_recipe(content: Any, where: str) -> RecipeFile:
    """Plain data -> RecipeFile; RecipeError naming the key, and the nearest one that is known.

    where: the file's name, or another word for the origin, which messages begin with.
    """
    if not isinstance(content, Mapping):
        raise RecipeError(f"{where}: want a mapping with merge_method and models, not {content!r}")
    for key in UNREAD:
        if content.get(key) is not None:
            raise RecipeError(f"{where}: the key {key!r} of mergekit's format is not read yet")
    present = {key: value for key, value in content.items() if value is not None}
    if "base_model" in present:
        present["base_model"] = parse_source(present["base_model"], "base_model")
    if "models" in present:
        present["models"] = _entries(present["models"], where)
    if "parameters" in present:
        present["parameters"] = _settings(present["parameters"], f"{where}: parameters")
    try:
        return RecipeFile.model_validate(present)
    except ValidationError as error:
        raise RecipeError(f"{where}: {_explain(error)}") from error


def _entries(models: Any, where: str) -> list[Any]:
    if not isinstance(models, (list, tuple)):
        raise RecipeError(f"{where}: models is {models!r}; want a list of entries `- model: ...`")
    if not models:
        raise RecipeError(f"{where}: models is empty; list at least one model to merge")
    entries = []
    for place, entry in enumerate(models):
        name = f"models[{place}]"
        if not isinstance(entry, Mapping) or "model" not in entry:
            raise RecipeError(f"{where}: {name} is {entry!r}; want an entry `model: ...`")
        present = {key: value for key, value in entry.items() if value is not None}
        present["model"] = parse_source(entry["model"], name)
        if "parameters" in present:
            inside = f"{where}: {name}.parameters"
            present["parameters"] = _settings(present["parameters"], inside)
        entries.append(present)
    return entries


def _settings(parameters: Any, where: str) -> dict[str, Setting]:
    if not isinstance(parameters, Mapping):
        raise RecipeError(f"{where} is {parameters!r}; want a mapping of names to values")
    for name, value in parameters.items():
        conditional = isinstance(value, Mapping) or (
            isinstance(value, list) and any(isinstance(item, Mapping) for item in value)
        )
        if conditional:
            raise RecipeError(f"{where}.{name}: values with a filter are not read yet")
        if isinstance(value, (list, tuple)):
            raise RecipeError(
                f"{where}.{name}: a list of values over the layers is not read yet; "
                "for one value per model write it under that model's parameters"
            )
    return {str(name): value for name, value in parameters.items() if value is not None}


def _explain(error: ValidationError) -> str:
    """One fault in one line."""
    faults = error.errors()
    # A misspelt key is also a missing one; the spelling says more.
    fault = next((each for each in faults if each["type"] == "extra_forbidden"), faults[0])
    place = ".".join(str(part) for part in fault["loc"])
    key = str(fault["loc"][-1])
    inside: type[BaseModel] = ModelEntry if len(fault["loc"]) > 1 else RecipeFile
    if fault["type"] == "extra_forbidden":
        known = list(inside.model_fields)
        return f"unknown key {place!r}{nearest(key, known)} (keys: {', '.join(known)})"
    if fault["type"] == "missing":
        return f"the key {place!r} is missing"
    return f"{place} is {fault['input']!r}: {fault['msg']}"
