"""Right first, then fast: what is timed must give the bits of the reference on a slice of it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

import mergekern

State = dict[str, Tensor]
CHECKED = 1 << 19  # elements of a model
BITS = {2: torch.int16, 4: torch.int32}


class WrongResult(Exception):
    """A figure of this would mean nothing."""


def same_bits(what: str, got: Tensor, want: Tensor) -> None:
    bits = BITS[want.itemsize]
    if got.dtype != want.dtype or not torch.equal(got.view(bits), want.view(bits)):
        raise WrongResult(f"{what}: {int((got != want).sum())} of {want.numel()} elements differ")


def same_states(what: str, got: Mapping[str, Tensor], want: Mapping[str, Tensor]) -> None:
    for name, tensor in want.items():
        same_bits(f"{what}: {name}", got[name], tensor)


def check_merge(method: str, models: list[State], threads: int, **parameters: object) -> None:
    """models: the base, then the experts."""
    each = CHECKED // len(models[0])
    base, *experts = [{n: t.flatten()[:each] for n, t in state.items()} for state in models]
    call = {"base": base, "models": experts, **parameters}
    got = mergekern.merge(method, threads=threads, **call)
    same_states(method, got, mergekern.merge(method, backend="reference", **call))
