"""Statistics of models that were made from data: whose they are, and which tensors have any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mergekern.checkpoint.base import Checkpoint, TensorInfo
from mergekern.checkpoint.header import read_header
from mergekern.checkpoint.identity import identity_of
from mergekern.checkpoint.provenance import provenance_in
from mergekern.dtypes import MERGEABLE, DType, dtype_name
from mergekern.errors import CheckpointError, MismatchError
from mergekern.outputs import Held
from mergekern.plan import Input
from mergekern.recipe import Recipe, Source

GRAMS = ("gram", "regmean_plusplus")  # kinds that are matrices over inputs


def check_statistics(recipe: Recipe, checkpoints: Sequence[Checkpoint]) -> tuple[str, ...]:
    """Raise unless every statistics file is of the model that it is named beside, and for the base
    that deltas are taken from, where it was made with one; and unless those that were collected
    along a merge are of this one. Returns notes on what is other than there.

    checkpoints: as they were opened, in the order of recipe.sources. What is in memory says nothing
    of where it comes from, and is believed.
    """
    opened = {id(s): c for s, c in zip(recipe.sources, checkpoints, strict=True)}
    questions: dict[str, Mapping[str, Any]] = {}
    for expert, source in zip(recipe.experts, recipe.statistics, strict=bool(recipe.statistics)):
        mend = f"`mergekern collect {recipe.method.statistics} --model {expert.label}` makes it"
        for file in opened[id(source)].files.values():
            found = provenance_in(read_header(file).metadata)
            kind = "something else" if found is None else found.get("kind")
            if found is None or kind != recipe.method.statistics:
                raise CheckpointError(
                    f"statistics {source.label} of model {expert.label}: holds {kind}; want a file "
                    f"of {recipe.method.statistics}: {mend}"
                )
            asked = questions[source.label] = found.get("question", {})
            made_from = [("model", asked.get("identity"), expert)]
            if "base" in asked:
                made_from += [("base", asked["base"], base) for base in _bases(recipe, expert)]
            for what, identity, model in made_from:
                if opened[id(model)].on_disk and identity != identity_of(opened[id(model)]):
                    raise MismatchError(
                        f"statistics {source.label}: was made from another {what}, "
                        f"{found.get(what)}, than {model.label} (or that has changed since): {mend}"
                    )
    if recipe.method.statistics != "regmean_plusplus" or not questions:
        return ()
    bases = {id(base): base for expert in recipe.experts for base in _bases(recipe, expert)}
    return _check_along(recipe, questions, [opened[found] for found in bases])


def _check_along(
    recipe: Recipe, questions: Mapping[str, Mapping[str, Any]], bases: Sequence[Checkpoint]
) -> tuple[str, ...]:
    """Of files that were collected along a merge; questions: by their labels, in the order of the
    experts."""
    (first, question), *others = questions.items()
    along = question.get("along", {})
    for label, other in others:
        if other.get("along") != along:
            raise MismatchError(
                f"statistics {first} and {label}: were collected along different merges: collect "
                "those of all models that are merged at once"
            )
    models = along.get("models", [])
    merged = [str(each.get("identity")) for each in questions.values()]
    if sorted(models) != sorted(merged):
        raise MismatchError(
            f"statistics {first}: were collected along a merge of {len(models)} models, and "
            f"{len(recipe.experts)} are merged here: name all of those, or collect along this merge"
        )
    _check_base(first, along.get("base"), bases)
    asked = dict(along.get("merge", {}))
    if isinstance(asked.get("weight"), list):  # in the order of the models that it was along
        asked["weight"] = [asked["weight"][models.index(model)] for model in merged]
    return tuple(
        f"statistics were collected along a merge with {name} {value}, and this one has "
        f"{recipe.parameters[name]}"
        for name, value in asked.items()
        if name in recipe.parameters and _listed(recipe.parameters[name]) != value
    )


def _check_base(label: str, along: str | None, bases: Sequence[Checkpoint]) -> None:
    """The base that a merge begins with is part of what its layers see."""
    known = [identity_of(base) for base in bases if base.on_disk]
    if len(known) < len(bases) or set(known) == ({along} - {None}):
        return
    was = "without a base" if along is None else "over a base"
    now = "there is none here" if not bases else f"here it is {bases[0].label}"
    raise MismatchError(
        f"statistics {label}: were collected along a merge {was}, and {now}: give the same base, "
        "or collect along this merge"
    )


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _bases(recipe: Recipe, expert: Source) -> list[Source]:
    """Those that an expert's deltas are taken from."""
    parts = [part for part in recipe.parts if any(e.source is expert for e in part.experts)]
    return list({id(part.base): part.base for part in parts if part.base is not None}.values())


@dataclass(frozen=True)
class Informed:
    """The statistics of a merge by the model that they are of.

    places: model -> where its statistics are among the checkpoints
    grams:  they are not of a tensor's shape, but matrices over the inputs of linear layers
    """

    places: dict[int, int]
    checkpoints: Sequence[Checkpoint]
    grams: bool = False

    def of(self, name: str, models: Sequence[int], held: Held) -> tuple[Input, ...]:
        """Those of one output tensor, for these models in order; none where no model has any.

        Raises MismatchError where one model has them and another has not, and for shapes and dtypes
        that cannot be those of the tensor.
        """
        pairs = [(model, self.places[model]) for model in models]
        known = [self._key(held[m].name, place) is not None for m, place in pairs]
        if not any(known):
            return ()
        if not all(known):
            has, lacks = (self._label(pairs[known.index(each)][1]) for each in (True, False))
            raise MismatchError(
                f"tensor {name}: the statistics {has} have it and {lacks} lack it: collect both "
                "with the same options"
            )
        return tuple(self._input(name, held, model, place) for model, place in pairs)

    def dtypes(self, statistics: Sequence[Input]) -> list[DType]:
        return [self.checkpoints[s.model].tensors[s.name].dtype for s in statistics]

    def untransposed(self, name: str, models: Sequence[int], held: Held) -> bool:
        """Whether the weights are [inputs, outputs], as Conv1D has them.

        Files say so. Raises MismatchError where it can be either, and where models differ.
        """
        found = {self._is_untransposed(held[model], model) for model in models}
        if len(found) > 1:
            raise MismatchError(
                f"tensor {name}: is [inputs, outputs] in one model and [outputs, inputs] in "
                "another, as their statistics say: merge models of one architecture"
            )
        return found.pop()

    def _is_untransposed(self, weight: TensorInfo, model: int) -> bool:
        place = self.places[model]
        said = self._said[place].get("untransposed")
        if said is not None:
            return weight.name in said
        width = self._matrix(weight.name, place).shape[0]
        if weight.shape[0] != weight.shape[1]:
            return width == weight.shape[0]
        if self._has_untransposed(model):
            raise MismatchError(
                f"tensor {weight.name}: is square, and others of {self._label(model)} are "
                "[inputs, outputs], so that it may be either: give the file of statistics, which "
                "says it, and not its tensors"
            )
        return False

    def _has_untransposed(self, model: int) -> bool:
        """Whether any weight can only be [inputs, outputs], by the shape of its matrix."""
        matrices, weights = self.checkpoints[self.places[model]].tensors, self.checkpoints[model]
        known = [(m.shape[0], weights.tensors.get(n)) for n, m in matrices.items()]
        shapes = ((width, weight.shape) for width, weight in known if weight is not None)
        return any(len(s) == 2 and width == s[0] != s[1] for width, s in shapes)

    def _input(self, name: str, held: Held, model: int, place: int) -> Input:
        info, wanted = self._matrix(held[model].name, place), list(held[model].shape)
        shapes = [wanted]
        if self.grams:
            shapes = [[n, n] for n in dict.fromkeys(reversed(wanted))] if len(wanted) == 2 else []
            said = self._said[place].get("untransposed")
            if said is not None and shapes:
                shapes = [[wanted[0 if held[model].name in said else 1]] * 2]
        if list(info.shape) not in shapes or info.dtype not in MERGEABLE:
            fit = " or ".join(map(str, shapes)) or "none, as it is no matrix"
            raise MismatchError(
                f"tensor {name}: the statistics {self._label(place)} have it as "
                f"{dtype_name(info.dtype)} {list(info.shape)}; want floats of {fit}"
            )
        return Input(place, info.name)

    def _key(self, weight: str, place: int) -> str | None:
        """Under which name the statistics have what they know of a weight; None where nothing."""
        leader = self._said[place].get("shares", {}).get(weight, weight)
        if leader in self.checkpoints[place].tensors:
            return str(leader)
        if leader != weight:
            raise CheckpointError(
                f"statistics {self._label(place)}: say that {weight} shares the matrix of "
                f"{leader}, which they lack: the file is damaged, collect it again"
            )
        return None

    def _matrix(self, weight: str, place: int) -> TensorInfo:
        key = self._key(weight, place)
        assert key is not None, f"{weight}: no statistics"
        return self.checkpoints[place].tensors[key]

    @cached_property
    def _said(self) -> dict[int, Mapping[str, Any]]:
        """What the files say of themselves; nothing of what is in memory."""
        return {place: _provenance(self.checkpoints[place]) for place in self.places.values()}

    def _label(self, place: int) -> str:
        return self.checkpoints[place].label


def informed_of(recipe: Recipe, checkpoints: Sequence[Checkpoint]) -> Informed:
    place = {id(source): number for number, source in enumerate(recipe.sources)}
    pairs = zip(recipe.experts, recipe.statistics, strict=bool(recipe.statistics))
    places = {place[id(e)]: place[id(s)] for e, s in pairs}
    return Informed(places, checkpoints, recipe.method.statistics in GRAMS)


def _provenance(statistics: Checkpoint) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for file in statistics.files.values():
        found |= provenance_in(read_header(file).metadata) or {}
    return found
