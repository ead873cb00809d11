"""Keys that a recipe has and this format does not: what is said of them.

mergekit ignores in silence every key and parameter that it does not know, so published recipes hold
some: leftovers of older versions, settings of another method. These stay runnable. The rule:

- a key of an older version, or a parameter of another method, has no effect and becomes a note;
- one that is close to a known key of its place, which is not given there itself, is a misspelling,
  whose value would be lost: an error with the line and the nearest key;
- any other one has no effect and becomes a note.

A call's arguments are strict: there every unknown name is an error.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mergekern.errors import RecipeError
from mergekern.recipe.text import Origin, Path, absent, spell

# Keys of published recipes that mergekit accepts and never uses.
LEGACY: Mapping[str, str] = {
    "embed_slerp": "vocabularies are aligned by `tokenizer`",
    "input_model_parameters": "a model's own are its `parameters`",
    "name": "names are for stages, in a recipe of several documents",
    "residual_weight": "mergekit parses and never uses it",
    "layer_range": "it belongs to the sources of `slices`",
}
SIMILAR = 0.8  # difflib's ratio from which two names are taken for one misspelt


@dataclass(frozen=True)
class Notes:
    """Collects what has no effect; the same thing said of many places is one note."""

    origin: Origin
    _places: dict[tuple[Any, str], list[Path]] = field(default_factory=dict)

    def add(self, path: Path, why: str) -> None:
        """Say that what the path leads to has no effect, and why."""
        self._places.setdefault((path[-1], why), []).append(path)

    def lines(self) -> tuple[str, ...]:
        found = []
        for (_, why), paths in self._places.items():
            first, others = paths[0], len(paths) - 1
            more = f" (and {others} more like it)" if others else ""
            place = self.origin.note(first) if self.origin.root else ""
            found.append(f"{place}{spell(first)} has no effect: {why}{more}")
        return tuple(found)


def check_keys(
    content: Mapping[Any, Any], known: Collection[str], path: Path, notes: Notes
) -> None:
    """Note what is unknown in a mapping; RecipeError for what looks misspelt."""
    for key, value in content.items():
        if key in known or absent(value):
            continue
        if key not in LEGACY:
            refuse_misspelt(str(key), known, content, path, notes.origin)
        notes.add((*path, key), LEGACY.get(key, "no key of that name is known here"))


def refuse_misspelt(
    name: str, known: Iterable[str], given: Mapping[Any, Any], path: Path, origin: Origin
) -> None:
    """Raise RecipeError when a name is close to a known one that is not given itself."""
    free = [key for key in known if given.get(key) is None]
    for close in difflib.get_close_matches(name.lower(), free, n=1, cutoff=SIMILAR):
        raise RecipeError(
            f"{origin.at(*path, name)}unknown key {spell((*path, name))!r}; "
            f"did you mean {close!r}? (keys: {', '.join(known)})"
        )
