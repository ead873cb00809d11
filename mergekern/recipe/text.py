"""YAML as recipes have it: plain data, and the line of everything in it."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from mergekern.errors import RecipeError

Path = tuple[str | int, ...]  # keys and places that lead to a value: ("models", 0, "model")


@dataclass(frozen=True)
class Origin:
    """Where a recipe comes from, as messages say it: a name, and the lines of what was a text.

    name: the file's path, or "recipe"
    root: of the YAML text; None for a mapping, which has no lines
    """

    name: str = "recipe"
    root: yaml.Node | None = None

    def at(self, *path: str | int) -> str:
        """`recipe.yml:12: ` for the key or item that the path leads to, `recipe: ` without text."""
        line = self._line(path)
        return f"{self.name}: " if line is None else f"{self.name}:{line}: "

    def note(self, path: Path) -> str:
        """The same with the file's name alone: notes are published with the merge."""
        return os.path.basename(self.at(*path)[:-2]) + ": "

    def _line(self, path: Path) -> int | None:
        node, line = self.root, None
        for step in path:
            found = _child(node, step)
            if found is None:
                break
            line, node = found
        return line


def _child(node: yaml.Node | None, step: str | int) -> tuple[int, yaml.Node] | None:
    """The line of a key or item, counted from 1, and what stands there; of a key that is written
    over one merged in (`<<`), which comes before it, its own."""
    if isinstance(node, yaml.MappingNode):
        for key, value in reversed(node.value):
            if isinstance(key, yaml.ScalarNode) and key.value == str(step):
                return key.start_mark.line + 1, value
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        item = node.value[step]
        return item.start_mark.line + 1, item
    return None


def spell(path: Path) -> str:
    """`models[0].parameters.weight`"""
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return "".join(steps).removeprefix(".")


def absent(value: Any) -> bool:
    """True for a value that says nothing: null, and a list of nothing."""
    return value is None or (isinstance(value, (list, tuple)) and not value)


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80


def shown(value: Any) -> str:
    """What was found, as messages show it: cut short, for it may be a model's tensors."""
    return _SHORT.repr(value)


class _Loader(yaml.SafeLoader):
    """Refuses a key given twice, of which the last would win in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                problem = f"the key {key.value!r} is given twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
        return super().construct_mapping(node, deep=deep)


# What PyYAML raises; the last ones for scalars of a kind that they cannot be, like the 40th of May.
_FAULTS = (yaml.YAMLError, RecursionError, ValueError, LookupError, AttributeError)


def documents(text: str, name: str) -> list[tuple[Any, Origin]]:
    """The documents of a YAML text that are not empty, as plain data, with their origin.

    Raises RecipeError for what is not YAML, and for what holds itself.
    """
    try:
        return list(_documents(text, name))
    except _FAULTS as error:
        raise RecipeError(f"{name}: not valid YAML: {' '.join(str(error).split())}") from error


def _documents(text: str, name: str) -> Iterator[tuple[Any, Origin]]:
    loader = _Loader(text)  # a safe one
    try:
        while loader.check_node():
            node = loader.get_node()
            # From the inside out: `<<` changes the nodes it merges, which are read before, and a
            # node inside of itself is found.
            loader.deep_construct = True
            content = loader.construct_document(node)
            if content is not None:
                yield content, Origin(name, node)
    finally:
        loader.dispose()
