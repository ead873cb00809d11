"""Averages of weights, without a base model."""

from __future__ import annotations

from typing import Annotated

from mergekern.methods.parameters import Doc
from mergekern.methods.registry import method
from mergekern.methods.weights import check_divisible
from mergekern.spec import Spec


@method("linear", base_role="input", title="weighted average, model soup", paper="arXiv:2203.05482")
def linear(
    *,
    weight: Annotated[tuple[float, ...], Doc("factor of each model's weights")] = (1.0,),
    normalize: Annotated[bool, Doc("divide by the sum of the weights")] = True,
) -> Spec:
    """out = (sum_k weight_k x_k) / (sum_k weight_k)

    Without `normalize` the sum is not divided. Equal weights give the plain average, the uniform
    model soup of Wortsman et al. 2022. A base model has no special part: to average it in, list it
    among the models.
    """
    if normalize:
        check_divisible(weight)
    return Spec(rule="linear_combination", weight=weight, normalize=normalize)
