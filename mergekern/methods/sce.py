"""SCE: select where the models vary, calculate their weights, erase signs of the minority."""

from __future__ import annotations

from typing import Annotated

from mergekern.methods.parameters import Doc
from mergekern.methods.registry import method
from mergekern.spec import Spec

LEAST_ENERGY = 1e-6  # of all energies together, and of those that are divided by


@method(
    "sce",
    base_role="required",
    title="select by variance, weigh by energy, merge what agrees",
    paper="arXiv:2408.07990",
    inert={"int8_mask": "it changes no number"},
)
def sce(
    *,
    select_topk: Annotated[
        float, Doc("fraction kept of the elements in which the models differ", "[0, 1]")
    ] = 1.0,
    int8_mask: Annotated[bool, Doc("accepted for mergekit's recipes; changes no number")] = False,
) -> Spec:
    """d_k = x_k - base where var_k(x_k - base) is among the largest, 0 elsewhere;
    c_k = mean(d_k^2) / sum_j mean(d_j^2); s = sign(sum_k d_k), + when zero;
    out = base + sum_k [sign d_k = s] c_k d_k / max(sum_k [same] c_k, 1e-6)

    Of each tensor int(select_topk * n) elements are kept, n being how many have a variance (over
    the models, of the population) that is not 0; equal ones by index, and with select_topk 1 all.
    As mergekit, weights are equal where the means of squares sum to less than 1e-6, as those of
    small fine-tunes do. The paper is that of FuseChat.
    """
    return Spec(
        rule="task_vector",
        elect="mass",
        ballot="unweighted",
        normalize=True,
        select=select_topk,
        by_energy="tensor",
        least_energy=LEAST_ENERGY,
    )
