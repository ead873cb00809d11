"""Model Stock: how far from the base the average of few fine-tunes should be."""

from __future__ import annotations

from typing import Annotated

from mergekern.geometry import ModelStock
from mergekern.methods import rowwise
from mergekern.methods.parameters import Doc
from mergekern.methods.registry import method
from mergekern.spec import Spec


@method(
    "model_stock",
    base_role="required",
    models=(2, None),
    title="between base and average, by the angle of the task vectors",
    paper="arXiv:2403.19522",
)
def model_stock(
    *,
    filter_wise: Annotated[
        bool, Doc("an angle for each row along the last dimension, not for each tensor")
    ] = False,
) -> Spec:
    """out = t mean_k x_k + (1 - t) base;   t = n c / (1 + (n - 1) c)

    of n models, c being the mean cosine of the angles between each two of their deltas x_k - base:
    the closer they agree, the nearer to their average. In a cosine the product of two norms counts
    as 1e-6 at the least. Where |1 + (n - 1) c| < 1e-6, t is 0. A tensor that only one model has
    besides the base (see --mismatch) is the base's: one delta has no angle to another.
    """
    if filter_wise:
        return rowwise.row_wise("model_stock", rowwise.model_stock, -1)
    return Spec(rule="linear_combination", geometry=ModelStock())
