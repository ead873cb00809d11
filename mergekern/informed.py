"""Statistics of models that were made from data: whose they are, and which tensors have any."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mergekern.checkpoint.base import Checkpoint
from mergekern.checkpoint.header import read_header
from mergekern.checkpoint.identity import identity_of
from mergekern.checkpoint.provenance import provenance_in
from mergekern.dtypes import MERGEABLE, DType, dtype_name
from mergekern.errors import CheckpointError, MismatchError
from mergekern.outputs import Held
from mergekern.plan import Input
from mergekern.recipe import Recipe, Source


def check_statistics(recipe: Recipe, checkpoints: Sequence[Checkpoint]) -> None:
    """Raise unless every statistics file is of the model that it is named beside, and for the base
    that deltas are taken from, where it was made with one.

    checkpoints: as they were opened, in the order of recipe.sources. What is in memory says nothing
    of where it comes from, and is believed.
    """
    opened = {id(s): c for s, c in zip(recipe.sources, checkpoints, strict=True)}
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
            asked = found.get("question", {})
            made_from = [("model", asked.get("identity"), expert)]
            if "base" in asked:
                made_from += [("base", asked["base"], base) for base in _bases(recipe, expert)]
            for what, identity, model in made_from:
                if opened[id(model)].on_disk and identity != identity_of(opened[id(model)]):
                    raise MismatchError(
                        f"statistics {source.label}: was made from another {what}, "
                        f"{found.get(what)}, than {model.label} (or that has changed since): {mend}"
                    )


def _bases(recipe: Recipe, expert: Source) -> list[Source]:
    """Those that an expert's deltas are taken from."""
    parts = [part for part in recipe.parts if any(e.source is expert for e in part.experts)]
    return list({id(part.base): part.base for part in parts if part.base is not None}.values())


@dataclass(frozen=True)
class Informed:
    """The statistics of a merge by the model that they are of.

    places: model -> where its statistics are among the checkpoints
    """

    places: dict[int, int]
    checkpoints: Sequence[Checkpoint]

    def of(self, name: str, models: Sequence[int], held: Held) -> tuple[Input, ...]:
        """Those of one output tensor, for these models in order; none where no model has any.

        Raises MismatchError where one model has them and another has not, and for shapes and dtypes
        that cannot be those of the tensor.
        """
        pairs = [(model, self.places[model]) for model in models]
        known = [held[m].name in self.checkpoints[place].tensors for m, place in pairs]
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

    def _input(self, name: str, held: Held, model: int, place: int) -> Input:
        info, wanted = self.checkpoints[place].tensors[held[model].name], held[model]
        if info.shape != wanted.shape or info.dtype not in MERGEABLE:
            raise MismatchError(
                f"tensor {name}: the statistics {self._label(place)} have it as "
                f"{dtype_name(info.dtype)} {list(info.shape)}; want floats of {list(wanted.shape)}"
            )
        return Input(place, info.name)

    def _label(self, place: int) -> str:
        return self.checkpoints[place].label


def informed_of(recipe: Recipe, checkpoints: Sequence[Checkpoint]) -> Informed:
    place = {id(source): number for number, source in enumerate(recipe.sources)}
    pairs = zip(recipe.experts, recipe.statistics, strict=bool(recipe.statistics))
    return Informed({place[id(e)]: place[id(s)] for e, s in pairs}, checkpoints)
