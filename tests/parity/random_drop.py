"""What must hold of methods that draw numbers: the shares that they keep, and their rule given what
they kept. One model, so that what was kept can be seen in the output."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from difference import Difference, ulp, wide
from recipes import Case

FAR = 5.0  # standard deviations
Tensors = Mapping[str, torch.Tensor]


def kept(base: np.ndarray, out: np.ndarray) -> np.ndarray:
    return out != base


def drop_faults(case: Case, base: Tensors, expert: Tensors, out: Tensors) -> list[str]:
    """How an output departs from what the method promises; nothing, when it does not."""
    parameters = case.documents[0]["models"][0]["parameters"]
    share = _Share(parameters["density"], parameters.get("epsilon", 0.0))
    for name, tensor in out.items():
        share.count(wide(base[name]), wide(expert[name]), wide(tensor), base[name].dtype)
    return share.faults()


class _Share:
    """Kept elements among those that would be seen, in the upper and lower half of magnitudes."""

    def __init__(self, density: float, epsilon: float) -> None:
        self.density, self.epsilon = density, epsilon
        self.seen, self.kept = [0, 0], [0, 0]

    def count(self, b: np.ndarray, x: np.ndarray, out: np.ndarray, dtype: torch.dtype) -> None:
        d = np.abs(x - b)
        visible = d > 4 * ulp(b, dtype)
        upper = d >= np.median(d, axis=-1, keepdims=True)
        for half, where in enumerate((visible & ~upper, visible & upper)):
            self.seen[half] += int(where.sum())
            self.kept[half] += int((kept(b, out) & where).sum())

    def faults(self) -> list[str]:
        found = []
        for half, name in enumerate(("lower", "upper")):
            # Ranks are spread evenly over each half: their mean is a quarter off the middle.
            want = self.density + (0.5 * self.epsilon) * (1 if half else -1)
            n = self.seen[half]
            slack = FAR * math.sqrt(want * (1 - want) / n) if n else 1.0
            # Only visible magnitudes are counted, and magnitudes have ties.
            slack += 0.1 * self.epsilon
            share = self.kept[half] / max(1, n)
            if abs(share - want) > slack:
                found.append(f"{share:.3f} of the {name} half kept, wanted {want:.3f}")
        return found


def by_the_rule(
    case: Case, base: Tensors, expert: Tensors, out: Tensors, limit: float
) -> Difference:
    """An output in fp32 against its formula, given what it kept; limit: ulps it may miss."""
    found = Difference()
    recipe: Mapping[str, Any] = case.documents[0]
    weight = recipe["models"][0]["parameters"]["weight"]
    rescale = recipe.get("parameters", {}).get("rescale", True)
    if case.method == "della":  # divided by the weight that agrees, its own
        weight = 1.0
    for name, tensor in out.items():
        b, x, got = wide(base[name]), wide(expert[name]), wide(tensor)
        d = x - b
        mask = kept(b, got)
        left = np.abs(d[mask]).sum()
        scale = np.abs(d).sum() / left if rescale and left > 1e-7 else 1.0
        want = b + np.where(mask, weight * scale * d, 0.0)
        top = np.maximum(np.maximum(np.abs(b), np.abs(x)), np.abs(want))
        off = np.abs(got - want) / ulp(top, torch.float32)
        found.add(
            Difference(
                elements=off.size,
                beyond=int((off > 1).sum()),
                at_operand=float(off.max()),
                faults=[f"{name}: {off.max():.3g} ulps off its rule"] if off.max() > limit else [],
            )
        )
    return found
