"""Parameters as written at one place of a recipe, or given by a call, as settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from mergekern.errors import RecipeError
from mergekern.methods import Method, Parameter, all_methods
from mergekern.recipe.keys import Notes, check_keys, refuse_misspelt
from mergekern.recipe.recipe import Level
from mergekern.recipe.setting import Setting, parse_setting, plain
from mergekern.recipe.source import Source
from mergekern.recipe.text import Origin, Path, absent

CONDITIONAL = ("filter", "value")


class Place(Protocol):
    """Where parameters are written; `path` leads to it."""

    path: Path
    parameters: dict[str, Any]


class LevelReader:
    """Reads one recipe's levels for its method, and notes what has no effect."""

    def __init__(self, method: Method, origin: Origin) -> None:
        self.method = method
        self.origin = origin
        self.notes = Notes(origin)

    def read(self, place: Place, where: str, per_model: bool = False) -> Level:
        """The settings at one place.

        per_model: it is a source, where parameters of the whole merge have no effect
        Raises RecipeError naming line, place and parameter for values that it does not take.
        """
        found: dict[str, Setting] = {}
        for key, value in place.parameters.items():
            path = (*place.path, "parameters", key)
            if absent(value):
                continue
            parameter = self._parameter(key, place)
            if parameter is None:
                continue
            if per_model and not parameter.per_model:
                why = "it is one for the whole merge, and belongs under the top-level parameters"
                self.notes.add(path, why)
                continue
            if parameter.name in self.method.inert and value:
                self.notes.add(path, self.method.inert[parameter.name])
            begin = f"{self.origin.at(*path)}{where}"
            if parameter.name in found:
                name = parameter.name
                raise RecipeError(f"{begin}{name} is given twice, as {name} and {name}_")
            self._check_conditionals(path, value)
            found[parameter.name] = parse_setting(parameter, value, begin)
        return found

    def plain(self, values: Mapping[str, Any]) -> Level:
        """A preset's values."""
        return {
            name: parse_setting(self.method.parameter(name), v, "") for name, v in values.items()
        }

    def _parameter(self, key: str, place: Place) -> Parameter | None:
        """The method's parameter of that name; None for one that it has not, which is noted."""
        for parameter in self.method.parameters:
            if key in (parameter.name, parameter.keyword):
                return parameter
        path: Path = (*place.path, "parameters")
        own = [parameter.name for parameter in self.method.parameters]
        if not any(key == p.name for method in all_methods() for p in method.parameters):
            refuse_misspelt(key, own, place.parameters, path, self.origin)
        self.notes.add((*path, key), f"{self.method.name} takes {', '.join(own) or 'none'}")
        return None

    def _check_conditionals(self, path: Path, value: Any) -> None:
        if isinstance(value, Mapping):
            check_keys(value, CONDITIONAL, path, self.notes)
        for place, entry in enumerate(value if isinstance(value, list) else ()):
            if isinstance(entry, Mapping):
                check_keys(entry, CONDITIONAL, (*path, place), self.notes)


def named(method: Method, values: Mapping[str, Any]) -> dict[str, Any]:
    """A call's arguments under the parameters' own names; None counts as not given.

    Raises RecipeError for a name that the method does not have.
    """
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = method.parameter(key).name
        if value is None:
            continue
        if name in found:
            raise RecipeError(f"{name} is given twice, as {name} and {name}_")
        found[name] = plain(value)
    return found


def given_settings(
    method: Method, values: Mapping[str, Any], experts: Sequence[Source]
) -> dict[str, Setting | tuple[Setting, ...]]:
    """A call's arguments as settings: a list for a per-model parameter is one for each expert."""
    found: dict[str, Setting | tuple[Setting, ...]] = {}
    for name, value in values.items():
        parameter = method.parameter(name)
        each = isinstance(value, (list, tuple)) and not any(isinstance(v, Mapping) for v in value)
        if not parameter.per_model or not each:
            found[name] = parse_setting(parameter, value, "")
            continue
        if len(value) != len(experts):
            labels = ", ".join(expert.label for expert in experts)
            raise RecipeError(
                f"{name} has {len(value)} values for {len(experts)} models ({labels})"
            )
        found[name] = tuple(
            parse_setting(parameter, one, f"model {expert.label}: ")
            for one, expert in zip(value, experts, strict=True)
        )
    return found
