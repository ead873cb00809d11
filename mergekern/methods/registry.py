"""The table of methods, and how a function becomes one of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mergekern.errors import RecipeError
from mergekern.methods.parameters import Parameter, nearest, parameters_of
from mergekern.spec import Spec, Statistics

BaseRole = Literal["required", "optional", "input", "first"]
_NAME_IT = "(base_model in a recipe, base= in Python, --base on the command line)"


@dataclass(frozen=True)
class Preset:
    """A named bundle of parameters: a paper's or another tool's variant of a method."""

    parameters: Mapping[str, Any]
    doc: str


@dataclass(frozen=True)
class Method:
    """A merge method: a function from resolved parameters to a `Spec`.

    base_role: what a base model is to it
        required  deltas are taken from it
        optional  deltas are taken from it, where one is named
        input     one more model to merge, where one is named
        first     the first of the models to merge, and one has to be named
    models:  how many it merges at the least and at the most, a base from which deltas are taken
             not among them
    container: what it writes is a container with a model for each of those merged, which
             materialise() takes out
    statistics: made from data elsewhere, that it needs of every model: their kind, "" for none
    lone:    a slice with one model alone is that model's, as it is
    inert:   parameters accepted for compatibility, without effect: name -> why
    presets: bundles of parameters by name
    """

    name: str
    function: Callable[..., Spec]
    title: str
    paper: str
    doc: str
    base_role: BaseRole
    models: tuple[int, int | None]
    lone: bool
    parameters: tuple[Parameter, ...]
    inert: Mapping[str, str]
    presets: Mapping[str, Preset]
    statistics: Statistics = ""
    container: bool = False

    def takes_deltas(self, has_base: bool) -> bool:
        """True when it merges deltas from a base, and not weights."""
        return self.base_role == "required" or (self.base_role == "optional" and has_base)

    @property
    def base_text(self) -> str:
        """What a base model is to it, in words, and what it needs besides."""
        besides = f", needs files of `mergekern collect {self.statistics}`"
        return _ROLES[self.base_role] + (besides if self.statistics else "")

    def check_models(self, labels: Sequence[str], base: str | None, in_slice: bool = False) -> None:
        """RecipeError unless it can merge these models.

        labels: of the models to merge;  base: the label of the base, None where none is named
        """
        if self.lone and in_slice and len(labels) == 1:
            return
        if base is None and self.base_role in ("required", "first"):
            which = (
                "name the one the models were fine-tuned from"
                if self.base_role == "required"
                else "name the one to begin with"
            )
            raise RecipeError(f"{self.name} needs a base model: {which} {_NAME_IT}")
        besides = self.takes_deltas(base is not None)
        if besides and not labels:
            if in_slice:  # the base's layers stay as they are
                return
            raise RecipeError(f"no models to merge besides the base {base}")
        least, most = self.models
        many = most is not None and len(labels) > most
        if not many and len(labels) >= least:
            return
        exactly = "exactly" if least == most else "at least"
        where = ", besides the base," if besides else ", the base among them," if base else ""
        found = ", ".join(labels) or "none"
        raise RecipeError(
            f"{self.name} merges {exactly} {_plural(least)}{where} and is given {len(labels)}: "
            f"{found}; {'leave some out' if many else 'name more'} under models"
        )

    def parameter(self, name: str) -> Parameter:
        """The parameter of that name, in either spelling; RecipeError with the nearest name."""
        for parameter in self.parameters:
            if name in (parameter.name, parameter.keyword):
                return parameter
        known = [parameter.name for parameter in self.parameters]
        hint = nearest(name, known) or _elsewhere(name)
        raise RecipeError(
            f"{self.name} has no parameter {name!r}{hint} ({self.name} takes {', '.join(known)})"
        )

    def preset(self, name: str) -> Mapping[str, Any]:
        """The preset's parameters; RecipeError saying which methods have which presets."""
        if name in self.presets:
            return self.presets[name].parameters
        hint = nearest(name, self.presets)
        raise RecipeError(f"{self.name} has no preset {name!r}{hint} (presets: {_presets()})")

    def spec(self, parameters: Mapping[str, Any]) -> Spec:
        """The spec of one tensor; per-model parameters hold a value for each expert in it."""
        return self.function(**{p.keyword: parameters[p.name] for p in self.parameters})


_ROLES: Mapping[BaseRole, str] = {
    "required": "needs a base model",
    "optional": "with or without a base model",
    "input": "without a base model",
    "first": "needs a base model, which is the first of the models it merges",
}
_METHODS: dict[str, Method] = {}


def register(
    function: Callable[..., Spec],
    name: str,
    *,
    base_role: BaseRole,
    title: str,
    paper: str,
    doc: str,
    parameters: tuple[Parameter, ...],
    models: tuple[int, int | None] = (1, None),
    lone: bool = False,
    inert: Mapping[str, str] | None = None,
    presets: Mapping[str, Preset] | None = None,
    statistics: Statistics = "",
    container: bool = False,
    again: bool = False,
) -> None:
    """Add a method to the table; again: in the place of the one of that name, if there is one."""
    assert again or name not in _METHODS, f"two methods are named {name}"
    _METHODS[name] = Method(
        name=name,
        function=function,
        title=title,
        paper=paper,
        doc=doc,
        base_role=base_role,
        models=models,
        lone=lone,
        parameters=parameters,
        inert=inert or {},
        presets=presets or {},
        statistics=statistics,
        container=container,
    )


def method(
    name: str,
    *,
    base_role: BaseRole,
    title: str,
    paper: str,
    models: tuple[int, int | None] = (1, None),
    lone: bool = False,
    inert: Mapping[str, str] | None = None,
    presets: Mapping[str, Preset] | None = None,
    statistics: Statistics = "",
    container: bool = False,
) -> Callable[[Callable[..., Spec]], Callable[..., Spec]]:
    """Make a function a method: its signature is the configuration, its docstring the manual."""

    def add(function: Callable[..., Spec]) -> Callable[..., Spec]:
        register(
            function,
            name,
            base_role=base_role,
            models=models,
            lone=lone,
            title=title,
            paper=paper,
            doc=inspect.getdoc(function) or "",
            parameters=parameters_of(function),
            inert=inert,
            presets=presets,
            statistics=statistics,
            container=container,
        )
        return function

    return add


def all_methods() -> tuple[Method, ...]:
    """Every method, in the order of the documentation."""
    return tuple(_METHODS.values())


def get_method(name: str) -> Method:
    """The method of that name; RecipeError with the nearest name."""
    if name in _METHODS:
        return _METHODS[name]
    hint = nearest(name, _METHODS)
    raise RecipeError(f"unknown method {name!r}{hint} (methods: {', '.join(_METHODS)})")


def method_of(preset: str) -> Method:
    """The one method that has a preset of that name; RecipeError where none has, or several."""
    having = [method for method in all_methods() if preset in method.presets]
    if len(having) == 1:
        return having[0]
    if having:
        names = ", ".join(method.name for method in having)
        raise RecipeError(f"{names} have a preset {preset!r}: name the method too")
    hint = nearest(preset, (name for method in all_methods() for name in method.presets))
    raise RecipeError(f"no method has a preset {preset!r}{hint} (presets: {_presets()})")


def _presets() -> str:
    return "; ".join(
        f"{method.name}: {', '.join(method.presets)}" for method in all_methods() if method.presets
    )


def _plural(count: int) -> str:
    words = {1: "one model", 2: "two models"}
    return words.get(count, f"{count} models")


def _elsewhere(name: str) -> str:
    owners: Iterable[str] = (
        method.name
        for method in all_methods()
        if any(name in (parameter.name, parameter.keyword) for parameter in method.parameters)
    )
    found = ", ".join(owners)
    return f"; {found} have it" if "," in found else f"; {found} has it" if found else ""
