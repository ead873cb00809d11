"""Localize-and-Stitch: the few elements that make each task vector, averaged where they meet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from mergekern.function import Function
from mergekern.lazily import torch
from mergekern.methods.functions import digest
from mergekern.methods.parameters import Doc
from mergekern.methods.presets import PRESETS
from mergekern.methods.registry import method
from mergekern.spec import Scope, Spec, Ties

if TYPE_CHECKING:
    from torch import Tensor

PerModel = tuple[float, ...]


@method(
    "localize_and_stitch",
    base_role="required",
    title="the largest deltas of each model, averaged where they meet",
    paper="arXiv:2408.13656",
    presets=PRESETS["localize_and_stitch"],
)
def localize_and_stitch(
    *,
    weight: Annotated[PerModel, Doc("factor of each model's delta")] = (1.0,),
    density: Annotated[
        PerModel, Doc("fraction of each delta that is kept: the paper's sparsity", "[0, 1]")
    ] = (0.1,),
    lambda_: Annotated[float, Doc("factor of the merged delta")] = 1.0,
    scope: Annotated[Scope, Doc("what a density ranges over: each tensor, the model")] = "model",
    ties: Annotated[
        Ties, Doc("of equal magnitudes at the threshold keep: the first by index, or all")
    ] = "index",
) -> Spec:
    """d_k = top_density(x_k - base), over the whole model; m_k = d_k is not 0;
    out = base + lambda * sum_k m_k weight_k d_k / sum_k m_k, base where no m_k is

    The dataless variant: a mask holds the largest magnitudes of a model's delta, int(density * n)
    of its n elements, at least one, and where masks meet deltas are averaged; stitch takes masks
    that were trained. An element that did not change is in no mask. The paper takes 5 to 10 %.
    MergeBench's code differs from it: deltas are taken from a base that earlier models have
    changed, and of the masks that meet two at most are counted.
    """
    return Spec(
        rule="task_vector",
        weight=weight,
        density=tuple(each or 1.0 for each in density),  # 0 leaves a model out
        gamma=(0.0,) * len(weight),
        keep=tuple(map(float, map(bool, density))),
        elect="any",
        ballot="unweighted",
        combine="mean",
        lambda_=lambda_,
        scope=scope,
        ties=ties,
    )


def stitched_mean(
    base: Tensor, experts: list[Tensor], *, weight: tuple[float, ...], lambda_: float
) -> Tensor:
    """base + lambda * sum_k m_k weight_k (x_k - base) / sum_k m_k, base where no m_k is

    experts: x_1 … x_K, m_1 … m_K; a mask is set where it is not 0
    """
    count = len(weight)
    total = torch.zeros_like(base)
    masks = torch.zeros_like(base)
    for x, m, w in zip(experts[:count], experts[count:], weight, strict=True):
        masked = m != 0
        total = total + torch.where(masked, (x - base) * w, 0.0)
        masks = masks + masked.to(base.dtype)
    return base + total / masks.clamp(min=1) * lambda_


@method(
    "stitch",
    base_role="required",
    statistics="masks",
    title="deltas where trained masks are, averaged where they meet",
    paper="arXiv:2408.13656",
)
def stitch(
    *,
    weight: Annotated[PerModel, Doc("factor of each model's delta")] = (1.0,),
    lambda_: Annotated[float, Doc("factor of the merged delta")] = 1.0,
) -> Spec:
    """out = base + lambda * sum_k m_k weight_k (x_k - base) / sum_k m_k, base where no m_k is

    Localize-and-Stitch with masks that were trained, m_k being that of model k, from
    `mergekern collect masks`: name the file as `statistics` beside the model. One that was made
    from another model, or for another base, is refused. Tensors without masks (embeddings and
    head, unless they were asked for) stay the base's. localize_and_stitch does without data.
    """
    given = (("lambda_", lambda_), ("weight", weight))
    mean = Function("stitch", stitched_mean, None, digest(stitched_mean), given)
    return Spec("function", weight, function=mean, statistics="masks", rest="base")
