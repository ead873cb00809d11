"""YAML as recipes have it: plain data, and the line of everything in it."""

from __future__ import annotations

import os
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
    """The line of a key or item, counted from 1, and what stands there."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
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


def documents(text: str, name: str) -> list[tuple[Any, Origin]]:
    """The documents of a YAML text that are not empty, as plain data, with their origin.

    Raises RecipeError for what is not YAML.
    """
    loader = _Loader(text)  # a safe one
    found = []
    try:
        while loader.check_node():
            node = loader.get_node()
            content = loader.construct_document(node)
            if content is not None:
                found.append((content, Origin(name, node)))
    except (yaml.YAMLError, RecursionError) as error:
        raise RecipeError(f"{name}: not valid YAML: {' '.join(str(error).split())}") from error
    finally:
        loader.dispose()
    return found
