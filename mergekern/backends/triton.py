"""The Triton kernels (kernels/) behind the interface that all backends for GPUs share.

Triton is imported when it is asked for, and through mergekern.kernels alone. Under
TRITON_INTERPRET=1 the kernels run on tensors of the CPU, slowly.
"""

from __future__ import annotations

from importlib.util import find_spec
from types import ModuleType

from mergekern.backends.launch import Pass
from mergekern.lazily import torch

SPAN = 8192
STEP = 1024
ROWS = 1
SUMS = 8  # times BLOCK elements in one block of a launch: a thread for each of their lanes


class TritonKernels:
    """span: elements of a block; step: how many of them at a time; rows: of 16 elements, the same
    in sums. Powers of two."""

    name = "triton"

    def __init__(self, span: int = SPAN, step: int = STEP, rows: int = ROWS) -> None:
        self.span = span
        self._step = min(step, span)
        self._rows = rows
        self._launch = _launch()

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

    def gather(
        self, todo: Pass, index: torch.Tensor, starts: torch.Tensor, lines: torch.Tensor
    ) -> None:
        with torch.cuda.device_of(index):
            self._launch.gather(todo, index, starts, lines, self._step)

    def scatter(
        self, todo: Pass, index: torch.Tensor, starts: torch.Tensor, lines: torch.Tensor
    ) -> None:
        with torch.cuda.device_of(index):
            self._launch.scatter(todo, index, starts, lines, self._step)

    def masked_sums(self, todo: Pass, out: torch.Tensor) -> None:
        if len(out):
            with torch.cuda.device_of(todo.segments):
                self._launch.masked_sums(todo, out, SUMS, self._rows)

    def gram(self, todo: Pass, out: torch.Tensor) -> None:
        if len(out):
            with torch.cuda.device_of(todo.segments):
                self._launch.gram(todo, out, SUMS, self._rows)


def missing() -> str | None:
    """Why the kernels cannot run here; None where they can."""
    if find_spec("triton") is None:
        return 'Triton is not installed: pip install "mergekern[triton]"'
    if torch.cuda.is_available() or _launch().interpreted():
        return None
    return "torch sees no GPU; on the CPU, take backend 'cpu'"


def kernels(device: torch.device) -> TritonKernels:
    """For the tensors of a GPU, or of the CPU where Triton interprets."""
    return TritonKernels()


def _launch() -> ModuleType:
    from mergekern.kernels import launch

    return launch
