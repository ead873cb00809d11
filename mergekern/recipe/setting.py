"""Settings: values of one parameter that may go by the layer (gradients) and the name (filters)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mergekern.errors import RecipeError
from mergekern.methods import Parameter
from mergekern.recipe.text import absent


@dataclass(frozen=True)
class Case:
    """A value for the names that hold `filter` (any name holds ""): one, or a gradient's points.

    blends: points are numbers, with numbers between them
    """

    values: tuple[Any, ...]
    filter: str = ""
    blends: bool = True

    def at(self, t: float) -> Any:
        """The value at t in [0, 1], of n points v: with s = t (n - 1), i = floor(s), f = s - i

        (1 - f) v[i] + f v[i + 1]        for numbers
        v[i]                             for the rest
        """
        last = len(self.values) - 1
        if not last:
            return self.values[0]
        place = math.floor(t * last)
        if not self.blends:
            return self.values[place]
        fraction = t * last - place
        following = self.values[min(place + 1, last)]
        return (1 - fraction) * self.values[place] + fraction * following

    @property
    def written(self) -> Any:
        return self.values[0] if len(self.values) == 1 else list(self.values)


@dataclass(frozen=True)
class Setting:
    """What one level of a recipe, or several of them, say of one parameter; the first case wins."""

    cases: tuple[Case, ...]

    def at(self, name: str, t: float) -> Any:
        """The value for a tensor's name and its place t in [0, 1]; None where no case holds."""
        for case in self.cases:
            if case.filter in name:
                return case.at(t)
        return None

    @cached_property
    def total(self) -> bool:
        """True when it has a value for every name."""
        return any(not case.filter for case in self.cases)

    @cached_property
    def constant(self) -> bool:
        """True when it has the same value for every name and place."""
        return self.cases[:1] != () and not self.cases[0].filter and len(self.cases[0].values) == 1

    def or_else(self, other: Setting) -> Setting:
        """This one, and the other where it has no value: precedence of levels."""
        if self.total:
            return self
        merged = (*self.cases, *other.cases)
        first = next((n for n, case in enumerate(merged) if not case.filter), len(merged))
        return Setting(merged[: first + 1])

    @property
    def written(self) -> Any:
        """Plain data, as a recipe file writes it."""
        if not self.cases:
            return None
        if len(self.cases) == 1 and not self.cases[0].filter:
            return self.cases[0].written
        return [
            {"filter": case.filter, "value": case.written}
            if case.filter
            else {"value": case.written}
            for case in self.cases
        ]


NOTHING = Setting(())  # what a level says of a parameter that it does not name


def constant(value: Any) -> Setting:
    """The setting that is this value everywhere."""
    return Setting((Case((value,)),))


def plain(value: Any) -> Any:
    """Numbers and lists of them, where an array or a tensor is given."""
    return value.tolist() if hasattr(value, "tolist") else value


def parse_setting(parameter: Parameter, written: Any, where: str) -> Setting:
    """A parameter's setting as recipes write it, every value in the parameter's own type.

        0.5                                      a value
        [0, 0.5, 1]                              a gradient over the layers
        {filter: mlp, value: ...}                a value or gradient for some names
        [{filter: mlp, value: ...}, {value: 1}]  the first whose filter is part of the name; a
                                                 missing filter and "*" are part of every name
    None and [] say nothing. Whole numbers have no gradient.
    where: what messages begin with.
    Raises RecipeError naming the parameter, what was found and what it takes.
    """
    written = plain(written)
    if absent(written):
        return NOTHING
    if isinstance(written, Mapping):
        written = [written]
    if isinstance(written, (list, tuple)) and isinstance(written[0], Mapping):
        cases = [_conditional(parameter, one, where) for one in written]
        return NOTHING.or_else(Setting(tuple(cases)))
    return Setting((_case(parameter, written, "", where),))


def _conditional(parameter: Parameter, written: Any, where: str) -> Case:
    name = parameter.name
    if not isinstance(written, Mapping):
        raise RecipeError(
            f"{where}{name}: {written!r} stands among entries with `value`; "
            "give it as {value: ...} too"
        )
    value = written.get("value")
    if absent(value):
        raise RecipeError(f"{where}{name}: {dict(written)!r} has no value; want {{filter, value}}")
    only = written.get("filter")
    if only is not None and not isinstance(only, str):
        raise RecipeError(f"{where}{name}: filter is {only!r}; want a part of tensors' names")
    return _case(parameter, value, "" if only in (None, "*") else only, where)


def _case(parameter: Parameter, written: Any, only: str, where: str) -> Case:
    points = written if isinstance(written, (list, tuple)) else [written]
    if len(points) > 1 and parameter.kind == "integer":
        points = [written]  # which no whole number is
    values = tuple(parameter.parse(point, where) for point in points)
    return Case(values, only, parameter.kind == "number")
