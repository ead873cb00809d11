"""Flat runs of elements: numpy's in host memory, torch's where callers or devices have them.

Both are cut by slices, and tell their len(), dtype.itemsize and nbytes. What they do not have in
common is here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from mergekern import huge
from mergekern.dtypes import UINT8, DType, of_torch, to_torch
from mergekern.lazily import torch

Array: TypeAlias = "np.ndarray | torch.Tensor"

HOST = "cpu"


def is_host(array: Array) -> bool:
    return isinstance(array, np.ndarray) or array.device.type == HOST


def device_of(array: Array) -> str:
    """As torch writes it."""
    return HOST if isinstance(array, np.ndarray) else str(array.device)


def dtype_of(array: Array) -> DType:
    return array.dtype if isinstance(array, np.ndarray) else of_torch(array.dtype)


def is_contiguous(array: Array) -> bool:
    if isinstance(array, np.ndarray):
        return bool(array.flags.c_contiguous)
    return array.is_contiguous()


def address(array: Array) -> int:
    """Of the first element."""
    if isinstance(array, np.ndarray):
        found: int = array.__array_interface__["data"][0]
        return found
    return array.data_ptr()


def host_view(array: Array) -> np.ndarray:
    """The same memory as numpy's. Raises ValueError for what is strided, or not the host's."""
    if isinstance(array, np.ndarray):
        return array
    if not array.is_contiguous() or array.device.type != HOST:
        where = f"strides {array.stride()} on {array.device}"
        raise ValueError(f"want contiguous elements in host memory, not {where}")
    return _in_order(array.detach()).view(to_torch(UINT8)).numpy().view(of_torch(array.dtype))


def flat(tensor: torch.Tensor) -> Array:
    """A contiguous tensor's elements, as numpy's if it is the host's."""
    return host_view(tensor) if is_host(tensor) else _in_order(tensor)


def _in_order(contiguous: torch.Tensor) -> torch.Tensor:
    """Its elements with stride 1, which view(-1) does not give to a single one."""
    return contiguous.as_strided((contiguous.numel(),), (1,))


def to_host(array: Array) -> np.ndarray:
    """As numpy's, copied where the elements are strided or lie elsewhere."""
    return host_view(array if isinstance(array, np.ndarray) else array.cpu().contiguous())


def as_tensor(array: Array) -> torch.Tensor:
    """The same memory as torch's."""
    if not isinstance(array, np.ndarray):
        return array
    return torch.from_numpy(array.view(np.uint8)).view(to_torch(array.dtype))


def joined(arrays: Sequence[Array]) -> Array:
    """One behind the other, copied; all are of one kind."""
    if isinstance(arrays[0], np.ndarray):
        return np.concatenate(arrays)
    return torch.cat(list(arrays))  # type: ignore[arg-type]


def at(array: Array, index: np.ndarray) -> Array:
    """A copy of the elements at some places."""
    if isinstance(array, np.ndarray):
        return array[index]
    return array[as_tensor(index).to(array.device)]


def copy(source: Array, target: Array) -> None:
    """Both are in one place."""
    if isinstance(target, np.ndarray):
        target[:] = to_host(source)
    else:
        target.copy_(as_tensor(source))


def same_bytes(first: Array, second: Array) -> bool:
    """Of two on one device."""
    if isinstance(first, np.ndarray) and isinstance(second, np.ndarray):
        return np.array_equal(first.view(np.uint8), second.view(np.uint8))
    return torch.equal(*(as_tensor(each).view(to_torch(UINT8)) for each in (first, second)))


def reached(ascending: Array, value: int) -> int:
    """How many are no larger than a value."""
    if isinstance(ascending, np.ndarray):
        return int(np.searchsorted(ascending, value, side="right"))
    return int(torch.searchsorted(ascending, value, right=True))


def empty_like(array: Array, numel: int) -> Array:
    """Fresh elements of the same type in the same place."""
    if isinstance(array, np.ndarray):
        return huge.empty(numel, array.dtype)
    return array.new_empty(numel)
