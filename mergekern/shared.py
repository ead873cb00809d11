"""What merges that run together need to know of tensors, found once for all that ask alike."""

from __future__ import annotations

from collections.abc import Hashable, Iterable

import numpy as np
import torch

from mergekern.backends import Backend
from mergekern.fused import FusedOp
from mergekern.sampling import Sample, draw
from mergekern.statistics import fused_op, sum_scales
from mergekern.table import Target
from mergekern.tiles import Tensors
from mergekern.trimming import Windows, exact_windows


class Shared:
    """Samples, and the windows and scales of what is being merged, by what was read for them."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._samples: dict[Hashable, Sample] = {}
        self._windows: dict[Hashable, Windows] = {}
        self._scales: dict[Hashable, tuple[float, ...] | None] = {}

    def forget(self) -> None:
        """Other tensors come now."""
        self._samples, self._windows, self._scales = {}, {}, {}

    def draw(
        self, target: Target, tensors: Tensors, work: torch.dtype, experts: Iterable[int]
    ) -> Sample:
        """A sample of the tensors that are ranked together."""
        wanted = frozenset(experts)
        key = (_read(target, target.whole_model), work, wanted)
        if key not in self._samples:  # one is as much as memory is counted for
            self._samples = {}
            self._samples[key] = draw(self._backend, tensors, work, wanted)
        return self._samples[key]

    def windows(self, target: Target, rows: np.ndarray, tensors: Tensors) -> Windows:
        """The exact windows of some rows' tensors, ranked together."""
        specs = (target.steps[row].spec for row in rows.tolist())
        trimming = tuple(None if spec is None else spec.trimming for spec in specs)
        key = (_read(target, rows), trimming)
        if key not in self._windows:
            self._windows[key] = exact_windows(self._backend, tensors)
        return self._windows[key]

    def op(
        self, target: Target, row: int, tensors: Tensors, windows: Windows | None = None
    ) -> FusedOp:
        """The op of one tensor; windows: where they are known already."""
        step, rows = target.steps[row], np.array([row])
        if windows is None:
            windows = self.windows(target, rows, tensors)
        mine = windows[step.name]
        assert step.spec is not None, f"{step.name}: not a merge step"
        key = (_read(target, rows), mine, step.spec.keep, step.spec.seed, step.spec.rescale)
        if key not in self._scales:
            self._scales[key] = sum_scales(self._backend, tensors, mine)
        return fused_op(step, mine, self._scales[key])


def _read(target: Target, rows: np.ndarray) -> Hashable:
    """Equal where the same tensors are read, as the same experts, in the same order."""
    steps = (target.steps[row] for row in rows.tolist())
    experts = tuple((step.expert_index, step.work) for step in steps)
    return rows.tobytes(), target.inputs[rows].tobytes(), experts
