"""Geometry by rows: each row of a tensor has a Gram matrix, and coefficients, of its own.

What geometry.py says of a tensor holds here for every row; numbers of all rows are computed at
once, in elementary.py's operations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import combinations, combinations_with_replacement
from typing import TYPE_CHECKING, Any, TypeAlias

from mergekern.elementary import angle, sine, total
from mergekern.function import Found, Function, PerColumn, PerRow
from mergekern.geometry import ANTIPODAL
from mergekern.lazily import torch
from mergekern.methods.functions import digest
from mergekern.spec import Spec

if TYPE_CHECKING:
    from torch import Tensor

    from mergekern.survey import Survey

Gram: TypeAlias = "dict[tuple[int, int], Tensor]"  # fp64 [rows] of each pair i <= j
Coefficients: TypeAlias = "Callable[..., list[Tensor]]"


def nuslerp(gram: Gram, *, t: float) -> list[Tensor]:
    """geometry.NuSlerp of every row."""
    first, second = (gram[k, k].sqrt().clamp(min=1e-7) for k in (0, 1))
    c = (gram[0, 1] / first / second).clamp(-1, 1)
    collinear = (1 - c * c <= 1e-16) | (c < ANTIPODAL)
    theta = angle(c)
    return [torch.where(collinear, part, sine(part * theta) / sine(theta)) for part in (1 - t, t)]


def model_stock(gram: Gram) -> list[Tensor]:
    """geometry.ModelStock of every row."""
    count = 1 + max(j for _, j in gram)
    pairs = list(combinations(range(count), 2))
    if not pairs:
        return [torch.zeros_like(gram[0, 0])]
    norms = [gram[k, k].sqrt() for k in range(count)]
    c = torch.zeros_like(norms[0])
    for i, j in pairs:
        c = c + (gram[i, j] / (norms[i] * norms[j]).clamp(min=1e-6)).clamp(-1, 1)
    c = c / torch.full_like(c, len(pairs))
    denominator = 1 + (count - 1) * c
    ratio = torch.where(denominator.abs() < 1e-6, 0.0, count * c / denominator)
    return [ratio / torch.full_like(c, count)] * count


def row_wise(name: str, coefficients: Coefficients, axis: int, **parameters: Any) -> Spec:
    """out = sum_k c_k v_k, or base + that of deltas v_k; rows lie along the last axis (-1), or the
    first (0)."""
    survey = partial(_survey, coefficients)
    source = digest(coefficients, _survey, combined)
    given = tuple(sorted({"axis": axis, **parameters}.items()))
    return Spec("function", function=Function(name, combined, survey, source, given))


def combined(
    base: Tensor | None, experts: list[Tensor], found: Mapping[str, Tensor], **_: Any
) -> Tensor:
    """The sum, experts in their order from +0 on."""
    out = torch.zeros_like(experts[0])
    for place, v in enumerate(_compared(base, experts)):
        out = out + v * found[f"coefficient_{place}"]
    return out if base is None else base + out


def _survey(coefficients: Coefficients, tensor: Survey, *, axis: int, **parameters: Any) -> Found:
    """The coefficients of every row."""
    if axis == 0:
        dots = tensor.column_sums(_products)
    else:
        dots = tensor.rows(lambda base, experts: total(_products(base, experts)).T).T
    pairs = list(combinations_with_replacement(range(tensor.inputs), 2))
    values = coefficients(dict(zip(pairs, dots, strict=True)), **parameters)
    return {
        f"coefficient_{place}": PerColumn(c) if axis == 0 else PerRow(c, tensor.row_width)
        for place, c in enumerate(values)
    }


def _products(base: Tensor | None, experts: list[Tensor]) -> Tensor:
    """Of each two: fp64 [pairs, ...]."""
    wide = [v.double() for v in _compared(base, experts)]
    return torch.stack([a * b for a, b in combinations_with_replacement(wide, 2)])


def _compared(base: Tensor | None, experts: list[Tensor]) -> list[Tensor]:
    return experts if base is None else [x - base for x in experts]
