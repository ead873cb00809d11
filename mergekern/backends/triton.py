"""The Triton kernels (kernels/) behind the interface that all backends for GPUs share.

Triton is imported when the first kernel is launched, and through mergekern.kernels alone. Under
TRITON_INTERPRET=1 the kernels run on tensors of the CPU, slowly.
"""

from __future__ import annotations

from types import ModuleType

import torch

from mergekern.backends.device import DeviceBackend, Pass
from mergekern.errors import RecipeError

SPAN = 8192
STEP = 1024


class TritonKernels:
    """span: elements of a block; step: how many of them at a time. Powers of two."""

    name = "triton"

    def __init__(self, span: int = SPAN, step: int = STEP) -> None:
        self.span = span
        self._step = min(step, span)
        self._launch = _kernels()

    def fuse(self, todo: Pass) -> None:
        if todo.blocks:
            with torch.cuda.device_of(todo.segments):
                self._launch.fuse(todo, self.span, self._step)


def _kernels() -> ModuleType:
    try:
        from mergekern.kernels import launch
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        raise RecipeError(
            'backend "triton" needs Triton: pip install "mergekern[triton]"'
        ) from error
    return launch
