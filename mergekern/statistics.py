"""From a spec to a fused op: the windows and sums that a method needs before its fused pass."""

from __future__ import annotations

import numpy as np

from mergekern.backends import Backend
from mergekern.fused import KEEP_ALL, Combine, ExpertScalars, FusedOp, Window, name_hash
from mergekern.plan import Step
from mergekern.spec import Spec
from mergekern.tiles import Tensors

NO_SCALE_BELOW = 1e-7  # mergekit's guard of the l1 rescale: sums below it leave the delta as it is


def fused_op(
    step: Step,
    windows: tuple[Window, ...] | None = None,
    scales: tuple[float, ...] | None = None,
) -> FusedOp:
    """The op of a step, given its windows if it trims, and its scales if they come from sums."""
    spec = step.spec
    assert spec is not None, f"{step.name}: not a merge step"
    windows = windows or (Window(),) * len(step.experts)
    scales = scales or _plain_scales(spec)
    experts = []
    for place, index in enumerate(step.expert_index):
        coef = spec.weight[place] * scales[place]
        keep = spec.keep[place]
        experts.append(
            ExpertScalars(
                index=index,
                coef=coef,
                vote=coef if spec.ballot == "weighted" else scales[place],
                share=spec.weight[place] if spec.normalize else 1.0,
                window=windows[place],
                keep_below=KEEP_ALL if keep >= 1 else int(keep * KEEP_ALL),
            )
        )
    combine, divisor = _combination(spec)
    return FusedOp(
        rule=spec.rule,
        experts=tuple(experts),
        elect=spec.elect,
        combine=combine,
        scale=spec.lambda_,
        divisor=divisor,
        seed=spec.seed,
        name_hash=name_hash(step.name),
        work=step.work,
    )


def _plain_scales(spec: Spec) -> tuple[float, ...]:
    if spec.rescale == "drop_rate":
        return tuple(1.0 / (d * k) for d, k in zip(spec.density, spec.keep, strict=True))
    return (1.0,) * len(spec.weight)


def sum_scales(
    backend: Backend, tensors: Tensors, windows: tuple[Window, ...] | None
) -> tuple[float, ...] | None:
    """What the l1 rescale multiplies each expert's kept deltas by; None where it has no part."""
    (step,) = tensors.steps
    if step.spec is None or not step.spec.whole_tensor_sums:
        return None
    ones = (1.0,) * len(step.experts)
    op = fused_op(step, windows, ones)
    total = np.zeros((1, len(step.experts), 2))
    for _, tile in tensors.tiles():
        sums = backend.masked_sums(op, tile).numpy()
        # accumulate adds in order, one block after the other, however the tiles fall
        total = np.add.accumulate(np.concatenate([total, sums]))[-1:]
    return tuple(_ratio(float(before), float(after)) for before, after in total[0])


def _ratio(before: float, after: float) -> float:
    """What restores the sum of magnitudes; 1 for sums too small to tell, or not finite: the fused
    pass finds the NaN or Inf behind those."""
    usable = min(before, after) >= NO_SCALE_BELOW and max(before, after) < float("inf")
    return before / after if usable else 1.0


def _combination(spec: Spec) -> tuple[Combine, float]:
    """How values combine, and the divisor where it is the same for every element."""
    averaged = spec.normalize or spec.combine == "mean"
    if not averaged or spec.combine == "max":
        return spec.combine, 1.0
    if spec.elect != "none":
        return "mean", 1.0
    return "sum", sum(spec.weight) if spec.normalize else float(len(spec.weight))
