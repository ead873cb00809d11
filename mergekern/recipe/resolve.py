"""From what was asked for to what will be done: inputs told apart, every parameter given a value.

A parameter's value is the first found among: the call's or command line's arguments, the model's
parameters (weight, density, gamma only), the recipe's top-level parameters, the preset, the
method's default.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mergekern.dtypes import dtype_name, parse_dtype
from mergekern.errors import RecipeError
from mergekern.methods import Method, Parameter, get_method
from mergekern.recipe.schema import ModelEntry, RecipeFile
from mergekern.recipe.source import Source
from mergekern.spec import Spec


@dataclass(frozen=True)
class Recipe:
    """A recipe with nothing left open.

    experts:    the models that are merged, in order
    base:       the model that gives config, names and shapes, and deltas where the method takes
                them; for methods without a base it is one of the experts, or None
    parameters: by name; per-model ones are tuples, one value per expert
    notes:      what was accepted and has no effect
    """

    method: Method
    experts: tuple[Source, ...]
    base: Source | None
    parameters: Mapping[str, Any]
    dtype: torch.dtype | None = None
    out_dtype: torch.dtype | None = None
    notes: tuple[str, ...] = ()

    @property
    def sources(self) -> tuple[Source, ...]:
        """Every model that is read: the base, unless it is one of the experts, and the experts."""
        if self.base is None or any(expert is self.base for expert in self.experts):
            return self.experts
        return (self.base, *self.experts)

    @property
    def seed(self) -> int:
        return int(self.parameters.get("seed", 0))

    def spec(self, tensor: str, experts: Sequence[int]) -> Spec:
        """The spec of one output tensor, in which these experts take part."""
        try:
            return self.method.spec(self.parameters, experts)
        except RecipeError as error:
            raise RecipeError(f"{tensor}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """The recipe in the format of recipe files, every parameter written out."""
        per_model = [p.name for p in self.method.parameters if p.per_model]
        content: dict[str, Any] = {
            "merge_method": self.method.name,
            "models": [
                {
                    "model": source.label,
                    "parameters": {name: self.parameters[name][place] for name in per_model},
                }
                for place, source in enumerate(self.experts)
            ],
        }
        if self.base is not None:
            content["base_model"] = self.base.label
        shared = {k: v for k, v in self.parameters.items() if k not in per_model}
        if shared:
            content["parameters"] = shared
        for key, dtype in (("dtype", self.dtype), ("out_dtype", self.out_dtype)):
            if dtype is not None:
                content[key] = dtype_name(dtype)
        return content


def resolve(
    file: RecipeFile, arguments: Mapping[str, Any] | None = None, seed: int | None = None
) -> Recipe:
    """The file's recipe under a call's arguments: numbers, or lists of one number per expert.

    Raises RecipeError for methods, parameters and models that cannot be what was meant.
    """
    method = get_method(file.merge_method)
    given = _named(method, arguments or {}, "")
    top = _named(method, file.parameters, "parameters: ")
    notes = []
    if seed is not None:
        if any(parameter.name == "seed" for parameter in method.parameters):
            given.setdefault("seed", seed)
        elif not isinstance(seed, int) or seed < 0:
            raise RecipeError(f"seed is {seed!r}; want a whole number")
        elif seed:
            notes.append(f"seed has no effect: {method.name} draws no random numbers")
    entries, base = _inputs(method, file, top | given, notes)
    each = [_of_model(method, entry) for entry in entries]
    preset = {} if file.preset is None else method.preset(file.preset)
    for name, why in method.inert.items():
        if any(level.get(name) for level in (given, top, *each)):
            notes.append(f"{name} has no effect: {why}")
    levels = _Levels(given, each, top, preset, tuple(entry.model.label for entry in entries))
    return Recipe(
        method,
        tuple(entry.model for entry in entries),
        base,
        _settle(method, levels),
        None if file.dtype is None else parse_dtype(file.dtype),
        None if file.out_dtype is None else parse_dtype(file.out_dtype),
        tuple(notes),
    )


def _named(method: Method, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Values under the parameters' own names; None counts as not given."""
    named: dict[str, Any] = {}
    for key, value in values.items():
        name = method.parameter(key).name
        if value is None:
            continue
        if name in named:
            raise RecipeError(f"{where}{name} is given twice, as {name} and {name}_")
        named[name] = value.tolist() if hasattr(value, "tolist") else value  # arrays, tensors
    return named


def _of_model(method: Method, entry: ModelEntry) -> dict[str, Any]:
    label = entry.model.label
    for key in entry.parameters:
        if not method.parameter(key).per_model:
            raise RecipeError(
                f"model {label}: {key} is one for the whole merge; "
                f"put `{key}` under the top-level parameters"
            )
    return _named(method, entry.parameters, f"model {label}: ")


def _inputs(
    method: Method, file: RecipeFile, shared: Mapping[str, Any], notes: list[str]
) -> tuple[list[ModelEntry], Source | None]:
    """The entries to merge and the base; a base among the models is told apart."""
    entries = list(file.models)
    seen: dict[Any, Source] = {}
    for entry in entries:
        if entry.model.key in seen:
            raise RecipeError(
                f"model {entry.model.label} is listed twice; list it once, with the sum of weights"
            )
        seen[entry.model.key] = entry.model
    base = file.base_model
    if base is not None and not method.takes_deltas(True):
        entries, base = _with_base(method, entries, base, shared)
    elif base is not None:
        if any(entry.parameters for entry in entries if entry.model.key == base.key):
            notes.append(f"parameters of {base.label} have no effect: it is the base")
        entries = [entry for entry in entries if entry.model.key != base.key]
        if not entries:
            raise RecipeError(f"no models to merge besides the base {base.label}")
    labels = [entry.model.label for entry in entries]
    method.check_models(labels, None if base is None else base.label)
    return entries, base


def _with_base(
    method: Method, entries: list[ModelEntry], base: Source, shared: Mapping[str, Any]
) -> tuple[list[ModelEntry], Source]:
    """A base from which no deltas are taken: one input more, if a weight reaches it."""
    own = next((entry for entry in entries if entry.model.key == base.key), None)
    weighted = any(parameter.name == "weight" for parameter in method.parameters)
    given = "weight" in shared and not isinstance(shared["weight"], (list, tuple))
    if own is None and weighted and not given:
        raise RecipeError(
            f"{method.name} treats base_model {base.label} as one more input, and it has no "
            f"weight: list it under models with a weight (0 to leave it out of the average), "
            "or drop base_model"
        )
    others = [entry for entry in entries if entry is not own]
    if method.base_role == "first":
        entries = [own or ModelEntry(model=base), *others]
        return entries, entries[0].model
    return (entries, own.model) if own else ([*entries, ModelEntry(model=base)], base)


@dataclass(frozen=True)
class _Levels:
    """Where values are looked for; `each` is one mapping per expert, in order."""

    given: Mapping[str, Any]
    each: Sequence[Mapping[str, Any]]
    top: Mapping[str, Any]
    preset: Mapping[str, Any]
    labels: tuple[str, ...]

    def shared(self, parameter: Parameter) -> Any:
        for level in (self.given, self.top, self.preset):
            if parameter.name in level:
                return parameter.parse(level[parameter.name])
        if parameter.required:
            raise RecipeError(
                f"{parameter.name} is not given, and has no default: want {parameter.wanted}"
            )
        return parameter.default

    def per_model(self, parameter: Parameter) -> tuple[Any, ...]:
        name, count = parameter.name, len(self.labels)
        given = self.given.get(name)
        if isinstance(given, (list, tuple)) and len(given) != count:
            raise RecipeError(
                f"{name} has {len(given)} values for {count} models ({', '.join(self.labels)})"
            )
        values = []
        for place, label in enumerate(self.labels):
            levels = (self.each[place], self.top, self.preset, {name: parameter.default})
            value = next(level[name] for level in levels if name in level)
            if given is not None:
                value = given[place] if isinstance(given, (list, tuple)) else given
            values.append(parameter.parse(value, f"model {label}: "))
        return tuple(values)


def _settle(method: Method, levels: _Levels) -> dict[str, Any]:
    values = {
        parameter.name: levels.per_model(parameter)
        if parameter.per_model
        else levels.shared(parameter)
        for parameter in method.parameters
    }
    # A None is left to the method; its spec says what it chose.
    spec = method.spec(values, range(len(levels.labels)))
    for parameter in method.parameters:
        if values[parameter.name] is None:
            values[parameter.name] = getattr(spec, parameter.keyword)
    return values
