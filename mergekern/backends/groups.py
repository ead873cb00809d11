"""Tiles that are ranked together: each by itself, or those of a whole model as one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mergekern.backends.launch import upload
from mergekern.fused import EVERY_INDEX
from mergekern.lazily import torch


@dataclass(frozen=True)
class Groups:
    """n tiles in g groups; those of a group follow each other.

    number: int64 [n], on the host: the group of every tile
    group:  int64 [n]: the same;  begin: int64 [n]: the place of its first element among all
    start:  int64 [n]: the same among its group's;  numel: int64 [n]: its elements
    total:  int64 [g]: elements of a group;  first: int64 [g]: the place of its first one among all
    least:  elements of the smallest group
    """

    number: np.ndarray
    group: torch.Tensor
    begin: torch.Tensor
    start: torch.Tensor
    numel: torch.Tensor
    total: torch.Tensor
    first: torch.Tensor
    least: int

    @classmethod
    def of(cls, number: np.ndarray, numel: np.ndarray, device: torch.device) -> Groups:
        total = np.zeros(int(number.max()) + 1, np.int64)
        np.add.at(total, number, numel)
        begin, first = np.cumsum(numel) - numel, np.cumsum(total) - total
        columns = [number, begin, begin - first[number], numel, total, first]
        tables = upload(np.concatenate(columns), device).split([len(c) for c in columns])
        names = ("group", "begin", "start", "numel", "total", "first")
        return cls(number, **dict(zip(names, tables, strict=True)), least=int(total.min()))

    @property
    def whole(self) -> bool:
        """Whether tiles are ranked with others."""
        return len(self.total) < len(self.numel)

    def windows(self, found: torch.Tensor) -> torch.Tensor:
        """[g, K, …, 4] -> [n, K, …, 4]: windows of groups as those of their tiles."""
        mine = found[self.group]
        shape = (-1, *(1 for _ in mine.shape[2:]))
        for column in (1, 3):
            last = mine[..., column] - self.start.view(shape)
            behind = last >= self.numel.view(shape) - 1
            mine[..., column] = torch.where(behind, EVERY_INDEX, last.clamp(min=-1))
        return mine

    def sums(self, counts: torch.Tensor) -> torch.Tensor:
        """[n, …] -> [g, …]: what was counted in tiles, by their groups."""
        found = counts.new_zeros((len(self.total), *counts.shape[1:]))
        return found.index_add_(0, self.group, counts)

    def located(self, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Places in groups, int64 [g, m], ascending, as Kernels.gather() takes them."""
        among = (places + self.first[:, None]).flatten()
        tile = torch.searchsorted(self.begin + self.numel, among, right=True)
        ends = torch.cat([self.begin, self.begin[-1:] + self.numel[-1:]])
        return among - self.begin[tile], torch.searchsorted(among, ends)
