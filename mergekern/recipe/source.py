"""Where a model comes from: the references of recipes, and models already in memory."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

from mergekern.errors import RecipeError
from mergekern.lazily import is_tensor
from mergekern.recipe.text import shown

REFERENCE_KEYS = frozenset({"model", "path", "revision", "lora", "override_architecture"})


@dataclass(frozen=True, eq=False)
class Source:
    """One model as the user gave it.

    where:    a path or hub id, or the model's tensors when in memory
    label:    how messages, plan and card name it
    revision: of a hub id
    lora:     an adapter that is added to it
    architecture: the class that stands for the one its config.json names
    """

    where: Any
    label: str
    revision: str | None = None
    lora: Source | None = None
    architecture: str | None = None

    @property
    def in_memory(self) -> bool:
        return not isinstance(self.where, str)

    @property
    def resident(self) -> bool:
        """True when all of it lies in memory, and nothing has to be read or computed."""
        return self.in_memory and self.lora is None

    @property
    def key(self) -> Hashable:
        """Equal for two references to the same model."""
        lora = None if self.lora is None else self.lora.key
        return (self._place, self.revision, lora, self.architecture)

    @property
    def _place(self) -> Hashable:
        if self.in_memory:
            return id(self.where)
        path = os.path.expanduser(self.where)
        return os.path.realpath(path) if os.path.exists(path) else self.where.rstrip("/")

    def moved(self, where: str) -> Source:
        """The same, read from elsewhere."""
        found = replace(self, where=where, label=where)
        return found if self.lora is None else replace(found, label=f"{where}+{self.lora.label}")

    @property
    def written(self) -> Any:
        """The reference as recipes write it."""
        if self.architecture is None:
            return self._text
        plain = replace(self, lora=None, architecture=None)
        adapter = {} if self.lora is None else {"lora": self.lora.written}
        return {"model": plain.written, **adapter, "override_architecture": self.architecture}

    @property
    def _text(self) -> str:
        if self.in_memory:
            return self.label
        own = self.where if self.revision is None else f"{self.where}@{self.revision}"
        return own if self.lora is None else f"{own}+{self.lora._text}"


def parse_source(value: Any, label: str) -> Source:
    """A model reference, or a model in memory.

        path, org/name, org/name@revision
        MODEL+LORA                           each as above; a path that exists is taken whole
        {model: {path, revision}, lora: {path, revision}, override_architecture: class}
    label: for a model in memory, which has no name of its own.
    Raises RecipeError for references that cannot be read.
    """
    if isinstance(value, Path):
        return Source(str(value), str(value))
    if isinstance(value, str):
        return _parse_text(value, label)
    if is_reference(value):
        return _parse_mapping(value, label)
    if _is_plain(value):
        raise RecipeError(f"{label} is {shown(value)}; want a path, a hub id or a model's tensors")
    return Source(value, label)


def is_reference(value: Any) -> bool:
    """True for a mapping that names a model, and is not one of tensors with odd names."""
    return (
        isinstance(value, dict)
        and ("model" in value or "path" in value)
        and not any(is_tensor(each) for each in value.values())
    )


def _is_plain(value: Any) -> bool:
    """True for what YAML and JSON have besides texts, of which no model is made."""
    if isinstance(value, Mapping):
        return all(isinstance(each, str) or _is_plain(each) for each in value.values())
    kinds = (bool, int, float, bytes, date, list, tuple, set)
    return value is None or isinstance(value, kinds)


def _parse_text(text: str, label: str) -> Source:
    model, lora = _halves(text, label)
    source = _parse_one(model, label)
    return source if lora is None else _adapted(source, _parse_one(lora, label))


def _halves(text: str, label: str) -> tuple[str, str | None]:
    """The model's reference and the adapter's. A path that exists may hold any character."""
    places = [place for place, letter in enumerate(text) if letter == "+"]
    if not places or _exists(text):
        return text, None
    splits = [(text[:place], text[place + 1 :]) for place in places]
    if len(splits) > 1:
        splits = [split for split in splits if any(map(_exists, split))]
    if len(splits) != 1:
        raise RecipeError(
            f"{label} is {text!r}; want MODEL+LORA with one +, or for paths that hold a + "
            "{model: ..., lora: ...}"
        )
    return splits[0]


def _parse_one(text: str, label: str) -> Source:
    if not text.strip():
        raise RecipeError(f"{label} is empty; want a path or a hub id")
    if _exists(text):
        return Source(text, text)
    path, at, revision = text.partition("@")
    if at and (not path or not revision or "@" in revision):
        raise RecipeError(f"{label} is {text!r}; want hub/id@revision")
    return Source(path, text, revision or None)


def _exists(text: str) -> bool:
    return os.path.exists(os.path.expanduser(text))


def _parse_mapping(reference: Mapping[str, Any], label: str) -> Source:
    inner = reference.get("model")
    if inner is None:
        return _parse_path(reference, label)
    source = parse_source(inner, label)
    if reference.get("revision") is not None:
        source = _parse_path({"path": inner, "revision": reference["revision"]}, label)
    if reference.get("lora") is not None:
        if source.lora is not None:
            raise RecipeError(f"{label} is {dict(reference)!r}; want one LoRA")
        source = _adapted(source, parse_source(reference["lora"], f"{label}.lora"))
    architecture = reference.get("override_architecture")
    if architecture is None:
        return source
    if not isinstance(architecture, str):
        raise RecipeError(f"{label}.override_architecture is {architecture!r}; want a class's name")
    return replace(source, architecture=architecture)


def _parse_path(reference: Mapping[str, Any], label: str) -> Source:
    path, revision = reference.get("path"), reference.get("revision")
    if not isinstance(path, str):
        raise RecipeError(f"{label} is {dict(reference)!r}; want {{path: ..., revision: ...}}")
    if revision is None:
        return _parse_one(path, label)
    return Source(path, f"{path}@{revision}", str(revision))


def _adapted(model: Source, lora: Source) -> Source:
    if lora.lora is not None:
        raise RecipeError(f"{model.label}: its LoRA {lora.label} has a LoRA itself; want one")
    return replace(model, label=f"{model.label}+{lora.label}", lora=lora)
