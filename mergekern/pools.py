"""Weights that tensors have in common: those of a module, of a layer, or of the whole model.

Which tensors count together, the planner says. What each model changed in all of them is found in a
pass of its own, before the first of them is merged.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from mergekern.backends import Backend
from mergekern.fused import Tile
from mergekern.plan import Step
from mergekern.spec import Spec
from mergekern.statistics import fused_op, in_order
from mergekern.variance import shares_of


def weighed(
    backend: Backend, steps: Sequence[Step], tiles: Iterable[tuple[Step, Tile]]
) -> list[Step]:
    """The steps with the weights of their pools; those of equal ones share a spec.

    tiles: all of every step, one step's in order
    """
    sums = {step.name: np.zeros((1, len(step.experts))) for step in steps}
    for step, tile in tiles:
        blocks = backend.energies(fused_op(step), tile).sums
        sums[step.name] = in_order(sums[step.name], blocks)
    pools: dict[str, dict[int, tuple[float, int]]] = {}  # pool -> expert -> sum of squares, numel
    for step in steps:
        pool = pools.setdefault(_spec(step).pool, {})
        for expert, energy in zip(step.expert_index, sums[step.name][0].tolist(), strict=True):
            known, numel = pool.get(expert, (0.0, 0))
            pool[expert] = (known + energy, numel + step.numel)
    specs: dict[tuple[int, tuple[int, ...]], Spec] = {}
    for step in steps:
        key = (id(step.spec), step.expert_index)
        if key not in specs:
            pool = pools[_spec(step).pool]
            energies, numels = zip(*(pool[expert] for expert in step.expert_index), strict=True)
            shares = shares_of(energies, numels, _spec(step).least_energy)
            specs[key] = replace(_spec(step), shares=shares)
    return [replace(step, spec=specs[id(step.spec), step.expert_index]) for step in steps]


def _spec(step: Step) -> Spec:
    assert step.spec is not None, f"{step.name}: not a merge step"
    return step.spec
