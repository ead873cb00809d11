"""The recipe file: mergekit's format, and `grid` and `preset`, checked key by key."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, InstanceOf, ValidationError

from mergekern.errors import RecipeError
from mergekern.methods import method_of
from mergekern.recipe.keys import Notes, check_keys
from mergekern.recipe.source import Source, is_reference, parse_source
from mergekern.recipe.text import Origin, Path, absent, shown, spell

REFERENCE = ("model", "lora", "override_architecture", "path", "revision")
TOKENIZER = ("source", "tokens", "pad_to_multiple_of", "padding")
TOKEN = ("source", "force")
TOKEN_SOURCE = ("kind", "model", "token", "token_id", *REFERENCE[1:])


class _Place(BaseModel):
    """Something in a recipe; `path` leads to it."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, frozen=True)
    path: Path = ()
    parameters: dict[str, Any] = Field(default_factory=dict)


T = TypeVar("T", bound=_Place)


class ModelEntry(_Place):
    """One entry of `models`, or of a slice's `sources`, which has layers."""

    model: Source
    layer_range: tuple[int, int] | None = None
    statistics: Source | None = None
    task: str | None = None


class Slice(_Place):
    """One entry of `slices`: a run of output layers."""

    sources: tuple[ModelEntry, ...]
    base_model: Source | None = None


class Module(_Place):
    """One value of `modules`: a part of the model with layers of its own, by its name."""

    models: tuple[ModelEntry, ...] = ()
    slices: tuple[Slice, ...] = ()
    base_model: Source | None = None


class RecipeFile(_Place):
    """A recipe as written. Parameters are checked against the method later, see resolve.py.

    grid: parameters with lists of values; then it stands for many recipes, see grid.py
    """

    merge_method: str
    models: tuple[ModelEntry, ...] = ()
    slices: tuple[Slice, ...] = ()
    modules: dict[str, Module] = Field(default_factory=dict)
    base_model: Source | None = None
    grid: Any = None
    preset: str | None = None
    dtype: str | None = None
    out_dtype: str | None = None
    tokenizer: dict[str, Any] | None = None
    tokenizer_source: Any = None
    chat_template: str | None = None
    origin: InstanceOf[Origin] = Origin()
    notes: InstanceOf[Notes] = Notes(Origin())

    def places(self) -> Iterator[_Place]:
        """Every place that may hold parameters, from the top down."""
        yield self
        yield from self.modules.values()
        holders: list[RecipeFile | Module] = [self, *self.modules.values()]
        for holder in holders:
            yield from holder.models
            for run in holder.slices:
                yield run
                yield from run.sources


def _whole(end: Any) -> int:
    """The end of a layer_range, as mergekit takes it: 8, 8.0 or "8"; -1 for what it cannot be."""
    if isinstance(end, str):
        return int(end) if end.isdecimal() else -1
    if isinstance(end, float):
        return int(end) if end.is_integer() else -1
    return end if type(end) is int else -1


NAMES: Mapping[type[_Place], tuple[str, ...]] = {
    kind: (*(n for n in kind.__annotations__ if n not in ("origin", "notes")), "parameters")
    for kind in (ModelEntry, Slice, Module, RecipeFile)
}
LISTED = tuple(name for name in NAMES[ModelEntry] if name != "layer_range")


def parse_recipe(content: Any, origin: Origin | None = None) -> RecipeFile:
    """Plain data -> RecipeFile; RecipeError naming the line, the key, and the nearest one known."""
    origin = origin or Origin()
    if not isinstance(content, Mapping):
        wanted = "want a mapping with merge_method and models"
        raise RecipeError(f"{origin.at()}{wanted}, not {shown(content)}")
    reader = _Reader(origin)
    file = reader.recipe(content)
    _check_one_of(file, origin.at(), "models, slices or modules")
    return file


def _check_one_of(place: RecipeFile | Module, where: str, wanted: str) -> None:
    names = [name for name in ("models", "slices", "modules") if getattr(place, name, None)]
    if not names:
        raise RecipeError(f"{where}lists no models to merge: want {wanted}, with at least one")
    if len(names) > 1:
        raise RecipeError(f"{where}{' and '.join(names)} are both given; want one of {wanted}")


class _Reader:
    """Reads one recipe's plain data from the top down; messages name the place."""

    def __init__(self, origin: Origin) -> None:
        self.origin = origin
        self.notes = Notes(origin)

    def recipe(self, content: Mapping[str, Any]) -> RecipeFile:
        present = self._present(content, NAMES[RecipeFile], ())
        if "merge_method" not in present and isinstance(present.get("preset"), str):
            present["merge_method"] = self._method(present["preset"])
        self._contents(present, ())
        modules = present.get("modules", {})
        if not isinstance(modules, Mapping):
            raise self._wrong(("modules",), modules, "a mapping of names to their models or slices")
        present["modules"] = {str(k): self._module(("modules", k), v) for k, v in modules.items()}
        if isinstance(present.get("tokenizer"), Mapping):
            self._tokenizer(present["tokenizer"])
        places = {"origin": self.origin, "notes": self.notes}
        return self._made(RecipeFile, (), {**present, **places})

    def _method(self, preset: str) -> str:
        """The method that a preset says, where none is named."""
        try:
            return method_of(preset).name
        except RecipeError as error:
            raise RecipeError(f"{self.origin.at('preset')}{error}") from error

    def _module(self, path: Path, content: Any) -> Module:
        present = self._present(content, NAMES[Module], path)
        self._contents(present, path)
        module = self._made(Module, path, present)
        _check_one_of(module, f"{self.origin.at(*path)}{spell(path)} ", "models or slices")
        return module

    def _contents(self, present: dict[str, Any], path: Path) -> None:
        """models, slices and base_model of a recipe or module, in place."""
        if "models" in present:
            entries = self._list((*path, "models"), present["models"])
            present["models"] = [self._entry(place, entry, LISTED) for place, entry in entries]
        if "slices" in present:
            runs = self._list((*path, "slices"), present["slices"])
            present["slices"] = [self._slice(place, run) for place, run in runs]
        if "base_model" in present:
            present["base_model"] = self._source((*path, "base_model"), present["base_model"])

    def _slice(self, path: Path, content: Any) -> Slice:
        present = self._present(content, NAMES[Slice], path)
        sources = self._list((*path, "sources"), present.get("sources", []))
        known = NAMES[ModelEntry]
        present["sources"] = [self._entry(place, entry, known) for place, entry in sources]
        if not sources:
            raise self._wrong((*path, "sources"), [], "at least one `- model: ...`")
        for entry in present["sources"]:
            if entry.layer_range is None:
                raise RecipeError(
                    f"{self.origin.at(*entry.path)}{spell(entry.path)} has no layer_range; "
                    "want [first, one behind the last]"
                )
        if "base_model" in present:
            present["base_model"] = self._source((*path, "base_model"), present["base_model"])
        return self._made(Slice, path, present)

    def _entry(self, path: Path, content: Any, known: Collection[str]) -> ModelEntry:
        if not isinstance(content, Mapping) or content.get("model") is None:
            raise self._wrong(path, content, "an entry `model: ...`")
        present = self._present(content, known, path)
        present["model"] = self._source((*path, "model"), present["model"], spell(path))
        if "statistics" in present:
            place = (*path, "statistics")
            present["statistics"] = self._source(place, present["statistics"])
        layers = present.get("layer_range")
        if layers is not None:
            present["layer_range"] = self._layers((*path, "layer_range"), layers)
        return self._made(ModelEntry, path, present)

    def _layers(self, path: Path, layers: Any) -> tuple[int, int]:
        ends = [_whole(end) for end in layers] if isinstance(layers, (list, tuple)) else []
        if len(ends) == 2 and 0 <= ends[0] <= ends[1]:
            return ends[0], ends[1]
        raise self._wrong(path, layers, "[first, one behind the last], counted from 0")

    def _source(self, path: Path, value: Any, label: str = "") -> Source:
        self._reference(path, value)
        try:
            return parse_source(value, label or spell(path))
        except RecipeError as error:
            raise RecipeError(f"{self.origin.at(*path)}{error}") from error

    def _reference(self, path: Path, value: Any, known: Collection[str] = REFERENCE) -> None:
        """The keys of a model reference."""
        if not is_reference(value):
            return
        check_keys(value, known, path, self.notes)
        for key in ("model", "lora"):
            self._reference((*path, key), value.get(key))

    def _tokenizer(self, content: Mapping[str, Any]) -> None:
        """The keys of the block; its values are checked when the recipe is resolved."""
        path: Path = ("tokenizer",)
        check_keys(content, TOKENIZER, path, self.notes)
        self._reference((*path, "source"), content.get("source"))
        tokens = content.get("tokens")
        for text, token in tokens.items() if isinstance(tokens, Mapping) else ():
            if isinstance(token, Mapping):
                place: Path = (*path, "tokens", text)
                check_keys(token, TOKEN, place, self.notes)
                self._reference((*place, "source"), token.get("source"), TOKEN_SOURCE)

    def _present(self, content: Any, known: Collection[str], path: Path) -> dict[str, Any]:
        """What is given: known keys that are neither null nor an empty list."""
        if not isinstance(content, Mapping):
            raise self._wrong(path, content, f"a mapping with {', '.join(known)}")
        check_keys(content, known, path, self.notes)
        present = {k: v for k, v in content.items() if k in known and not absent(v)}
        parameters = present.get("parameters", {})
        if not isinstance(parameters, Mapping):
            raise self._wrong((*path, "parameters"), parameters, "a mapping of names to values")
        return {**present, "parameters": {str(name): v for name, v in parameters.items()}}

    def _list(self, path: Path, content: Any) -> list[tuple[Path, Any]]:
        if not isinstance(content, (list, tuple)):
            raise self._wrong(path, content, "a list of entries `- ...`")
        return [((*path, place), entry) for place, entry in enumerate(content)]

    def _made(self, kind: type[T], path: Path, present: Mapping[str, Any]) -> T:
        try:
            return kind.model_validate({**present, "path": path})
        except ValidationError as error:
            fault = error.errors()[0]
            place = (*path, *fault["loc"])
            if fault["type"] == "missing":
                text = f"the key {spell(place)!r} is missing"
                raise RecipeError(f"{self.origin.at(*path)}{text}") from error
            text = f"{spell(place)} is {shown(fault['input'])}: {fault['msg']}"
            raise RecipeError(f"{self.origin.at(*place)}{text}") from error

    def _wrong(self, path: Path, found: Any, wanted: str) -> RecipeError:
        where = self.origin.at(*path)
        return RecipeError(f"{where}{spell(path) or 'it'} is {shown(found)}; want {wanted}")
