"""EMR-Merging: one task vector for all models, and of each a mask of bits and a number."""

from __future__ import annotations

from typing import Annotated

from mergekern.methods.parameters import Doc
from mergekern.methods.registry import method
from mergekern.spec import Rescaler, Spec


@method(
    "emr",
    base_role="required",
    title="one task vector for all models, and of each a mask of bits",
    paper="arXiv:2405.17461",
    container=True,
)
def emr(
    *,
    rescaler: Annotated[
        Rescaler, Doc("sums over the whole model, or the released code's over means of tensors")
    ] = "paper",
) -> Spec:
    """tau_k = x_k - base; gamma = sgn(sum_k tau_k);
    epsilon = max |tau_k| over those with sgn(tau_k) = gamma; tau = gamma epsilon;
    M_k = 1[tau_k tau > 0]; lambda_k = sum |tau_k| / sum |M_k tau|;
    out = base + lambda_k M_k tau, the model of task k

    Elect, mask and rescale, by element, without data. What is written is no model but a container:
    tau once, in the dtype of the output, of every task a mask of one bit per element, and lambda_k,
    the sums going over all tensors that are unified. `mergekern materialise` takes a task's model
    out of it. Where the rescaler has nothing to divide by, it is 1.

    M_k and lambda_k are those of tau as it is stored. With rescaler=code, lambda_k = sum over
    tensors of mean |tau_k| / sum over tensors of mean |M_k tau|, as in the released code. There
    the sign of 0 is -1, moreover: of deltas that cancel it elects the most negative one, and none
    is elected here.

    What does not fit the base's tensor (other heads, grown vocabularies), what the base lacks, what
    is no float, and what fits in one of several models alone, is a task's own and kept as it is.
    """
    return Spec(rule="unify")
