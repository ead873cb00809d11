"""What the models of a recipe's parts are to their merges: the base, experts, or nothing."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property

from mergekern.recipe import Recipe


@dataclass(frozen=True)
class Members:
    """The models of one part, by their places among the recipe's sources.

    base:    gives the deltas, or decides shapes; None when no model was named for it
    experts: model -> place in part.experts
    deltas:  what is merged are the experts' differences from the base
    """

    base: int | None
    experts: Mapping[int, int]
    deltas: bool

    @cached_property
    def models(self) -> tuple[int, ...]:
        """Every one of them, in the order of the recipe's sources."""
        return tuple(sorted({*self.experts, *(() if self.base is None else (self.base,))}))

    def like(self, held: Collection[int], donor: int) -> int:
        """Which of the models that have a tensor decides its shape, and the depth it lies at."""
        if self.base is not None and self.base in held:
            return self.base
        return donor if donor in held else min(held)


def members_of(recipe: Recipe) -> tuple[Members, ...]:
    """The models of every part."""
    place = {id(source): model for model, source in enumerate(recipe.models)}
    return tuple(
        Members(
            None if part.base is None else place[id(part.base)],
            {place[id(entry.source)]: k for k, entry in enumerate(part.experts)},
            recipe.method.takes_deltas(part.base is not None),
        )
        for part in recipe.parts
    )
