"""From what was asked for to what will be done: inputs told apart, every parameter given settings.

A parameter's value is the first found among: the call's or command line's arguments, the source's
own parameters (per-model ones only: weight, density, …), its slice's, its module's, the recipe's
top-level parameters, the preset, the method's default. A level whose filters leave out a tensor
has no value for it.

`models` are one part, to whose inputs the base belongs, listed or not; a slice is a part of its
sources as they are written.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

from mergekern.dtypes import parse_dtype
from mergekern.errors import RecipeError
from mergekern.methods import get_method
from mergekern.recipe.beside import with_beside
from mergekern.recipe.levels import LevelReader, given_settings, named
from mergekern.recipe.recipe import Entry, Level, Part, Recipe
from mergekern.recipe.schema import ModelEntry, Module, RecipeFile, Slice
from mergekern.recipe.source import Source, parse_source
from mergekern.recipe.statistics import statistics_of
from mergekern.recipe.tasks import tasks_of
from mergekern.recipe.text import spell
from mergekern.recipe.tokenizer import (
    TokenizerSettings,
    check_template,
    parse_tokenizer,
    parse_vocabulary,
)


def resolve(
    file: RecipeFile,
    arguments: Mapping[str, Any] | None = None,
    seed: int | None = None,
    stages: Mapping[str, str] | None = None,
) -> Recipe:
    """The file's recipe under a call's arguments; lists in these are one value per expert.

    stages: names that stand for the folders of other merges
    Raises RecipeError for methods, parameters and models that cannot be what was meant.
    """
    arguments = dict(arguments or {})
    given = arguments.pop("statistics", None)
    file = with_beside(file, "statistics", given, parse_source)
    method = get_method(file.merge_method)
    if method.container:
        given = arguments.pop("task", None)
        file = with_beside(file, "task", given, lambda value, _: str(value))
    return _Resolver(file, named(method, arguments), stages or {}).recipe(seed)


class _Resolver:
    """One recipe's file on its way. Every model gets one Source, however often it is named."""

    def __init__(self, file: RecipeFile, given: dict[str, Any], stages: Mapping[str, str]) -> None:
        self.file = file
        self.given = given
        self.stages = stages
        self.method = get_method(file.merge_method)
        self.notes: list[str] = []
        self.levels = LevelReader(self.method, file.origin)
        self._sources: dict[Hashable, Source] = {}

    def recipe(self, seed: int | None) -> Recipe:
        file, method = self.file, self.method
        if seed is not None:
            self._seed(seed)
        top = self.levels.read(file, "")
        parts = tuple(self._parts(top))
        base = None if file.base_model is None else self._known(file.base_model)
        if base is None and method.takes_deltas(True):
            base = parts[0].base
        experts = tuple({id(e.source): e.source for p in parts for e in p.experts}.values())
        if not experts:
            raise RecipeError(f"no models to merge besides the base {base.label if base else ''}")
        statistics, without_effect = statistics_of(method, parts, experts)
        tasks, nameless = tasks_of(method, parts, experts)
        without_effect = (*without_effect, *nameless)
        notes = (*self.notes, *self._inert(), *file.notes.lines(), *without_effect)
        preset = {} if file.preset is None else method.preset(file.preset)
        recipe = Recipe(
            method=method,
            parts=parts,
            experts=experts,
            base=base,
            given=given_settings(method, self.given, experts),
            settings=top,
            preset=self.levels.plain(preset),
            dtype=self._dtype("dtype", file.dtype),
            out_dtype=self._dtype("out_dtype", file.out_dtype),
            tokenizer=self._tokenizer(),
            chat_template=self._chat_template(),
            notes=(*notes, *self.levels.notes.lines()),
            statistics=statistics,
            tasks=tasks,
        )
        recipe.check()
        return recipe

    def _parts(self, top: Level) -> Iterator[Part]:
        file = self.file
        if not file.modules:
            yield from self._contents(file, "", (), top)
        single = list(file.modules) == ["default"]  # mergekit's name for all of a model
        for name, module in file.modules.items():
            levels = (self.levels.read(module, ""),)
            yield from self._contents(module, "" if single else name, levels, top)

    def _contents(
        self, place: RecipeFile | Module, module: str, levels: tuple[Level, ...], top: Level
    ) -> Iterator[Part]:
        """The parts of a recipe or module: one for all of its layers, or one for each slice."""
        base = place.base_model or self.file.base_model
        if place.models:
            yield self._whole(place.models, base, module, levels, top)
        for run in place.slices:
            yield self._slice(run, run.base_model or base, module, levels)

    def _whole(
        self,
        models: Sequence[ModelEntry],
        named: Source | None,
        module: str,
        levels: tuple[Level, ...],
        top: Level,
    ) -> Part:
        entries, experts, base = self._inputs(models, named)
        listed = any(entry.source is base for entry in entries)
        if base is not None and not self._deltas(base) and not listed:
            self._check_weight(base, top)
            first = self.method.base_role == "first"
            entries = experts = (Entry(base), *entries) if first else (*entries, Entry(base))
        self._check_models(experts, base)
        return Part(entries, experts, base, module, levels)

    def _slice(
        self, run: Slice, named: Source | None, module: str, levels: tuple[Level, ...]
    ) -> Part:
        entries, experts, base = self._inputs(run.sources, named)
        if not self._deltas(base) and not any(entry.source is base for entry in entries):
            base = None  # of another part, or the one whose config is taken
            if run.base_model is not None:
                why = f"{self.method.name} works without a base"
                self.levels.notes.add((*run.path, "base_model"), why)
        where = f"{self.file.origin.at(*run.path)}{spell(run.path)}: "
        self._check_models(experts, base, where, in_slice=True)
        return Part(entries, experts, base, module, (self.levels.read(run, ""), *levels))

    def _inputs(
        self, models: Sequence[ModelEntry], named: Source | None
    ) -> tuple[tuple[Entry, ...], tuple[Entry, ...], Source | None]:
        """The entries of one part as listed, those that are merged, and the base."""
        base = None if named is None else self._known(named)
        entries: list[Entry] = []
        for model in models:
            source, label = self._known(model.model), model.model.label
            if any(entry.source is source for entry in entries):
                raise RecipeError(
                    f"{self.file.origin.at(*model.path)}model {label} is listed twice; "
                    "list it once, with the sum of weights"
                )
            own: Level = {}
            if source is not base or not self._deltas(base):
                own = self.levels.read(model, f"model {label}: ", per_model=True)
            elif model.parameters:
                self.levels.notes.add((*model.path, "parameters"), f"{label} is the base")
            entries.append(Entry(source, model.layer_range, own, model.statistics, model.task))
        experts = [e for e in entries if e.source is not base or not self._deltas(base)]
        if self.method.base_role == "first":
            experts.sort(key=lambda entry: entry.source is not base)
        return tuple(entries), tuple(experts), base

    def _known(self, source: Source) -> Source:
        if not source.in_memory and source.revision is None and source.where in self.stages:
            source = source.moved(self.stages[source.where])
        return self._sources.setdefault(source.key, source)

    def _deltas(self, base: Source | None) -> bool:
        return self.method.takes_deltas(base is not None)

    def _check_models(
        self,
        experts: Sequence[Entry],
        base: Source | None,
        where: str = "",
        in_slice: bool = False,
    ) -> None:
        """Raise RecipeError unless the method can merge these models."""
        labels = [entry.source.label for entry in experts]
        try:
            self.method.check_models(labels, None if base is None else base.label, in_slice)
        except RecipeError as error:
            raise RecipeError(f"{where}{error}") from error

    def _check_weight(self, base: Source, top: Level) -> None:
        """A base named for a method that has none is one input more, if a weight reaches it."""
        if all(parameter.name != "weight" for parameter in self.method.parameters):
            return
        given = self.given.get("weight")
        if isinstance(given, (list, tuple)) or (given is None and "weight" not in top):
            raise RecipeError(
                f"{self.method.name} treats base_model {base.label} as one more input, and it has "
                "no weight: list it under models with a weight (0 to leave it out of the average), "
                "or drop base_model"
            )

    def _seed(self, seed: int) -> None:
        if any(parameter.name == "seed" for parameter in self.method.parameters):
            self.given.setdefault("seed", seed)
        elif not isinstance(seed, int) or seed < 0:
            raise RecipeError(f"seed is {seed!r}; want a whole number")
        elif seed:
            why = f"{self.method.name} draws no random numbers"
            self.notes.append(f"seed has no effect: {why}")

    def _inert(self) -> list[str]:
        inert = self.method.inert.items()
        return [f"{name} has no effect: {why}" for name, why in inert if self.given.get(name)]

    def _dtype(self, key: str, text: str | None) -> Any:
        return self._placed((key,), parse_dtype, text)

    def _chat_template(self) -> str | None:
        found: str | None = self._placed(
            ("chat_template",), check_template, self.file.chat_template
        )
        return found

    def _tokenizer(self) -> TokenizerSettings | None:
        file = self.file
        if file.tokenizer is not None and file.tokenizer_source is not None:
            raise RecipeError(
                f"{file.origin.at('tokenizer_source')}tokenizer_source and tokenizer are both "
                "given; want one of them (tokenizer_source is tokenizer.source)"
            )
        found: TokenizerSettings | None = self._placed(
            ("tokenizer",), parse_tokenizer, file.tokenizer, self._known
        )
        if file.tokenizer_source is None:
            return found
        place = ("tokenizer_source",)
        return TokenizerSettings(
            self._placed(place, parse_vocabulary, file.tokenizer_source, *place, self._known)
        )

    def _placed(self, path: tuple[str, ...], parse: Any, value: Any, *rest: Any) -> Any:
        """parse(value, …), its errors with the line; None for None."""
        try:
            return None if value is None else parse(value, *rest)
        except RecipeError as error:
            raise RecipeError(f"{self.file.origin.at(*path)}{error}") from error
