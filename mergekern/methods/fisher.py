"""Fisher merging: every weight averaged by how much each model's predictions hang on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from mergekern.errors import RecipeError
from mergekern.function import Function
from mergekern.lazily import torch
from mergekern.methods.functions import digest
from mergekern.methods.parameters import Doc
from mergekern.methods.presets import PRESETS
from mergekern.methods.registry import method
from mergekern.spec import Rest, Spec

if TYPE_CHECKING:
    from torch import Tensor

EPSILON = 1e-10  # added to every diagonal: where all are 0, the models count by their weights

REST = Annotated[
    Rest,
    Doc(
        "tensors without statistics: base, the base's as it is; mean, by weight; vocabulary, the "
        "base's embeddings and heads and the mean of all others. Without a base: mean"
    ),
]


def important_mean(
    base: Tensor | None, experts: list[Tensor], *, weight: tuple[float, ...]
) -> Tensor:
    """sum_k i_k x_k / sum_k i_k, i_k = (F_k + 1e-10) weight_k

    experts: x_1 … x_K, F_1 … F_K
    """
    count = len(weight)
    total = torch.zeros_like(experts[0])
    importances = torch.zeros_like(experts[0])
    for x, fisher, w in zip(experts[:count], experts[count:], weight, strict=True):
        importance = (fisher + EPSILON) * w
        total = total + importance * x
        importances = importances + importance
    return total / importances


@method(
    "fisher",
    base_role="optional",
    statistics="fisher",
    title="mean of weights by how much predictions hang on each",
    paper="arXiv:2111.09832",
    presets=PRESETS["fisher"],
)
def fisher(
    *,
    weight: Annotated[tuple[float, ...], Doc("of each model, beside its Fisher", "[0, inf)")] = (
        1.0,
    ),
    rest: REST = "base",
) -> Spec:
    """out = sum_k weight_k (F_k + 1e-10) x_k / sum_k weight_k (F_k + 1e-10)

    F_k is the diagonal of model k's Fisher information, from `mergekern collect fisher`: name the
    file as `statistics` beside the model. A file of another model is refused. 1e-10, and
    the base's values where there are no statistics (rest=base), are MergeBench's.
    """
    if not any(weight):
        raise RecipeError("weights of fisher are all 0, and it divides by their sum: give one more")
    mean = Function("fisher", important_mean, None, digest(important_mean), (("weight", weight),))
    return Spec("function", weight, function=mean, statistics="fisher", rest=rest)
