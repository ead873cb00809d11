"""The tensors of a plan that are solved for, as a checkpoint that computes what is read of it.

    W = W_1 + (sum_k G_k)^-1 sum_k G_k (W_k - W_1)      weights as [inputs, outputs]

with G_k as in spec.Regression; so equal models come out as they are. One factor is held at a time,
and serves all tensors over the same matrices that follow one another; outputs are solved for some
at a time, for which matrices are read a few rows at a time. None of that changes a bit: every
element is a sum in a fixed order, see systems.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mergekern.arrays import HOST, Array, as_tensor, to_host
from mergekern.backends.cpu import all_finite
from mergekern.backends.streams import Stream
from mergekern.checkpoint.base import Checkpoint, TensorInfo
from mergekern.checkpoint.contents import Contents
from mergekern.checkpoint.files import FileState, WeightFile
from mergekern.checkpoint.placed import Placed
from mergekern.dtypes import FLOAT64
from mergekern.errors import MergeError, NonFiniteError
from mergekern.lazily import torch
from mergekern.plan import SOLVED, Equations, Input, Plan, Step
from mergekern.spec import Regression
from mergekern.systems import SingularError, Workers, shrunk

ROWS = 512  # of a matrix that are read at once


class Solutions:
    """Checkpoint(Protocol) of the tensors that have equations; they are fp64.

    Raises NonFiniteError for NaN and Inf in weights and matrices, and MergeError for matrices whose
    sum has no inverse, where the recipe says nothing of them.
    """

    on_disk = True  # what is read is computed in the buffer
    placed: Placed | None = None
    folder: Path | None = None
    notes: tuple[str, ...] = ()

    def __init__(self, plan: Plan, checkpoints: Sequence[Checkpoint], workers: Workers) -> None:
        self._steps = {step.name: step for step in plan.steps if step.equations is not None}
        self._checkpoints, self._workers = checkpoints, workers
        # One at a time, in the order asked for: each has all threads, and neighbours one factor.
        self._solver = ThreadPoolExecutor(1, thread_name_prefix="mergekern-solve")
        self._factor: tuple[Any, _Factor] | None = None
        self.label = plan.models[-1]
        self.device = checkpoints[plan.donor].device
        for device in {each.device for each in checkpoints} - {HOST}:
            Stream(torch.device(device), current=True).finish()  # read by another thread
        self.tensors = Contents(
            (name, TensorInfo(name, FLOAT64, step.shape, native=step.dtype))
            for name, step in self._steps.items()
        )
        self.shared: Mapping[str, str] = {}
        self.config: Mapping[str, Any] = {}
        self.generation_config: Mapping[str, Any] = {}
        self.states: Mapping[str, FileState] = {}
        self.files: Mapping[str, WeightFile] = {}
        # Known again as far as all that they come from is.
        fingerprint: dict[str, str] = {}
        for each in checkpoints:
            fingerprint |= each.fingerprint
        self.fingerprint: Mapping[str, str] = fingerprint

    def read(self, name: str, start: int, stop: int, buffer: np.ndarray | None) -> Array:
        """Elements [start, stop) as a view of the buffer's head; see Checkpoint.read."""
        if buffer is None:
            buffer = np.empty(8 * (stop - start), np.uint8)
        out = buffer[: 8 * (stop - start)].view(FLOAT64)
        self._solver.submit(self._compute, self._steps[name], start, out).result()
        return out if self.device == HOST else as_tensor(out).to(self.device)

    def verify_unchanged(self) -> None:
        """The files behind it are others' to look after."""

    def close(self) -> None:
        """Drop what has not begun, and the factor."""
        self._solver.shutdown(cancel_futures=True)
        self._factor = None

    @np.errstate(all="ignore")  # what is not finite is found in what is merged
    def _compute(self, step: Step, start: int, out: np.ndarray) -> None:
        """Elements from `start` on, as many as there is room for; whole rows at a time."""
        system = self._system(step)
        columns, stop = step.shape[1], start + len(out)
        first, last = start // columns, -(-stop // columns)
        if system.untransposed:
            rows = np.empty((last - first, columns))
            for begin, solved in system.solved(0, columns):
                rows[:, begin : begin + solved.shape[1]] = solved[first:last]
            out[:] = rows.reshape(-1)[start - first * columns :][: len(out)]
            return
        for begin, solved in system.solved(first, last):
            offset = begin * columns - start
            rows = solved.T.reshape(-1)[max(0, -offset) : len(out) - offset]
            out[max(0, offset) :][: len(rows)] = rows

    def _system(self, step: Step) -> _System:
        """The tensor's equations with their factor, which is kept for those that follow."""
        system = _System(step, self._checkpoints, self._workers)
        if self._factor is None or self._factor[0] != system.key:
            self._factor = None  # before another one takes memory
            self._factor = system.key, system.factorised()
        system.factor = self._factor[1]
        return system


class _Factor:
    """U with U^T U = the sum of the matrices.

    u:    None where it has none, and the mean stands for the solution
    dead: inputs that are 0 in all models' data
    """

    def __init__(self, u: np.ndarray | None, dead: np.ndarray) -> None:
        self.u, self.dead = u, dead


class _System:
    """One tensor's equations, over opened checkpoints."""

    factor: _Factor

    def __init__(self, step: Step, checkpoints: Sequence[Checkpoint], workers: Workers) -> None:
        assert step.spec is not None and step.spec.regression is not None
        assert step.equations is not None
        self._name, self._checkpoints, self._workers = step.name, checkpoints, workers
        self._regression: Regression = step.spec.regression
        self._equations: Equations = step.equations
        self.untransposed = self._equations.untransposed
        self._inputs, self._outputs = self._equations.sizes(step.shape)
        self.key = self._equations.grams, self._regression

    def factorised(self) -> _Factor:
        """Of the sum of the matrices; an input that is 0 everywhere is taken out of it."""
        inputs, weights = self._inputs, self._regression.weight
        if len(weights) == 1:
            return _Factor(None, np.zeros(0, np.int64))
        total = np.zeros((inputs, inputs))
        for gram, weight in zip(self._equations.grams, weights, strict=True):
            for top, rows in self._rows(gram):
                self._check_finite(rows, gram)
                reduced = shrunk(rows, self._regression.reduction, weight, top)
                total[top : top + len(rows)] += reduced
        dead = np.flatnonzero(np.diagonal(total) == 0)
        try:
            if total[dead].any():
                raise SingularError(int(dead[total[dead].any(axis=1)][0]), 0.0)
            total[dead, dead] = 1.0
            self._workers.factorise(total)
        except SingularError as error:
            if self._regression.singular == "mean":
                return _Factor(None, np.arange(inputs))
            raise self._complaint(error) from error
        return _Factor(total, dead)

    def solved(self, begin: int, stop: int) -> Iterator[tuple[int, np.ndarray]]:
        """Outputs [begin, stop), a few at a time: the first one's number, and [inputs, outputs]."""
        for first in range(begin, stop, SOLVED):
            yield first, self._solve(first, min(first + SOLVED, stop))

    def _solve(self, first: int, last: int) -> np.ndarray:
        """W_1 + (sum_k G_k)^-1 sum_k G_k (W_k - W_1) of outputs [first, last)."""
        regression, factor = self._regression, self.factor
        start, *others = self._equations.experts
        base = self._weights(start, first, last)
        found = np.zeros_like(base)
        mean = np.zeros_like(base[factor.dead])
        for expert, gram, weight in zip(
            others, self._equations.grams[1:], regression.weight[1:], strict=True
        ):
            delta = self._weights(expert, first, last) - base
            mean += weight * delta[factor.dead]
            for top, rows in () if factor.u is None else self._rows(gram):
                within = delta[top : top + len(rows)]
                self._workers.add_product(rows.T, within, found, regression.reduction, weight, -top)
        found[factor.dead] = mean / sum(regression.weight)
        if factor.u is not None:
            self._workers.solve(factor.u, found)
        return base + found

    def _weights(self, source: Input, first: int, last: int) -> np.ndarray:
        """fp64 [inputs, last - first], contiguous."""
        made = np.empty((self._inputs, last - first))
        if not self.untransposed:
            flat = self._read(source, first * self._inputs, last * self._inputs)
            self._check_finite(flat, source)
            made[:] = flat.reshape(-1, self._inputs).T
            return made
        for top, rows in self._rows(source):
            self._check_finite(rows, source)
            made[top : top + len(rows)] = rows[:, first:last]
        return made

    def _rows(self, source: Input) -> Iterator[tuple[int, np.ndarray]]:
        """A matrix with a row for every input, some rows at a time."""
        width = self._checkpoints[source.model].tensors[source.name].shape[1]
        for top in range(0, self._inputs, ROWS):
            stop = min(top + ROWS, self._inputs)
            yield top, self._read(source, top * width, stop * width).reshape(-1, width)

    def _read(self, source: Input, start: int, stop: int) -> np.ndarray:
        return to_host(self._checkpoints[source.model].read(source.name, start, stop, None))

    def _check_finite(self, values: np.ndarray, source: Input) -> None:
        if not all_finite(values.reshape(-1)):
            raise NonFiniteError(
                f"{self._name}: NaN or Inf in {self._checkpoints[source.model].label} (tensor "
                f"{source.name}); nothing can be merged from that: repair the model or leave it out"
            )

    def _complaint(self, error: SingularError) -> MergeError:
        grams = self._equations.grams
        files = ", ".join(self._checkpoints[gram.model].label for gram in grams)
        return MergeError(
            f"tensor {self._name}: the sum of the Gram matrices in {files} (tensor "
            f"{grams[0].name}) has no inverse: input {error.row} is, but for {error.left:.3g} of "
            "its mean square, a combination of those before it. Collect over more samples, lower "
            f"`reduction` (it is {self._regression.reduction:g}), or give `singular: mean`, which "
            "takes the mean of such tensors"
        )


@contextmanager
def with_solutions(
    plan: Plan, checkpoints: Sequence[Checkpoint], workers: Workers
) -> Iterator[Sequence[Checkpoint]]:
    """The checkpoints, and behind them what the plan's equations give."""
    if plan.solutions is None:
        yield checkpoints
        return
    with closing(Solutions(plan, checkpoints, workers)) as solutions:
        yield (*checkpoints, solutions)


def solving_bytes(plan: Plan) -> tuple[int, str]:
    """What solving for one tensor at a time holds at the most, and for which."""
    solved = [(s.equations, s.shape, s.name) for s in plan.steps if s.equations is not None]
    return max(((_bytes_of(e, shape), name) for e, shape, name in solved), default=(0, ""))


def _bytes_of(equations: Equations, shape: tuple[int, ...]) -> int:
    """The factor; six arrays of a few outputs: weights as stored and widened, what is solved for,
    temporaries; rows of a matrix, as stored and widened."""
    inputs, outputs = equations.sizes(shape)
    apart = 6 * inputs * min(outputs, SOLVED) + (inputs * outputs if equations.untransposed else 0)
    return 8 * (inputs**2 + apart + 2 * min(ROWS, inputs) * max(inputs, outputs))
