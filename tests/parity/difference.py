"""How far two outputs of one recipe lie apart, in ulps, and why.

An element's ulp is the spacing of the output dtype's numbers at the larger of the two outputs; at
its `operand`, that at the largest number that the element is made of: an input, or what is added to
the base. The second bounds what rounding can do where the output is a small difference of large
numbers. An element further off than LIMITS has one of REASONS, or the comparison fails.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

REASONS = {
    "m": "mergekit's own rounding: its float64 run agrees with mergekern",
    "t": "a tie at a threshold, of which either tool keeps others",
    "v": "a vote that cancels up to rounding",
    "c": "cancellation: within the limit at the magnitude of the element's operands",
    "f": "mergekit takes its statistics over fused experts",
}
LIMITS = {torch.float32: 2.0, torch.bfloat16: 1.0, torch.float16: 1.0, torch.float64: 1e8}
DIGITS = {torch.float32: 23, torch.bfloat16: 7, torch.float16: 10, torch.float64: 52}
LEAST = {torch.float32: -126, torch.bfloat16: -126, torch.float16: -14, torch.float64: -1022}


def ulp(x: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """The spacing of the dtype's numbers at |x|."""
    exponent = np.maximum(np.frexp(np.abs(x))[1] - 1, LEAST[dtype])
    return np.ldexp(1.0, exponent - DIGITS[dtype])


def wide(tensor: torch.Tensor) -> np.ndarray:
    return tensor.double().numpy()


@dataclass
class Difference:
    """Of any number of tensors.

    at_output, at_operand: the largest differences, in ulps at these magnitudes
    beyond: elements further off than one ulp at the output
    why:    elements beyond the limit, by reason; "?" for none
    faults: what is not a matter of numbers: missing tensors, other shapes
    """

    elements: int = 0
    beyond: int = 0
    at_output: float = 0.0
    at_operand: float = 0.0
    why: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    notes: set[str] = field(default_factory=set)

    def add(self, other: Difference) -> None:
        self.elements += other.elements
        self.beyond += other.beyond
        self.at_output = max(self.at_output, other.at_output)
        self.at_operand = max(self.at_operand, other.at_operand)
        self.why += other.why
        self.faults += other.faults
        self.notes |= other.notes

    @property
    def settled(self) -> bool:
        return not self.faults and not self.why["?"]

    @property
    def cell(self) -> str:
        if self.faults:
            return "FAULT"
        share = 100 * self.beyond / max(1, self.elements)
        letters = "".join(sorted(letter for letter, count in self.why.items() if count))
        off = f" {share:.2g}%" if self.beyond else ""
        return f"{self.at_operand:.2g}{off}{' ' + letters if letters else ''}"


def difference(
    got: torch.Tensor,
    want: torch.Tensor,
    *,
    operands: Sequence[torch.Tensor] = (),
    exact: torch.Tensor | None = None,
    edges: Mapping[str, np.ndarray] | None = None,
    dtype: torch.dtype | None = None,
) -> Difference:
    """got: mergekern's; want: mergekit's; exact: mergekit's in float64, where it was run.

    operands: the inputs; without them, the largest outputs of each row stand for them
    edges:    reason -> elements where a choice hangs on the last bits
    dtype:    in whose ulps, if not in want's
    """
    dtype = dtype or want.dtype
    a, b = wide(got), wide(want)
    largest = np.maximum(np.abs(a), np.abs(b))
    top = largest
    for tensor in operands:
        top = np.maximum(top, np.abs(wide(tensor)))
    if not operands and top.ndim:
        top = np.broadcast_to(top.max(-1, keepdims=True), top.shape) if top.size else top
    off = np.abs(a - b)
    fine, coarse = ulp(largest, dtype), ulp(top, dtype)
    limit = LIMITS[dtype]
    left = ~(off <= limit * fine)  # NaN too
    found = Difference(
        elements=off.size,
        beyond=int((off > fine).sum()),
        at_output=float((off / fine).max(initial=0)),
        at_operand=float((off / coarse).max(initial=0)),
    )
    why: dict[str, np.ndarray] = {}
    if exact is not None:
        miss = np.abs(a - wide(exact))
        why["m"] = miss <= limit * fine
    why |= edges or {}
    why["c"] = off <= limit * coarse
    if exact is not None:
        why["m "] = miss <= limit * coarse
    for reason, where in why.items():
        found.why[reason.strip()] += int((left & where).sum())
        left = left & ~where
    found.why["?"] = int(left.sum())
    return found
