"""Fused passes that call a method's function: the same for all backends but for the last step.

    for piece that stays in cache:
        result = function(its inputs, widened)      plain torch, in the work dtype
        out    = the kernels' sum of one, rounded   as every other rule rounds

The bytes are the same on every device as long as the function keeps to operations that are exact on
every element, as + - * / of tensors, abs, compare, where and sqrt are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from mergekern.arrays import Array, as_tensor, device_of
from mergekern.dtypes import DType, to_torch
from mergekern.errors import RecipeError
from mergekern.function import Function, values_at
from mergekern.fused import ExpertScalars, Findings, FusedOp, Tile
from mergekern.lazily import torch
from mergekern.pieces import each, pieces
from mergekern.tiles import cut

Inputs: TypeAlias = (
    "tuple[torch.Tensor | None, list[torch.Tensor]]"  # base and experts, in the work dtype
)
Fuse = Callable[[FusedOp, Tile, Array], Findings]

_ONE = (ExpertScalars(index=0, coef=1.0),)


def run(
    op: FusedOp,
    tile: Tile,
    out: Array,
    fuse: Fuse,
    finite: Callable[[Array], bool],
    threads: int = 1,
) -> Findings:
    """Backend.fuse() of an op whose rule is a function.

    fuse:   runs other rules, in the calling thread
    finite: whether a tensor holds neither NaN nor Inf
    """
    tile, out = tile.as_tensors(), as_tensor(out)
    rounding = FusedOp("linear_combination", _ONE, work=op.work)

    def one(part: tuple[int, int]) -> Findings:
        here = cut(tile, *part)
        result = _call(op, here, tile.offset + part[0])
        seen = fuse(rounding, Tile(tile.tensor, 0, None, (result,)), out[part[0] : part[1]])
        inputs = enumerate((here.base, *here.experts), start=-1)
        bad = tuple(place for place, x in inputs if x is not None and not finite(x))
        return Findings(bad, overflow=seen != Findings())

    found = Findings()
    for seen in each(threads, one, pieces(tile.numel, out.device)):
        found |= seen
    return found


def widened(tile: Tile, work: DType) -> Inputs:
    """Copies of the inputs, which a function may change in place."""
    wide = to_torch(work)
    base = None if tile.base is None else as_tensor(tile.base).to(wide, copy=True)
    return base, [as_tensor(x).to(wide, copy=True) for x in tile.experts]


def _call(op: FusedOp, tile: Tile, offset: int) -> torch.Tensor:
    function, device = op.function, as_tensor(tile.experts[0]).device
    assert function is not None, f"{tile.tensor}: no function"
    arguments: list[object] = [*widened(tile, op.work)]
    if function.survey is not None:
        arguments.append(values_at(op.found, offset, tile.numel, op.work, device))
    try:
        result = function.call(*arguments, **dict(function.parameters))
    except Exception as error:
        raise RecipeError(
            f"tensor {tile.tensor}: {function.name} failed: {type(error).__name__}: {error}"
        ) from error
    _check(function, tile, result, op.work)
    return result.contiguous().resolve_neg()  # a view may say "negate me", its bytes do not


def _check(function: Function, tile: Tile, result: object, work: DType) -> None:
    wanted = f"want a tensor of {to_torch(work)}, [{tile.numel}], as its inputs are"
    if not isinstance(result, torch.Tensor):
        found = type(result).__name__
    elif (result.shape, result.dtype) != ((tile.numel,), to_torch(work)):
        found = f"a tensor of {result.dtype}, {list(result.shape)}"
    elif result.layout != torch.strided:
        found = f"a tensor of layout {result.layout}"
    elif result.device != as_tensor(tile.experts[0]).device:
        found, wanted = f"a tensor on {result.device}", f"want one on {device_of(tile.experts[0])}"
    else:
        return
    raise RecipeError(f"tensor {tile.tensor}: {function.name} returned {found}; {wanted}")
