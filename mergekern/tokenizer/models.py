"""The models whose vocabularies are to become one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mergekern.checkpoint.base import Checkpoint
from mergekern.recipe import Source


@dataclass(frozen=True)
class Models:
    """The models of one merge, in the recipe's order.

    base:   which of them is the base, None when no model was named for it
    donor:  which one gives the output's config and side files
    merged: those that are; others are only named by the tokenizer's settings
    """

    sources: Sequence[Source]
    checkpoints: Sequence[Checkpoint]
    base: int | None
    donor: int
    merged: frozenset[int]

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(checkpoint.label for checkpoint in self.checkpoints)
