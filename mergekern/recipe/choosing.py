"""From settings to specs: the values of one part's parameters for one tensor."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from mergekern.errors import RecipeError
from mergekern.methods import Method, Parameter
from mergekern.recipe.setting import Setting
from mergekern.spec import Spec


@dataclass(frozen=True)
class Chooser:
    """The settings of one part, all levels joined.

    labels:   of the part's experts
    settings: by the parameter's name; for per-model ones, one for each of the part's experts
    specs:    of all parts, so that equal ones are one object
    """

    method: Method
    labels: tuple[str, ...]
    settings: Mapping[str, Setting | tuple[Setting, ...]]
    specs: dict[Spec, Spec]
    _made: dict[Hashable, Spec] = field(default_factory=dict)

    @property
    def constant(self) -> bool:
        """True when neither names nor layers decide anything."""
        return not self._varying

    def _settled(self, parameter: Parameter) -> bool:
        found = self.settings[parameter.name]
        each = found if isinstance(found, tuple) else (found,)
        return all(setting.constant or not setting.cases for setting in each)

    @cached_property
    def _varying(self) -> tuple[Parameter, ...]:
        """The parameters that names or layers decide; the others need not be asked again."""
        return tuple(p for p in self.method.parameters if not self._settled(p))

    def spec(self, tensor: str, names: Sequence[str], experts: tuple[int, ...], t: float) -> Spec:
        """See Recipe.spec."""
        key = (experts, *(self._values(p, tensor, names, experts, t) for p in self._varying))
        if key not in self._made:
            self._made[key] = self._spec(tensor, names, experts, t)
        return self._made[key]

    def _spec(self, tensor: str, names: Sequence[str], experts: tuple[int, ...], t: float) -> Spec:
        values = {
            p.name: self._values(p, tensor, names, experts, t) for p in self.method.parameters
        }
        try:
            spec = self.method.spec(values)
        except RecipeError as error:
            raise RecipeError(f"{tensor}: {error}" if tensor else str(error)) from error
        return self.specs.setdefault(spec, spec)

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
