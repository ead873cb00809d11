"""From settings to specs: the values of one part's parameters for one tensor."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from mergekern.errors import RecipeError
from mergekern.methods import Method, Parameter
from mergekern.recipe.setting import Setting
from mergekern.spec import Spec

Values = tuple[Any, ...]  # in the order of the method's parameters; per-model ones are tuples


@dataclass(frozen=True)
class Chooser:
    """The settings of one part, all levels joined.

    labels:   of the part's experts
    settings: by the parameter's name; for per-model ones, one for each of the part's experts
    specs:    by their values, shared by all parts, so that equal values are one object
    """

    method: Method
    labels: tuple[str, ...]
    settings: Mapping[str, Setting | tuple[Setting, ...]]
    specs: dict[Any, Spec]
    _by_experts: dict[Hashable, Spec] = field(default_factory=dict)

    @cached_property
    def constant(self) -> bool:
        """True when neither names nor layers decide anything."""
        return all(setting.constant or not setting.cases for setting in self._each())

    def _each(self) -> Iterator[Setting]:
        for each in self.settings.values():
            yield from each if isinstance(each, tuple) else (each,)

    def spec(self, tensor: str, names: Sequence[str], experts: tuple[int, ...], t: float) -> Spec:
        """See Recipe.spec."""
        if not self.constant:
            return self._shared(tensor, names, experts, t)
        if experts not in self._by_experts:
            self._by_experts[experts] = self._shared(tensor, names, experts, t)
        return self._by_experts[experts]

    def _shared(
        self, tensor: str, names: Sequence[str], experts: tuple[int, ...], t: float
    ) -> Spec:
        values = tuple(
            self._values(parameter, tensor, names, experts, t)
            for parameter in self.method.parameters
        )
        if values not in self.specs:
            by_name = {p.name: v for p, v in zip(self.method.parameters, values, strict=True)}
            try:
                spec = self.method.spec(by_name)
            except RecipeError as error:
                raise RecipeError(f"{tensor}: {error}" if tensor else str(error)) from error
            self.specs[values] = self.specs.setdefault(spec, spec)
        return self.specs[values]

    def _values(
        self,
        parameter: Parameter,
        tensor: str,
        names: Sequence[str],
        experts: tuple[int, ...],
        t: float,
    ) -> Any:
        setting = self.settings[parameter.name]
        if not isinstance(setting, tuple):
            value = setting.at(tensor, t)
            if value is None:
                self._check_optional(parameter, tensor, "")
            return value
        found = []
        for name, expert in zip(names, experts, strict=True):
            value = setting[expert].at(name, t)
            if value is None:
                self._check_optional(parameter, name, self.labels[expert])
            found.append(value)
        return tuple(found)

    def _check_optional(self, parameter: Parameter, tensor: str, label: str) -> None:
        """No level has a value: the method chooses, unless the parameter is required."""
        if not parameter.required:
            return
        of = f" of model {label}" if label else ""
        place = (
            "under the model's parameters, or under the top-level ones for all models"
            if label
            else "under the top-level parameters"
        )
        raise RecipeError(
            f"{self.method.name} needs {parameter.name}{of}"
            + (f" for tensor {tensor}, and no value holds for it" if tensor else "")
            + f": write it {place} (in a list with filters, an entry without one is for the rest)"
        )
