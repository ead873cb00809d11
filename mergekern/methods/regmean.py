"""RegMean: linear layers that come closest to what every model makes of its own inputs."""

from __future__ import annotations

from typing import Annotated

from mergekern.errors import RecipeError
from mergekern.methods.fisher import REST
from mergekern.methods.parameters import Doc
from mergekern.methods.presets import PRESETS
from mergekern.methods.registry import method
from mergekern.spec import Regression, Singular, Spec, Statistics

WEIGHT = Annotated[tuple[float, ...], Doc("of each model's Gram matrices", "[0, inf)")]
REDUCTION = Annotated[
    float, Doc("what all elements off a Gram matrix's diagonal are multiplied by", "[0, 1]")
]
SINGULAR = Annotated[
    Singular,
    Doc("a tensor whose sum of matrices has no inverse: error, or mean, that by weight"),
]


def regression(
    name: str,
    statistics: Statistics,
    weight: tuple[float, ...],
    reduction: float,
    singular: Singular,
    rest: REST,
) -> Spec:
    """The spec of linear layers' least squares over these statistics."""
    if not any(weight):
        raise RecipeError(
            f"weights of {name} are all 0, which leaves nothing to solve for: give one more"
        )
    solved = Regression(weight, reduction, singular)
    return Spec("linear_combination", (1.0,), statistics=statistics, rest=rest, regression=solved)


@method(
    "regmean",
    base_role="optional",
    statistics="gram",
    presets=PRESETS["regmean"],
    title="linear layers nearest to all models' outputs, by least squares",
    paper="arXiv:2212.09849",
)
def regmean(
    *,
    weight: WEIGHT = (1.0,),
    reduction: REDUCTION = 0.9,
    singular: SINGULAR = "error",
    rest: REST = "vocabulary",
) -> Spec:
    """out = (sum_k G_k)^-1 sum_k G_k x_k, weights as [inputs, outputs]

    G_k = weight_k (reduction G + (1 - reduction) diag(G)) of the Gram matrix G of what the layer
    sees in model k, from `mergekern collect gram`: name the file as `statistics` beside the model.
    A file of another model is refused. An input that is 0 in all models' data has the mean of its
    weights. Computed in fp64 as the first model plus what the others' differences from it make.
    """
    return regression("regmean", "gram", weight, reduction, singular, rest)


@method(
    "regmean_plusplus",
    base_role="optional",
    statistics="regmean_plusplus",
    presets=PRESETS["regmean_plusplus"],
    title="regmean whose matrices are of what merged layers make",
    paper="arXiv:2508.03121",
)
def regmean_plusplus(
    *,
    weight: WEIGHT = (1.0,),
    reduction: REDUCTION = 0.9,
    singular: SINGULAR = "error",
    rest: REST = "vocabulary",
) -> Spec:
    """out = (sum_k G_k)^-1 sum_k G_k x_k, weights as [inputs, outputs]

    As regmean, but the Gram matrices of a layer are of what the merged layers before it make of
    model k's data. `mergekern collect regmean_plusplus` makes them for all models at once, along a
    merge with these parameters; a set that is not of these models, or not of one run, is refused.
    """
    return regression("regmean_plusplus", "regmean_plusplus", weight, reduction, singular, rest)
