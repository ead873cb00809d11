"""Means of directions instead of weights: what lies between models on a sphere."""

from __future__ import annotations

import math
from typing import Annotated

from mergekern.fused import Rule
from mergekern.geometry import Karcher, MultiSlerp, NuSlerp, Slerp
from mergekern.methods import rowwise
from mergekern.methods.parameters import Doc
from mergekern.methods.registry import method
from mergekern.methods.weights import check_divisible
from mergekern.spec import AS_IS, Spec

PerModel = tuple[float, ...]
COMBINATION: Rule = "linear_combination"


@method(
    "slerp",
    base_role="first",
    models=(2, 2),
    lone=True,
    title="along the arc from the base to another model",
    paper="Shoemake 1985",
)
def slerp(*, t: Annotated[float, Doc("how far: 0 is the base, 1 the other model")]) -> Spec:
    """out = sin((1 - t) a) / sin(a) base + sin(t a) / sin(a) x

    a is the angle between the two tensors, each taken as one vector. It decides the coefficients;
    lengths stay those of the tensors. Where |cos a| > 0.9995, as between most fine-tunes of one
    model, out = (1 - t) base + t x. Norms up to 1e-8 count as 1 in the cosine.
    """
    return Spec(rule=COMBINATION, geometry=Slerp(t))


@method(
    "nuslerp",
    base_role="optional",
    models=(2, 2),
    lone=True,
    title="slerp by weights, of models or of task vectors",
    paper="mergekit",
)
def nuslerp(
    *,
    weight: Annotated[PerModel, Doc("the second one's share of the sum is how far to go")] = (1.0,),
    nuslerp_flatten: Annotated[
        bool, Doc("the tensor is one vector; false: each row is, with an angle of its own")
    ] = True,
    nuslerp_row_wise: Annotated[
        bool, Doc("rows lie along the first dimension, not the last; if not flattened")
    ] = False,
) -> Spec:
    """out = sin((1 - t) a) / sin(a) v_1 + sin(t a) / sin(a) v_2
    t = weight_2 / (weight_1 + weight_2)

    v_k = x_k, or with a base v_k = x_k - base, and out = base + that. a is the angle between v_1
    and v_2, whose norms count as 1e-7 at the least. t is 0.5 where the weights sum to less than
    1e-6. Where v_1 and v_2 point the same way or, as far as fp32 can tell, opposite ways,
    out = (1 - t) v_1 + t v_2. One model alone stays as it is.
    """
    if len(weight) == 1:
        return AS_IS
    total = sum(weight)
    t = weight[1] / total if abs(total) >= 1e-6 else 0.5
    if not nuslerp_flatten:
        return rowwise.row_wise("nuslerp", rowwise.nuslerp, 0 if nuslerp_row_wise else -1, t=t)
    return Spec(rule=COMBINATION, geometry=NuSlerp(t))


@method(
    "multislerp",
    base_role="optional",
    title="the weighted mean direction of any number of models",
    paper="mergekit",
)
def multislerp(
    *,
    weight: Annotated[PerModel, Doc("factor of each model's direction and length")] = (1.0,),
    normalize_weights: Annotated[bool, Doc("divide the weights by their sum")] = True,
    eps: Annotated[float, Doc("what norms are kept from zero by", "[0, inf)")] = 1e-8,
) -> Spec:
    """out = (sum_k weight_k |v_k|) cos(eps) m / |m|;   m = sum_k weight_k v_k / (|v_k| + eps)

    v_k = x_k, or with a base v_k = x_k - base, and out = base + that. mergekit writes m as the
    point of a tangent plane; the tangents at the weighted mean sum up to zero. Where |m| < eps (or
    1e-7, the rounding of such a sum), directions cancel: of two models, and where all |v_k| <= eps,
    out = sum_k weight_k v_k, else it is an error. One model alone stays as it is.
    """
    if len(weight) == 1:
        return AS_IS
    if normalize_weights:
        check_divisible(weight, "normalize_weights")
        total = math.fsum(weight)
        weight = tuple(w / total for w in weight)
    return Spec(rule=COMBINATION, geometry=MultiSlerp(weight, eps))


@method(
    "karcher",
    base_role="input",
    title="the Riemannian mean of directions",
    paper="arXiv:2603.04972",
)
def karcher(
    *,
    max_iter: Annotated[int, Doc("steps at the most")] = 10,
    tol: Annotated[
        float,
        Doc("angles and steps below it are none, norms up to it have no direction", "[0, inf)"),
    ] = 1e-5,
) -> Spec:
    """out = (mean_k |x_k|) m;   m = argmin over |m| = 1 of sum_k angle(m, x_k)^2

    From the mean of all x_k / |x_k|, normalized (the first of them where that is shorter than tol),
    m moves by the mean of the vectors that point along the sphere to each of them, as long as the
    angle, until that is below `tol`. A base model is one more input.
    """
    return Spec(rule=COMBINATION, geometry=Karcher(max_iter, tol))
