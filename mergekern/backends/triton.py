"""The Triton kernels (kernels/) behind the interface that all backends for GPUs share.

Triton is imported when the first kernel is launched, and through mergekern.kernels alone. Under
TRITON_INTERPRET=1 the kernels run on tensors of the CPU, slowly.
"""

from __future__ import annotations

from types import ModuleType

import torch

from mergekern.backends.launch import Pass
from mergekern.errors import RecipeError

SPAN = 8192
STEP = 1024
ROWS = 1


class TritonKernels:
    """span: elements of a block; step: how many of them at a time; rows: of 16 elements,
    the same in sums. Powers of two."""

    name = "triton"

    def __init__(self, span: int = SPAN, step: int = STEP, rows: int = ROWS) -> None:
        self.span = span
        self._step = min(step, span)
        self._rows = rows
        self._launch = _kernels()

    def fuse(self, todo: Pass) -> None:
        if todo.blocks:
            with torch.cuda.device_of(todo.segments):
                self._launch.fuse(todo, self.span, self._step)


    def count(
        self,
        todo: Pass,
        brackets: torch.Tensor,
        above: torch.Tensor,
        inside: torch.Tensor,
        tallies: torch.Tensor,
    ) -> None:
        if todo.blocks and len(brackets):
            with torch.cuda.device_of(todo.segments):
                self._launch.count(todo, brackets, above, inside, tallies, self.span, self._step)

    def masked_sums(self, todo: Pass, out: torch.Tensor) -> None:
        if len(out):
            with torch.cuda.device_of(todo.segments):
                self._launch.masked_sums(todo, out, 8, self._rows)

    def gram(self, todo: Pass, out: torch.Tensor) -> None:
        if len(out):
            with torch.cuda.device_of(todo.segments):
                self._launch.gram(todo, out, 8, self._rows)


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
