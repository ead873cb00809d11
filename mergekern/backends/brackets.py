"""Cuts around the wanted ones of many tensors, from samples of them that stay on the device."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from mergekern.backends.groups import Groups
from mergekern.backends.launch import Pass
from mergekern.dtypes import FLOAT64, to_torch
from mergekern.fused import EVERY_INDEX, Batch, FusedOp
from mergekern.lazily import torch

SIGMAS = 4.5  # of a sampled rank; see mergekern/sampling.py
RUN = 64  # elements that are sampled together
LEAST, MOST = 1 << 14, 1 << 18  # elements of a sample
MOST_OF_MODEL = 1 << 22  # the more there is, the more it would leave open
GOLDEN = 0.6180339887498949


class Launches(Protocol):
    """What is needed of DeviceBackend."""

    device: torch.device

    def tables(self, op: FusedOp, batch: Batch, windows: None) -> Pass: ...

    def start(
        self,
        op: FusedOp,
        batch: Batch,
        windows: np.ndarray | torch.Tensor | None,
        marks: np.ndarray | None = None,
    ) -> Pass: ...

    def gather(
        self, todo: Pass, index: torch.Tensor, starts: torch.Tensor
    ) -> tuple[torch.Tensor, list[torch.Tensor]]: ...

    def scatter(
        self, todo: Pass, index: torch.Tensor, starts: torch.Tensor, values: torch.Tensor
    ) -> None: ...


def bracket(
    on: Launches, op: FusedOp, batch: Batch, groups: Groups, ranks: torch.Tensor
) -> torch.Tensor:
    """int64 [g, K, 3, 4]: given, strict and wide windows of groups, of which the last two very
    likely have the wanted cuts between them.

    By index, the given cuts are the strict ones. Where equal magnitudes stay together, a strict cut
    has none of its magnitude and a wide one all: so has the given one, if it is a lower cut, which
    makes it right in the common case that all of the bracket is one magnitude.
    """
    least, most = groups.least, MOST_OF_MODEL if groups.whole else MOST
    size = min(max(int(2 * least ** (2 / 3)), LEAST), most, least // 4) // RUN * RUN
    places = _spread_out(groups.total, size // RUN).flatten(1)
    base, experts = on.gather(on.tables(op, batch, None), *groups.located(places))
    work = to_torch(op.work)
    wide_base = base.to(work)
    bound = 2**63 - 1 if op.work == FLOAT64 else 2**31
    cuts = []
    for k, expert in enumerate(experts):
        bits = _magnitudes(expert.to(work) - wide_base).view(len(places), -1)
        keys = _Sample(bits, places, groups.total, bound, batch.by_index)
        cuts.append(torch.stack([keys.around(ranks[:, k, side]) for side in (0, 1)], 2))
    strict, wide = torch.stack(cuts, 1).unbind(2)  # [g, K, side, cut and last]
    given = strict.clone()
    if not batch.by_index:
        wide[..., 1] = given[:, :, 0, 1] = EVERY_INDEX
    found = torch.stack([given, strict, wide], 2)
    nothing = torch.tensor([[0, EVERY_INDEX], [EVERY_INDEX, EVERY_INDEX]], device=on.device)
    return torch.where(ranks[:, :, None, :, None] > 0, found, nothing).flatten(-2)


def _spread_out(numel: torch.Tensor, runs: int) -> torch.Tensor:
    """int64 [g, runs, RUN]: places in groups, in runs that lie evenly but in step with nothing."""
    number = torch.arange(runs, device=numel.device)
    first = number * numel[:, None] // runs
    room = (number + 1) * numel[:, None] // runs - first - RUN
    # In fp64, whatever torch's default is: fp16 would hold no room of large tensors.
    at = first + (room * (number.double() * GOLDEN % 1)).long()
    return at[:, :, None] + torch.arange(RUN, device=numel.device)


@dataclass(frozen=True)
class _Sample:
    """Magnitudes [g, S] of one expert in g groups of tensors, and their places there."""

    bits: torch.Tensor
    places: torch.Tensor
    numel: torch.Tensor
    bound: int
    by_index: bool

    def around(self, ranks: torch.Tensor) -> torch.Tensor:
        """int64 [g, 2, 2]: a cut and its last index above, and below, that of every rank."""
        size, order = self.bits.shape[1], self._order
        share = ranks.double() / self.numel
        middle = (share * size).round().long().clamp(1, size)
        value = self.bits.gather(1, order.gather(1, middle[:, None] - 1))
        spread = self._spread(value, share)
        cuts = []
        for at, beyond in (
            (middle - spread, (self.bound, -1)),
            (middle + spread, (0, EVERY_INDEX)),
        ):
            chosen = order.gather(1, at.clamp(1, size)[:, None] - 1)
            last = self.places.gather(1, chosen) if self.by_index else torch.full_like(chosen, -1)
            key = torch.cat([self.bits.gather(1, chosen).long(), last], 1)
            inside = (at >= 1) & (at <= size)
            cuts.append(torch.where(inside[:, None], key, torch.tensor(beyond, device=key.device)))
        return torch.stack(cuts, 1)

    @cached_property
    def _order(self) -> torch.Tensor:
        return self.bits.argsort(dim=1, descending=True, stable=True)

    def _spread(self, value: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
        """How far a sampled rank may be off: as counts of one run differ from the next one's."""
        runs = self.bits.shape[1] // RUN
        reached = (self.bits >= value).view(-1, runs, RUN).sum(2).double()
        apart = (reached.diff(dim=1) ** 2).sum(1) / 2
        plain = self.bits.shape[1] * share * (1 - share)
        ties = (self.bits == value).sum(1) // runs
        return (SIGMAS * torch.maximum(apart, plain).sqrt()).long() + ties + 2


def _magnitudes(delta: torch.Tensor) -> torch.Tensor:
    return delta.abs().view(torch.int64 if delta.dtype == torch.float64 else torch.int32)
