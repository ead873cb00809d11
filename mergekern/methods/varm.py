"""VaRM, variation ratio merge: what changed most weighs most."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from mergekern.function import Function
from mergekern.lazily import torch
from mergekern.methods.functions import digest
from mergekern.methods.parameters import Doc
from mergekern.methods.registry import method
from mergekern.spec import Spec

if TYPE_CHECKING:
    from torch import Tensor


@method(
    "varm",
    base_role="required",
    title="weigh each matrix by how much it changed",
    paper="arXiv:2402.16107",
)
def varm(
    *,
    granularity: Annotated[
        Literal["model", "layer", "module", "matrix", "element"],
        Doc(
            "what has weights of its own: the model, each layer, each module of a layer (as "
            "self_attn and mlp), each tensor, each element"
        ),
    ] = "matrix",
) -> Spec:
    """d_k = x_k - base; c_k = E[d_k^2] / sum_j E[d_j^2];
    out = base + sum_k c_k d_k

    E is the mean over a tensor, over all of a module, a layer or the model, or of one element.
    Weights sum to 1, so that this is the weighted mean of the models; where nothing changed they
    are equal. What lies in no layer (embeddings, final norm, head) is a module and a layer of its
    own. The paper's best is the matrix; by elements it found a model that no longer speaks. Its
    released script compares the models with one another instead of the base and so comes to equal
    weights; this is the formula. Model, layer and module read the inputs twice.
    """
    if granularity == "element":
        return Spec("function", function=Function("varm", by_element, None, digest(by_element)))
    return Spec("task_vector", by_energy="tensor" if granularity == "matrix" else granularity)


def by_element(base: Tensor, experts: list[Tensor]) -> Tensor:
    """The sum, models in their order from +0 on."""
    deltas = [x - base for x in experts]
    total, merged = torch.zeros_like(base), torch.zeros_like(base)
    for d in deltas:
        total = total + d * d
    for d in deltas:
        share = torch.where(total > 0, d * d / total, 1 / len(deltas))
        merged = merged + share * d
    return base + merged
