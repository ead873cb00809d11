"""Where a model comes from: the references of recipes, and models already in memory."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mergekern.errors import RecipeError

REFERENCE_KEYS = frozenset({"model", "path", "revision", "lora", "override_architecture"})


@dataclass(frozen=True, eq=False)
class Source:
    """One model as the user gave it.

    where:    a path or hub id, or the model's tensors when in memory
    label:    how messages, plan and card name it
    revision: of a hub id
    lora:     an adapter that is added to it
    architecture: the class that its config.json shall name, in place of its own
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


def parse_source(value: Any, label: str) -> Source:
    """A model reference: `path`, `hub/id`, `hub/id@revision`, `{model: {path, revision}}`, tensors.

    label: for a model in memory, which has no name of its own.
    Raises RecipeError for references that cannot be read.
    """
    if isinstance(value, Path):
        return Source(str(value), str(value))
    if isinstance(value, str):
        return _parse_text(value, label)
    if isinstance(value, Mapping) and value and set(value) <= REFERENCE_KEYS and _plain(value):
        return _parse_mapping(value, label)
    if value is None or isinstance(value, (bool, int, float, list, tuple)):
        raise RecipeError(f"{label} is {value!r}; want a path, a hub id or a model's tensors")
    return Source(value, label)


def _plain(mapping: Mapping[str, Any]) -> bool:
    """False for a model in memory that happens to name its tensors as references name keys."""
    return not any(isinstance(value, torch.Tensor) for value in mapping.values())


def _parse_text(text: str, label: str) -> Source:
    if not text.strip():
        raise RecipeError(f"{label} is empty; want a path or a hub id")
    if os.path.exists(text):
        return Source(text, text)
    if "+" in text:
        raise RecipeError(f"{label} is {text!r}: LoRA inputs are not read yet")
    path, at, revision = text.partition("@")
    if at and (not path or not revision or "@" in revision):
        raise RecipeError(f"{label} is {text!r}; want hub/id@revision")
    return Source(path, text, revision or None)


def _parse_mapping(reference: Mapping[str, Any], label: str) -> Source:
    if reference.get("lora") is not None:
        raise RecipeError(f"{label}: LoRA inputs are not read yet")
    if reference.get("override_architecture") is not None:
        raise RecipeError(f"{label}: override_architecture is not read yet")
    inner = reference.get("model")
    if isinstance(inner, Mapping):
        return _parse_mapping(inner, label)
    path, revision = inner or reference.get("path"), reference.get("revision")
    if not isinstance(path, str):
        raise RecipeError(f"{label} is {dict(reference)!r}; want {{path: ..., revision: ...}}")
    if revision is None:
        return _parse_text(path, label)
    return Source(path, f"{path}@{revision}", str(revision))
