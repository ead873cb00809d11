"""Where the tensors of a model in memory lie, in columns for work on very many of them."""

from __future__ import annotations

from collections.abc import Collection
from functools import cached_property

import numpy as np

from mergekern.lazily import torch


class Placed:
    """An entry for every tensor, in order.

    begin:    uint64, the address of its first element
    end:      uint64, that behind its last one, strided or not
    in_order: its elements lie behind one another, as they are merged
    """

    def __init__(self, tensors: Collection[torch.Tensor]) -> None:
        self._tensors = tensors
        self.begin = np.fromiter(map(torch.Tensor.data_ptr, tensors), np.uint64, len(tensors))

    def chosen(self, places: np.ndarray, moved: np.ndarray) -> Placed:
        """Some of the tensors, in another order; those that are `moved` are read elsewhere, in an
        order of their own."""
        found = Placed(())
        found.begin, found.end = self.begin[places], self.end[places]
        found.in_order = self.in_order[places] & ~moved
        return found

    @cached_property
    def in_order(self) -> np.ndarray:
        return np.fromiter(map(torch.Tensor.is_contiguous, self._tensors), bool, len(self.begin))

    @cached_property
    def end(self) -> np.ndarray:
        return self.begin + np.fromiter(map(_reach, self._tensors), np.uint64, len(self.begin))


def _reach(tensor: torch.Tensor) -> int:
    """The bytes from a tensor's first element to behind its last one."""
    if tensor.is_contiguous():
        return tensor.nbytes
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    last = sum((size - 1) * stride for size, stride in steps)
    return (last + 1) * tensor.itemsize * (tensor.numel() > 0)
