"""Plans of models in memory, remembered: a search or a training loop merges the same again and
again, and what it wants done does not hang on the numbers in the tensors."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from threading import Lock

from mergekern.checkpoint.base import Checkpoint
from mergekern.checkpoint.contents import Contents
from mergekern.options import Options
from mergekern.plan import Plan
from mergekern.planner import build_plan
from mergekern.recipe import Recipe

KEPT = 8

_plans: dict[Hashable, tuple[Plan, list[Contents]]] = {}  # the one used last comes last
_lock = Lock()


def plan_in_memory(recipe: Recipe, checkpoints: Sequence[Checkpoint], options: Options) -> Plan:
    """build_plan() of models that are all in memory, and are merged there."""
    # As text, where 1 and True are two; the method itself, as users may define theirs anew.
    asked = repr(recipe.to_dict()), recipe.notes, recipe.method.function
    question = (asked, _held(recipe, checkpoints), options)
    with _lock:
        known = _plans.pop(question, None)
    if known is None:
        # What the tensors are goes by its place in memory, where it stays as long as it is known.
        contents = [checkpoint.tensors for checkpoint in checkpoints]
        plan = build_plan(recipe, checkpoints, options)
        known = plan, contents
    with _lock:
        _plans[question] = known
        while len(_plans) > KEPT:
            del _plans[next(iter(_plans))]
    return known[0]


def _held(recipe: Recipe, checkpoints: Sequence[Checkpoint]) -> Hashable:
    """Equal for models that are called alike, and hold tensors alike."""
    return tuple(
        (source.label, id(c.tensors), tuple(c.shared.items()), repr(c.config))
        for source, c in zip(recipe.sources, checkpoints, strict=True)
    )
