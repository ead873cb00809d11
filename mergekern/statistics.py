"""From a spec to a fused op: the windows and sums that a method needs before its fused pass."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from mergekern.backends import Backend
from mergekern.errors import MergeError, RecipeError
from mergekern.function import Found, Function, PerColumn, PerRow
from mergekern.fused import (
    KEEP_ALL,
    Combine,
    ExpertScalars,
    FusedOp,
    Masks,
    Odds,
    Pruning,
    Rule,
    Tile,
    Window,
    name_hash,
)
from mergekern.geometry import Gram
from mergekern.lazily import torch
from mergekern.plan import Step
from mergekern.spec import Spec
from mergekern.survey import Survey
from mergekern.tiles import Tensors
from mergekern.variance import largest_variances, shares_of

NO_SCALE_BELOW = 1e-7  # mergekit's guard of the l1 rescale: sums below it leave the delta as it is


@dataclass(frozen=True)
class Numbers:
    """What was found out about one tensor besides its windows; None where it has no part.

    scales:  what each expert's kept delta is multiplied by
    masks:   of a tensor that is held whole, where finding the others took what they say; they go
             with kept_by()
    window:  which variances of the deltas are kept
    weights: in place of the spec's
    gram:    dot products of the experts' deltas, or of their weights where there is no base
    found:   by the survey of a function
    """

    scales: tuple[float, ...] | None = None
    masks: Masks = ()
    window: Window | None = None
    weights: tuple[float, ...] | None = None
    gram: Gram | None = None
    found: Found = field(default_factory=dict)


NOTHING = Numbers()


def fused_op(
    step: Step, windows: tuple[Window, ...] | None = None, numbers: Numbers = NOTHING
) -> FusedOp:
    """The op of a step, given its windows if it trims, and its numbers if its spec asks for any."""
    spec = step.spec
    assert spec is not None, f"{step.name}: not a merge step"
    if spec.function is not None:
        plain = tuple(ExpertScalars(index, 1.0) for index in step.expert_index)
        return FusedOp(
            spec.rule, plain, work=step.work, function=spec.function, found=numbers.found
        )
    if numbers.window is not None or windows is None:
        windows = (numbers.window or Window(),) * len(step.experts)
    scales = numbers.scales or _plain_scales(spec, len(step.experts))
    weight = _weights(step, spec, numbers)
    experts = []
    for place, index in enumerate(step.expert_index):
        coef = weight[place] * scales[place]
        keep = spec.keep[place] if spec.keep and not spec.prunes else 1.0
        experts.append(
            ExpertScalars(
                index=index,
                coef=coef,
                vote=coef if spec.ballot == "weighted" else scales[place],
                share=weight[place] if spec.normalize else 1.0,
                window=windows[place],
                keep_below=KEEP_ALL if keep >= 1 else int(keep * KEEP_ALL),
            )
        )
    combine, divisor = _combination(spec)
    return FusedOp(
        rule=_rule(step, spec),
        experts=tuple(experts),
        elect=spec.elect,
        combine=combine,
        scale=spec.lambda_,
        divisor=divisor,
        seed=spec.seed,
        name_hash=name_hash(step.name),
        work=step.work,
        trim_by="variance" if spec.select < 1 else "magnitude",
        least=_least(spec, weight),
        pruning=_pruning(step, spec) if spec.prunes else None,
    )


def _rule(step: Step, spec: Spec) -> Rule:
    """A linear combination of deltas is one of task vectors."""
    combined = spec.rule == "linear_combination" and step.base is not None
    return "task_vector" if combined else spec.rule


def _least(spec: Spec, weight: tuple[float, ...]) -> float:
    """What sums of energies are held to; none of weights that no sum of which can lie below."""
    below = any(0 < w < spec.least_energy for w in weight)
    return spec.least_energy if spec.by_energy and below else 0.0


def _pruning(step: Step, spec: Spec) -> Pruning:
    length, stride = spec.rows(step.shape)
    odds = [
        Odds(index, *_bounds(keep, epsilon))
        for index, keep, epsilon in zip(step.expert_index, spec.keep, spec.epsilon, strict=True)
    ]
    return Pruning(tuple(odds), length, stride, spec.seed, name_hash(step.name), step.work)


def _bounds(keep: float, epsilon: float) -> tuple[int, int]:
    if keep >= 1:
        return KEEP_ALL, KEEP_ALL
    if keep <= 0:
        return 0, 0
    return int((keep - epsilon) * KEEP_ALL), int((keep + epsilon) * KEEP_ALL)


def pruned(backend: Backend, op: FusedOp, tile: Tile) -> Tile:
    """A tile with the masks that its op's pruning gives."""
    if op.pruning is None:
        return tile
    return replace(tile, masks=backend.prune(op.pruning, tile))


def kept_by(op: FusedOp, masks: Masks) -> FusedOp:
    """What is left of an op over a tile with these masks, which stand in for its pruning, its coins
    and its windows on the variance; all of it where there are none."""
    if not masks:
        return op
    by_variance = op.trim_by == "variance"
    experts = tuple(
        replace(e, keep_below=KEEP_ALL, window=Window() if by_variance else e.window)
        for e in op.experts
    )
    return replace(op, experts=experts, trim_by="magnitude", pruning=None)


def _plain_scales(spec: Spec, experts: int) -> tuple[float, ...]:
    if spec.rescale == "drop_rate":
        kept = (d * k for d, k in zip(spec.density, spec.keep, strict=True))
        return tuple(1.0 / share if share else 1.0 for share in kept)
    return (1.0,) * experts


def _weights(step: Step, spec: Spec, numbers: Numbers) -> tuple[float, ...]:
    if spec.geometry is not None:
        return _coefficients(step, numbers.gram)
    return numbers.weights or spec.shares or spec.weight or (1.0,) * len(step.experts)


def _coefficients(step: Step, gram: Gram | None) -> tuple[float, ...]:
    """What a step's geometry makes of its Gram matrix; NaN of one that is not finite, as the fused
    pass finds the NaN or Inf behind that, or calls the result too large."""
    assert step.spec is not None and step.spec.geometry is not None
    assert gram is not None, f"{step.name}: no Gram matrix"
    if not all(math.isfinite(dot) for row in gram for dot in row):
        return (math.nan,) * len(gram)
    try:
        return step.spec.geometry.coefficients(gram)
    except ValueError as error:
        raise MergeError(f"{step.name}: {error}") from error


def numbers_of(
    backend: Backend, tensors: Tensors, windows: tuple[Window, ...] | None = None
) -> Numbers:
    """What the spec of one tensor asks of it besides thresholds; see Spec.asks."""
    (step,) = tensors.steps
    if step.spec is None or step.spec.asks is None:
        return NOTHING
    function = step.spec.function
    if function is not None and function.survey is not None:
        return Numbers(found=_found(function, Survey(backend, tensors), step.name))
    if step.spec.geometry is not None:
        return Numbers(gram=_gram(backend, tensors))
    if step.spec.rescale == "l1":
        return _l1_scales(backend, tensors, windows)
    return _by_variance(backend, tensors)


def _found(function: Function, tensor: Survey, name: str) -> Found:
    """What a function's survey says of a tensor; RecipeError where it fails."""
    assert function.survey is not None
    try:
        found = function.survey(tensor, **dict(function.parameters))
    except MergeError:
        raise
    except Exception as error:
        raise RecipeError(
            f"tensor {name}: the survey of {function.name} failed: {type(error).__name__}: {error}"
        ) from error
    kinds = (torch.Tensor, PerRow, PerColumn)
    if isinstance(found, Mapping) and all(isinstance(each, kinds) for each in found.values()):
        return found
    raise RecipeError(
        f"tensor {name}: the survey of {function.name} returned {found!r:.80}; want a dict of "
        "tensors, PerRow or PerColumn"
    )


def _gram(backend: Backend, tensors: Tensors) -> Gram:
    """The dot products of one tensor's experts, the blocks of all its tiles added in order."""
    (step,) = tensors.steps
    total = np.zeros((1, len(step.experts), len(step.experts)))
    for _, tile in tensors.tiles():
        total = in_order(total, backend.gram(tile, step.work))
    return tuple(map(tuple, total[0].tolist()))


def _l1_scales(backend: Backend, tensors: Tensors, windows: tuple[Window, ...] | None) -> Numbers:
    """What the l1 rescale multiplies each expert's kept deltas by."""
    (step,) = tensors.steps
    masks: Masks = ()
    op = fused_op(step, windows, Numbers(scales=(1.0,) * len(step.experts)))
    total = np.zeros((1, len(step.experts), 2))
    for _, tile in tensors.tiles():
        whole = tile.numel == step.numel
        masked = pruned(backend, op, tile)
        found = backend.masked_sums(op, masked, keep=whole)
        total = in_order(total, found.sums)
        masks = (found.masks or masked.masks) if whole else ()
    scales = tuple(_ratio(float(before), float(after)) for before, after in total[0])
    return Numbers(scales=scales, masks=masks)


def _by_variance(backend: Backend, tensors: Tensors) -> Numbers:
    """Where the deltas vary most, and what the mean squares of what is kept make of weights."""
    (step,) = tensors.steps
    spec = step.spec
    assert spec is not None, f"{step.name}: not a merge step"
    window = None
    if spec.select < 1:
        window = largest_variances(backend, tensors, spec.select)
    op = fused_op(step, None, Numbers(window=window))
    masks: Masks = ()
    total = np.zeros((1, len(step.experts)))
    for _, tile in tensors.tiles():
        whole = tile.numel == step.numel
        found = backend.energies(op, tile, keep=whole)
        total = in_order(total, found.sums)
        masks = found.masks if whole else ()
    numels = (step.numel,) * len(step.experts)
    weights = shares_of(total[0].tolist(), numels, spec.least_energy)
    return Numbers(window=window, masks=masks, weights=weights)


def in_order(total: np.ndarray, blocks: np.ndarray) -> np.ndarray:
    """The total so far and a tile's sums per block, added one block after the other: they come to
    the same however the tiles fall."""
    found: np.ndarray = np.add.accumulate(np.concatenate([total, blocks]))[-1:]
    return found


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
