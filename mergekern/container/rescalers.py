"""The rescaler of every task, from the sums that one pass wrote."""

from __future__ import annotations

import numpy as np

from mergekern.arrays import to_host
from mergekern.checkpoint.base import Checkpoint
from mergekern.checkpoint.container import Rescalers
from mergekern.plan import Plan


def rescalers(plan: Plan, sums: Checkpoint, experts: int) -> list[Rescalers]:
    """Of each expert, sum |tau| / sum |M tau_uni|, by every way to sum.

    paper: over all elements of the model
    code:  over its tensors, the mean of each, as in the released code

    1 where no element is marked, and there is nothing to rescale. Chunks are added in order, and
    tensors in the order of the plan.
    """
    whole, means = np.zeros((2, experts, 2))
    for step in plan.steps:
        info = sums.tensors[step.name]
        if not info.numel:
            continue
        found = to_host(sums.read(step.name, 0, info.numel, None)).reshape(*info.shape[:1], -1, 2)
        chosen = list(step.expert_index)
        total = np.add.accumulate(found)[-1]
        whole[chosen] += total
        means[chosen] += total / step.numel
    return [
        Rescalers(paper=_ratio(*whole[expert]), code=_ratio(*means[expert]))
        for expert in range(experts)
    ]


def _ratio(before: float, after: float) -> float:
    return float(before / after) if after > 0 else 1.0
