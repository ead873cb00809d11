"""The task-vector family: one formula; its members differ in a row of a table.

    d_k  = x_k - base                                           task vector, delta
    d_k  = trim(d_k; density_k, gamma_k) or drop(d_k; density_k, epsilon_k)
    v_k  = rescale_k weight_k d_k                               value
    s    = sign of the sum of the ballots (a zero sum counts as +)
    a_k  = ballot_k has sign s                                  agreement
    out  = base + lambda * combine_k(a_k v_k)

Names and defaults mean what recipes written for mergekit mean by them. The papers' and PEFT's
variants are the options; presets.py gives them names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Literal

from mergekern.errors import RecipeError
from mergekern.methods.parameters import Doc, parameters_of
from mergekern.methods.presets import PRESETS
from mergekern.methods.registry import register
from mergekern.methods.weights import check_divisible
from mergekern.spec import Ballot, Rescale, Scope, Spec, Ties

PerModel = tuple[float, ...]


@dataclass(frozen=True)
class Member:
    """One method of the family. Its docstring is `doc`; `defaults` differ from the signature's."""

    name: str
    title: str
    paper: str
    doc: str
    sparsify: Literal["none", "trim", "drop", "drop by rank"]
    elects: bool
    outliers: bool = False
    normalize: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)
    inert: Mapping[str, str] = field(default_factory=dict)

    @property
    def drops(self) -> bool:
        return self.sparsify in ("drop", "drop by rank")

    @property
    def without(self) -> frozenset[str]:
        """Keywords of `task_vector` that have no place in this method."""
        return frozenset(
            (() if self.elects else ("elect", "ballot", "disjoint"))
            + (() if self.sparsify == "trim" else ("scope", "ties"))
            + (() if self.drops else ("seed",))
            + (() if self.sparsify == "drop by rank" else ("epsilon",))
            + (() if self.outliers else ("gamma",))
        )


def task_vector(
    member: Member,
    *,
    weight: Annotated[PerModel, Doc("factor of each model's delta")] = (1.0,),
    density: Annotated[PerModel, Doc("fraction of each delta that is kept", "[0, 1]")] = (1.0,),
    gamma: Annotated[
        PerModel, Doc("fraction trimmed off the top, as outliers, if density < 1", "[0, 1]")
    ] = (0.0,),
    epsilon: Annotated[
        PerModel, Doc("how far the odds of large and small deltas are off density", "[0, 1)")
    ] = (0.15,),
    lambda_: Annotated[float, Doc("factor of the merged delta")] = 1.0,
    normalize: Annotated[
        bool | None,
        Doc("divide by the sum of the (agreeing) weights", unset="true; false unless disjoint=sum"),
    ] = None,
    rescale: Annotated[
        Rescale,
        Doc(
            "after trim or drop: none; drop_rate, times 1/density; l1, back to the old sum of |d|",
            synonyms={True: "l1", False: "none", "true": "l1", "false": "none"},
        ),
    ] = "none",
    elect: Annotated[
        Literal["mass", "count"], Doc("elect signs by the sum of ballots, or by their number")
    ] = "mass",
    ballot: Annotated[Ballot, Doc("whether deltas vote with or without their weight")] = "weighted",
    disjoint: Annotated[
        Literal["sum", "mean", "max"],
        Doc("agreeing values are summed, divided by their number, or the largest is taken"),
    ] = "sum",
    scope: Annotated[Scope, Doc("what a density ranges over: each tensor, the model")] = "tensor",
    ties: Annotated[
        Ties, Doc("of equal magnitudes at the threshold keep: the first by index, or all")
    ] = "index",
    int8_mask: Annotated[bool, Doc("accepted for mergekit's recipes; changes no number")] = False,
    seed: Annotated[int, Doc("of the random drop")] = 0,
) -> Spec:
    """The family's formula, see the module; raises RecipeError for options that contradict."""
    if normalize is None:
        normalize = member.normalize and disjoint == "sum"
    if normalize and disjoint != "sum":
        raise RecipeError(
            f"normalize divides by the sum of the agreeing weights and disjoint={disjoint} does "
            "not sum: give one of them"
        )
    if normalize and not member.elects:
        check_divisible(weight)
    ones = (1.0,) * len(weight)
    trimmed = density if member.sparsify == "trim" else ones
    if member.sparsify == "drop by rank":
        check_odds(density, epsilon)
    return Spec(
        rule="task_vector",
        weight=weight,
        density=tuple(each or 1.0 for each in trimmed),  # a trim keeps one at the least
        gamma=gamma if member.outliers else (0.0,) * len(weight),
        keep=density if member.drops else tuple(map(float, map(bool, trimmed))),
        epsilon=epsilon if member.sparsify == "drop by rank" else (),
        rescale=rescale,
        elect=elect if member.elects else "none",
        ballot=ballot,
        combine=disjoint,
        normalize=normalize,
        lambda_=lambda_,
        scope=scope,
        ties=ties,
        seed=seed,
    )


def check_odds(density: PerModel, epsilon: PerModel) -> None:
    """RecipeError where density +- epsilon are no probabilities, or certain."""
    for d, e in zip(density, epsilon, strict=True):
        if 0 < d < 1 and not 0 < d - e <= d + e < 1:
            raise RecipeError(
                f"density {d:g} with epsilon {e:g} gives odds from {d - e:g} to {d + e:g}; both "
                "must lie between 0 and 1: give a smaller epsilon"
            )


NOTHING_TRIMMED = "task_arithmetic keeps every delta whole"

FAMILY = (
    Member(
        "task_arithmetic",
        "sum of task vectors",
        "arXiv:2212.04089",
        """out = base + lambda * sum_k weight_k (x_k - base)

        With `normalize` the sum is divided by the sum of the weights. `density` and `rescale` are
        accepted, as mergekit does, and change nothing.""",
        sparsify="none",
        elects=False,
        defaults={"normalize": False},
        inert={"density": NOTHING_TRIMMED, "rescale": NOTHING_TRIMMED},
    ),
    Member(
        "ties",
        "trim, elect signs, merge what agrees",
        "arXiv:2306.01708",
        """d_k = top_density(x_k - base); s = sign(sum_k weight_k d_k), + when zero;
        out = base + lambda * sum_k [sign d_k weight_k = s] weight_k d_k / sum_k [same] weight_k

        As mergekit: exactly int(density * n) magnitudes of each tensor are kept, at least one,
        weighted deltas vote, and the sum is divided by the weights that agree. preset="paper" trims
        over the whole model, lets unweighted deltas vote and divides by how many agree.""",
        sparsify="trim",
        elects=True,
        normalize=True,
    ),
    Member(
        "dare_linear",
        "random drop, then sum of task vectors",
        "arXiv:2311.03099",
        """d_k = coin(density_k) (x_k - base), rescaled;
        out = base + lambda * sum_k weight_k d_k

        As mergekit, what is left of a delta is rescaled to the sum of magnitudes it had (`l1`);
        the paper and PEFT multiply by 1/density (`drop_rate`). Coins are a function of seed,
        tensor name, model and index, so that threads and shards cannot change them.""",
        sparsify="drop",
        elects=False,
        defaults={"normalize": False, "rescale": "l1"},
    ),
    Member(
        "dare_ties",
        "random drop, elect signs, merge what agrees",
        "arXiv:2311.03099",
        """d_k = coin(density_k) (x_k - base), rescaled; s = sign(sum_k weight_k d_k), + when zero;
        out = base + lambda * sum_k [sign d_k weight_k = s] weight_k d_k

        The random drop takes the place of the trim of TIES. Rescaled as in dare_linear; the sum
        is not divided unless `normalize` says so.""",
        sparsify="drop",
        elects=True,
        defaults={"normalize": False, "rescale": "l1"},
    ),
    Member(
        "della_linear",
        "drop the smaller ones more often, then sum of task vectors",
        "arXiv:2406.11617",
        """d_k = coin(density_k - epsilon_k + 2 epsilon_k rank / (n - 1)) (x_k - base), rescaled;
        out = base + lambda * sum_k weight_k d_k

        The drop of the paper (MAGPRUNE): in each row of n elements along the second dimension (a
        vector is one row), the magnitude of rank 0 is kept with probability density - epsilon, the
        largest with density + epsilon; equal magnitudes are ranked by index. Both must lie between
        0 and 1, unless density is 1, which keeps everything. As mergekit, what is left is rescaled
        to the sum of magnitudes it had (`l1`); the paper divides each delta by its own probability.
        A row of one element is kept with probability density. Coins are those of dare_linear.""",
        sparsify="drop by rank",
        elects=False,
        defaults={"normalize": False, "rescale": "l1"},
    ),
    Member(
        "della",
        "drop the smaller ones more often, elect signs, merge what agrees",
        "arXiv:2406.11617",
        """d_k = coin(density_k - epsilon_k + 2 epsilon_k rank / (n - 1)) (x_k - base), rescaled;
        s = sign(sum_k weight_k d_k), + when zero;
        out = base + lambda * sum_k [sign d_k weight_k = s] weight_k d_k / sum_k [same] weight_k

        The drop of della_linear with the election of TIES; as mergekit, the sum is divided by the
        weights that agree unless `normalize` is false.""",
        sparsify="drop by rank",
        elects=True,
        normalize=True,
        defaults={"rescale": "l1"},
    ),
    Member(
        "breadcrumbs",
        "trim both ends, then sum of task vectors",
        "arXiv:2312.06795",
        """d_k = (x_k - base) without its largest gamma_k and its smallest magnitudes;
        out = base + lambda * sum_k weight_k d_k

        Of n magnitudes int(gamma n) are cut off the top and int(density n) of the rest are kept, at
        least one; density wins where both do not fit. With density 1 nothing is
        trimmed, gamma included.""",
        sparsify="trim",
        elects=False,
        outliers=True,
        defaults={"normalize": False, "gamma": 0.01},
    ),
    Member(
        "breadcrumbs_ties",
        "trim both ends, elect signs, merge what agrees",
        "arXiv:2312.06795",
        """d_k = (x_k - base) without its largest gamma_k and its smallest magnitudes;
        s = sign(sum_k weight_k d_k), + when zero;
        out = base + lambda * sum_k [sign d_k weight_k = s] weight_k d_k

        The trim of breadcrumbs with the election of TIES; the sum is not divided unless
        `normalize` says so.""",
        sparsify="trim",
        elects=True,
        outliers=True,
        defaults={"normalize": False, "gamma": 0.01},
    ),
)

for _member in FAMILY:
    register(
        partial(task_vector, _member),
        _member.name,
        base_role="required",
        title=_member.title,
        paper=_member.paper,
        doc="\n".join(line.removeprefix(" " * 8) for line in _member.doc.splitlines()),
        parameters=parameters_of(task_vector, without=_member.without, defaults=_member.defaults),
        inert={"int8_mask": "it changes no number", **_member.inert},
        presets=PRESETS.get(_member.name),
    )
