"""The table of methods, and how a function becomes one of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mergekern.errors import RecipeError
from mergekern.methods.parameters import Parameter, nearest, parameters_of
from mergekern.spec import Spec


@dataclass(frozen=True)
class Preset:
    """A named bundle of parameters: a paper's or another tool's variant of a method."""

    parameters: Mapping[str, Any]
    doc: str


@dataclass(frozen=True)
class Method:
    """A merge method: a function from resolved parameters to a `Spec`.

    base:    True when it works on deltas from a base model
    inert:   parameters accepted for compatibility, without effect: name -> why
    presets: bundles of parameters by name
    """

    name: str
    function: Callable[..., Spec]
    title: str
    paper: str
    doc: str
    base: bool
    parameters: tuple[Parameter, ...]
    inert: Mapping[str, str]
    presets: Mapping[str, Preset]

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
        having = "; ".join(
            f"{method.name}: {', '.join(method.presets)}"
            for method in all_methods()
            if method.presets
        )
        hint = nearest(name, self.presets)
        raise RecipeError(f"{self.name} has no preset {name!r}{hint} (presets: {having})")

    def spec(self, parameters: Mapping[str, Any]) -> Spec:
        """The spec of one tensor; per-model parameters hold a value for each expert in it."""
        return self.function(**{p.keyword: parameters[p.name] for p in self.parameters})


_METHODS: dict[str, Method] = {}


def register(
    function: Callable[..., Spec],
    name: str,
    *,
    base: bool,
    title: str,
    paper: str,
    doc: str,
    parameters: tuple[Parameter, ...],
    inert: Mapping[str, str] | None = None,
    presets: Mapping[str, Preset] | None = None,
) -> None:
    """Add a method to the table."""
    assert name not in _METHODS, f"two methods are named {name}"
    _METHODS[name] = Method(
        name, function, title, paper, doc, base, parameters, inert or {}, presets or {}
    )


def method(
    name: str, *, base: bool, title: str, paper: str
) -> Callable[[Callable[..., Spec]], Callable[..., Spec]]:
    """Make a function a method: its signature is the configuration, its docstring the manual."""

    def add(function: Callable[..., Spec]) -> Callable[..., Spec]:
        register(
            function,
            name,
            base=base,
            title=title,
            paper=paper,
            doc=inspect.getdoc(function) or "",
            parameters=parameters_of(function),
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


def _elsewhere(name: str) -> str:
    owners: Iterable[str] = (
        method.name
        for method in all_methods()
        if any(name in (parameter.name, parameter.keyword) for parameter in method.parameters)
    )
    found = ", ".join(owners)
    return f"; {found} have it" if "," in found else f"; {found} has it" if found else ""
