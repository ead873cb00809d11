"""The recipe with nothing left open: parts, their models, and every parameter's setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from mergekern.dtypes import DType
from mergekern.methods import Method, Parameter
from mergekern.recipe.choosing import Chooser
from mergekern.recipe.setting import NOTHING, Setting, constant
from mergekern.recipe.source import Source
from mergekern.recipe.tokenizer import TokenizerSettings
from mergekern.spec import AS_IS, Spec

Level = Mapping[str, Setting]  # what one place of a recipe says, by the parameter's name


@dataclass(frozen=True)
class Entry:
    """One source of a part.

    layers:     [first, stop) of its own layers; None: all of them
    parameters: what is written at this source
    statistics: a file with what its method needs to know of the model
    task:       what a container calls the model
    """

    source: Source
    layers: tuple[int, int] | None = None
    parameters: Level = field(default_factory=dict)
    statistics: Source | None = None
    task: str | None = None


@dataclass(frozen=True)
class Part:
    """A run of output layers that are made from the same sources: mergekit's slice.

    module:  its name under `modules`; "" for the whole model
    entries: every source in the order written, the base where it is listed
    experts: those that are merged: without the base, where the method works on deltas; none in a
             slice of the base alone, whose layers are taken as they are
    base:    of this part: its own, else its module's, else the recipe's; in slices of methods
             without a base only where it is listed
    levels:  what is written at the slice, then at the module
    """

    entries: tuple[Entry, ...]
    experts: tuple[Entry, ...]
    base: Source | None
    module: str = ""
    levels: tuple[Level, ...] = ()


@dataclass(frozen=True)
class Recipe:
    """A recipe with nothing left open. Two entries for the same model share one Source.

    parts:    in the order of their output layers
    experts:  every model that is merged anywhere, in the order of first appearance
    base:     the model that gives config, names and shapes, and deltas where the method takes
              them; for methods without a base it may be one of the experts, or None
    given:    by the call, above everything: a setting, or one for each of `experts`
    settings: at the top of the recipe
    preset:   what lies below all settings
    statistics: of each of `experts`, where the method takes any
    tasks:    what a container calls each of `experts`, where the method makes one
    notes:    what was accepted and has no effect
    """

    method: Method
    parts: tuple[Part, ...]
    experts: tuple[Source, ...]
    base: Source | None
    given: Mapping[str, Setting | tuple[Setting, ...]] = field(default_factory=dict)
    settings: Level = field(default_factory=dict)
    preset: Level = field(default_factory=dict)
    dtype: DType | None = None
    out_dtype: DType | None = None
    tokenizer: TokenizerSettings | None = None
    chat_template: str | None = None
    notes: tuple[str, ...] = ()
    statistics: tuple[Source, ...] = ()
    tasks: tuple[str, ...] = ()

    @property
    def sources(self) -> tuple[Source, ...]:
        """All that is read, once: the models, then the statistics."""
        return (*self.models, *self.statistics)

    @cached_property
    def models(self) -> tuple[Source, ...]:
        """Every model that is read, once: the base, unless it is an expert, the experts, the rest.

        The rest are bases of single slices, and what the tokenizer names.
        """
        first = () if self.base is None or self._is_expert(self.base) else (self.base,)
        bases = (part.base for part in self.parts if part.base is not None)
        named = () if self.tokenizer is None else self.tokenizer.models
        return tuple({id(s): s for s in (*first, *self.experts, *bases, *named)}.values())

    def _is_expert(self, source: Source) -> bool:
        return any(expert is source for expert in self.experts)

    @property
    def seed(self) -> int:
        """Of the random numbers; 0 where parts have their own, or none are drawn."""
        seed = self.parameters.get("seed")
        return seed if isinstance(seed, int) else 0

    @cached_property
    def parameters(self) -> Mapping[str, Any]:
        """Every parameter's value, defaults included; per-model ones are tuples in expert order.

        One that goes by layers or names stands as a recipe writes it; "varies" where the parts of
        a recipe differ in it. One that the method chooses tensor by tensor is left out.
        """
        values: dict[str, Any] = {}
        for parameter in self.method.parameters:
            if parameter.per_model:
                each = range(len(self.experts))
                values[parameter.name] = tuple(self._summary(parameter, k) for k in each)
            else:
                values[parameter.name] = self._summary(parameter, None)
        values.update(self._chosen)
        return {name: value for name, value in values.items() if value is not None}

    def _summary(self, parameter: Parameter, expert: int | None) -> Any:
        found = [
            self.setting(part, parameter, entry).written
            for part in self.parts
            for entry in ([None] if expert is None else part.experts)
            if entry is None or entry.source is self.experts[expert or 0]
        ]
        return found[0] if all(value == found[0] for value in found) else "varies"

    @cached_property
    def _chosen(self) -> Mapping[str, Any]:
        """What the method chooses where nothing is given and the default is to let it choose."""
        left = [p for p in self.method.parameters if p.default is None and not p.per_model]
        if not left or not self.constant:
            return {}
        part = self.parts[0]
        spec = self.spec(0, "", [""] * len(part.experts), range(len(part.experts)), 1.0)
        return {
            p.name: getattr(spec, p.keyword) for p in left if not self.setting(part, p, None).cases
        }

    def setting(self, part: Part, parameter: Parameter, entry: Entry | None) -> Setting:
        """What holds for a parameter in a part, of one of its experts or (None) of the whole part.

        First the call, then the source, the slice, the module, the top of the recipe, the preset,
        and the method's default.
        """
        name = parameter.name
        given = self.given.get(name, NOTHING)
        if isinstance(given, tuple):
            assert entry is not None
            given = given[next(k for k, s in enumerate(self.experts) if s is entry.source)]
        own = () if entry is None else (entry.parameters,)
        found = given
        for level in (*own, *part.levels, self.settings, self.preset):
            found = found.or_else(level.get(name, NOTHING))
        if parameter.default is None or parameter.required:
            return found
        return found.or_else(constant(parameter.default))

    @cached_property
    def _choosers(self) -> tuple[Chooser, ...]:
        specs = {AS_IS: AS_IS}
        return tuple(self._chooser(part, specs) for part in self.parts)

    def _chooser(self, part: Part, specs: dict[Spec, Spec]) -> Chooser:
        settings = {
            parameter.name: tuple(self.setting(part, parameter, entry) for entry in part.experts)
            if parameter.per_model
            else self.setting(part, parameter, None)
            for parameter in self.method.parameters
        }
        labels = tuple(entry.source.label for entry in part.experts)
        return Chooser(self.method, labels, settings, specs)

    @cached_property
    def constant(self) -> bool:
        """True when neither layers nor names decide any parameter."""
        return all(chooser.constant for chooser in self._choosers)

    def spec(
        self, part: int, tensor: str, names: Sequence[str], experts: Sequence[int], t: float
    ) -> Spec:
        """The spec of one output tensor; equal values give the same object.

        part:    its place in `parts`
        tensor:  the output's name, by which filters of parameters of the whole merge go
        names:   of the input in each expert that takes part, by which those per model go
        experts: which of the part's experts take part
        t:       the place in [0, 1] of the tensor's layer, by which gradients go
        Raises RecipeError naming the tensor, for a parameter that no level gives, and for values
        that do not go together.
        """
        return self._choosers[part].spec(tensor, names, tuple(experts), t)

    def check(self) -> None:
        """Raise RecipeError for values that do not go together, where no tensor decides them."""
        for place, (part, chooser) in enumerate(zip(self.parts, self._choosers, strict=True)):
            if chooser.constant and part.experts:
                count = len(part.experts)
                self.spec(place, "", [""] * count, range(count), 1.0)

    def to_dict(self) -> dict[str, Any]:
        """The recipe in the format of recipe files, every parameter written out."""
        from mergekern.recipe.writing import written  # which reads recipes

        return written(self)
