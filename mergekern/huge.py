"""Fresh tensors on huge pages: touching memory page by page costs more than a merge."""

from __future__ import annotations

import ctypes
import mmap

import torch

PAGE = 2 << 20
WORTH = 2 * PAGE  # below, no whole huge page may lie inside
HOST = torch.device("cpu")  # named, or torch.set_default_device() would have its way


def empty(
    shape: int | tuple[int, ...], dtype: torch.dtype, device: torch.device = HOST
) -> torch.Tensor:
    """torch.empty, with huge pages where the system has them; elsewhere just torch.empty."""
    tensor = torch.empty(shape, dtype=dtype, device=device)
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if advice is not None and tensor.nbytes >= WORTH and tensor.device.type == "cpu":
        start = -(-tensor.data_ptr() // PAGE) * PAGE
        length = (tensor.data_ptr() + tensor.nbytes - start) // PAGE * PAGE
        # Advice only: where it is refused, the memory is as good as before.
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), advice)
    return tensor
