"""What a method asks for: its parameters resolved for one tensor, before any number is read.

Statistics (thresholds, sums) turn a spec into a `FusedOp`; see statistics.py. Tuples hold one value
per expert that takes part in the tensor, in recipe order.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Literal

from mergekern.function import Function
from mergekern.fused import Combine, Elect, Rule
from mergekern.geometry import Geometry

Rescale = Literal["none", "drop_rate", "l1"]
Ballot = Literal["weighted", "unweighted"]
Scope = Literal["tensor", "model"]
Ties = Literal["index", "keep"]
Statistics = Literal["", "fisher", "gram", "regmean_plusplus", "masks"]
Rescaler = Literal["paper", "code"]
Emitted = Literal["vector", "mask", "sums"]
Rest = Literal["base", "mean", "vocabulary"]
Energy = Literal["", "tensor", "module", "layer", "model"]
Singular = Literal["error", "mean"]


@dataclass(frozen=True)
class Regression:
    """A tensor that is solved for: the least squares of what all models make of their inputs.

    W = (sum_k G_k)^-1 sum_k G_k W_k      G_k: weight_k times model k's Gram matrix, of which what
                                          lies off the diagonal is multiplied by the reduction
    singular: what becomes of a tensor whose sum of matrices has no inverse: an error, or the mean
    """

    weight: tuple[float, ...]
    reduction: float
    singular: Singular


@dataclass(frozen=True)
class Unify:
    """What of a unified task vector a step writes, of the rule "unify"; see fused.Unified.

    emits:  the vector, the packed mask of one expert, or the sums of all
    stored: the vector's dtype, by its name
    expert: whose mask, counted among those of the step
    """

    emits: Emitted
    stored: str
    expert: int = 0


@dataclass(frozen=True)
class Spec:
    """One tensor's merge in the words of the methods; methods/ documents each parameter.

    density and gamma trim by magnitude (keep the `density` fraction below the `gamma` largest);
    keep is the probability of the random drop's coin. All are 1, 0 and 1, or nothing, where not
    asked for. With a geometry, coefficients come from it and not from weights; a linear_combination
    of a step that has a base is one of deltas, and the base is added to it.
    function: of the rule "function", for which all else is left as it is.
    With epsilon the drop goes by rank within rows: keep is the middle of its odds, epsilon what
    they are off at the ends. select keeps the places where the deltas' variance is largest, that
    fraction of those where it is not 0. With by_energy a delta's mean square is its weight, over
    the tensor or what it is a part of, and weights are equal where the squares of all deltas have a
    mean of 0, or below least_energy. pool: what such tensors have in common, as the planner names
    it; shares: the weights of a pool, once they are found.
    statistics: of each expert, made from data elsewhere, are inputs behind the experts. rest says
    what becomes of a tensor that has none. With a regression they are the matrices of one, and what
    it finds is the one input of the rule.
    unify: of the rule "unify", for which all else is left as it is.
    What follows from them is found out once, as all tensors with equal parameters share a spec.
    """

    rule: Rule
    weight: tuple[float, ...] = ()
    density: tuple[float, ...] = ()
    gamma: tuple[float, ...] = ()
    keep: tuple[float, ...] = ()
    rescale: Rescale = "none"
    elect: Elect = "none"
    ballot: Ballot = "weighted"
    combine: Combine = "sum"
    normalize: bool = False
    lambda_: float = 1.0
    scope: Scope = "tensor"
    ties: Ties = "index"
    seed: int = 0
    geometry: Geometry | None = None
    function: Function | None = None
    epsilon: tuple[float, ...] = ()
    select: float = 1.0
    by_energy: Energy = ""
    least_energy: float = 0.0
    pool: str = ""
    shares: tuple[float, ...] = ()
    statistics: Statistics = ""
    rest: Rest = "mean"
    regression: Regression | None = None
    unify: Unify | None = None

    @cached_property
    def prunes(self) -> bool:
        """True when a random drop goes by rank within rows."""
        return bool(self.epsilon) and self.drops

    @cached_property
    def masks(self) -> bool:
        """True when what is kept of a tensor is found out once, and goes as masks from then on."""
        return self.prunes or self.select < 1 or (self.drops and self.rescale == "l1")

    @cached_property
    def drops(self) -> bool:
        return any(keep < 1 for keep in self.keep)

    def rows(self, shape: Sequence[int]) -> tuple[int, int]:
        """Length and stride of the rows of a tensor: they run along its second dimension, and are
        all of a vector."""
        if len(shape) < 2:
            return math.prod(shape), 1
        return shape[1], math.prod(shape[2:])

    def panel(self, shape: Sequence[int]) -> int:
        """Elements of a tensor that cannot be merged apart."""
        return max(1, math.prod(self.rows(shape))) if self.prunes else 1

    @cached_property
    def trims(self) -> bool:
        return any(density < 1 for density in self.density)

    @cached_property
    def trimming(self) -> Hashable:
        """All that thresholds depend on besides the tensors; None where nothing is trimmed."""
        return (self.density, self.gamma, self.scope, self.ties) if self.trims else None

    @cached_property
    def whole_model(self) -> bool:
        """True when a number of the whole model is needed before any tensor can be merged."""
        return self.trims and self.scope == "model"

    @cached_property
    def whole_tensor(self) -> bool:
        """True when numbers of the whole tensor are needed before its first element is merged."""
        if self.asks is not None or self.prunes:
            return True
        return self.trims and self.scope == "tensor"

    @cached_property
    def ranked(self) -> bool:
        """True when nothing but its own thresholds has to be known of a tensor."""
        plain = self.asks is None and not self.prunes
        return self.trims and self.scope == "tensor" and plain

    @cached_property
    def batched(self) -> bool:
        """True when small tensors may be merged together, by one call."""
        return self.function is None and self.unify is None

    @cached_property
    def one_pass(self) -> bool:
        """True when a trimmed tensor can be merged with guessed windows and set right afterwards.

        Not where all of an output hangs on them, as with the l1 rescale; nor with coins, which go
        by places; nor where outliers are cut off at a magnitude that is kept whole.
        """
        kept_whole = self.ties == "keep" and any(self.gamma)
        return self.trims and not (self.drops or kept_whole) and self.asks is None

    @cached_property
    def of_weights(self) -> bool:
        """True when its statistics weigh the models' weights, base or not; masks choose deltas."""
        return self.statistics not in ("", "masks")

    @cached_property
    def asks(self) -> Hashable:
        """All that statistics.numbers_of() depends on besides the tensor and its windows; None
        where a tensor's thresholds are all that is needed of it.

        A Gram matrix serves every geometry, so that a grid over t has it once.
        """
        if self.geometry is not None:
            return "gram"
        if self.rescale == "l1" and (self.trims or self.drops):
            return ("l1", self.keep, self.epsilon, self.seed)
        if self.function is not None and self.function.survey is not None:
            return self.function
        if self.select < 1 or self.by_energy == "tensor":
            return ("variance", self.select, self.by_energy, self.least_energy)
        return None

    @cached_property
    def mean(self) -> Spec:
        """The mean by weight, of tensors without the statistics."""
        weight = self.weight if self.regression is None else self.regression.weight
        return Spec("linear_combination", weight, normalize=True)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        function = None if self.function is None else self.function.to_dict()
        plain = asdict(replace(self, function=None)) | {"function": function}
        return plain if self.unify else {k: v for k, v in plain.items() if k != "unify"}


AS_IS = Spec("linear_combination", (1.0,))  # one model's tensor, unchanged
