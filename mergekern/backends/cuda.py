"""The CUDA kernels: what device.py lays out, handed to csrc/cuda/ through _cuda."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType
from typing import TYPE_CHECKING

from mergekern.backends.launch import Pass
from mergekern.dtypes import FLOAT32, FLOAT64, DType, parse_dtype
from mergekern.lazily import torch

if TYPE_CHECKING:
    from mergekern import _cuda


class CudaKernels:
    """native: mergekern._cuda, or the same sources compiled as C++ for the memory of the host."""

    name = "cuda"

    def __init__(self, native: ModuleType, device: torch.device) -> None:
        self.span: int = native.SPAN
        self._native = native
        self._device = device
        self._tables: dict[tuple[DType, ...], torch.Tensor] = {}
        codes = native.DType.__members__.items()
        self._codes = {parse_dtype(name): code for name, code in codes}

    def fuse(self, todo: Pass) -> None:
        scalars = [
            self._native.Scalars(
                coef=e.coef, vote=e.vote, share=e.share, index=e.index, keep_below=e.keep_below
            )
            for e in todo.op.experts
        ]
        doubts = torch.empty(todo.blocks, dtype=torch.int32, device=self._device)
        native = self._pass_of(todo)
        native.doubts = doubts.data_ptr()
        self._native.fuse(native, scalars, *self._queue())

    def count(
        self,
        todo: Pass,
        brackets: torch.Tensor,
        above: torch.Tensor,
        inside: torch.Tensor,
        tallies: torch.Tensor,
    ) -> None:
        native = self._pass_of(todo)
        self._native.count(
            native,
            above.shape[0],
            brackets.data_ptr(),
            len(brackets),
            above.data_ptr(),
            inside.data_ptr(),
            tallies.data_ptr(),
            *self._queue(),
        )

    def gather(
        self, todo: Pass, index: torch.Tensor, starts: torch.Tensor, lines: torch.Tensor
    ) -> None:
        self._gather(todo, index, starts, lines, back=False)

    def scatter(
        self, todo: Pass, index: torch.Tensor, starts: torch.Tensor, lines: torch.Tensor
    ) -> None:
        self._gather(todo, index, starts, lines, back=True)

    def _gather(
        self,
        todo: Pass,
        index: torch.Tensor,
        starts: torch.Tensor,
        lines: torch.Tensor,
        *,
        back: bool,
    ) -> None:
        addresses = (index.data_ptr(), starts.data_ptr(), lines.data_ptr())
        self._native.gather(self._pass_of(todo), *addresses, len(index), back, *self._queue())

    def masked_sums(self, todo: Pass, out: torch.Tensor) -> None:
        native = self._pass_of(todo)
        self._native.masked_sums(native, out.shape[0], out.data_ptr(), *self._queue())

    def gram(self, todo: Pass, out: torch.Tensor) -> None:
        native = self._pass_of(todo)
        self._native.gram(native, out.shape[0], out.data_ptr(), *self._queue())

    def _pass_of(self, todo: Pass) -> _cuda.Pass:
        """A pass in the words of pass.h."""
        op, native = todo.op, self._native.Pass()
        native.rule = getattr(self._native.Rule, op.rule)
        native.elect = getattr(self._native.Elect, op.elect)
        native.combine = getattr(self._native.Combine, op.combine)
        native.scale, native.divisor, native.seed = op.scale, op.divisor, op.seed
        native.has_base, native.merges = todo.base is not None, todo.out is not None
        native.wide = op.work == FLOAT64
        native.base = self._codes[todo.base or FLOAT32]
        native.expert = self._codes[todo.experts[0]]
        native.out = self._codes[todo.out or FLOAT32]
        native.experts = len(todo.experts)
        native.tiles, native.blocks = len(todo.segments), todo.blocks
        native.per_expert = 0 if todo.windows is None else todo.windows.shape[2]
        native.windows = 0 if todo.windows is None else todo.windows.data_ptr()
        for name in ("segments", "scalars", "coins", "found", "kept"):
            setattr(native, name, getattr(todo, name).data_ptr())
        if len(set(todo.experts)) > 1:
            native.dtypes = self._table_of(todo.experts).data_ptr()
        return native

    def _table_of(self, dtypes: tuple[DType, ...]) -> torch.Tensor:
        """On the device, kept: a launch may read it after the call that queued it."""
        if dtypes not in self._tables:
            codes = [int(self._codes[dtype]) for dtype in dtypes]
            self._tables[dtypes] = torch.tensor(codes, dtype=torch.uint8, device=self._device)
        return self._tables[dtypes]

    def _queue(self) -> tuple[int, int]:
        """Where a launch goes: the device, and its current stream."""
        if self._device.type != "cuda":
            return 0, 0
        stream = torch.cuda.current_stream(self._device)
        return stream.device_index, stream.cuda_stream


def is_built() -> bool:
    return importlib.util.find_spec("mergekern._cuda") is not None


def missing() -> str | None:
    """Why the kernels cannot run here; None where they can."""
    if not is_built():
        return "mergekern was built without nvcc"
    return None if torch.cuda.is_available() else "torch sees no CUDA device"


def kernels(device: torch.device) -> CudaKernels:
    """device: of type cuda, with an index"""
    return CudaKernels(importlib.import_module("mergekern._cuda"), device)
