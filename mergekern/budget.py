"""How much memory a merge holds: what there is, what it needs at the least, what it will take."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mergekern import lazily
from mergekern.backends import Backend
from mergekern.checkpoint.direct import BLOCK
from mergekern.columns import column, each_once, rows_of
from mergekern.crew import CREW
from mergekern.errors import BudgetError
from mergekern.machine import available_bytes, resident_bytes
from mergekern.plan import Plan
from mergekern.scratch import open_bytes, scratch_bytes
from mergekern.sizes import format_size, mib
from mergekern.solutions import solving_bytes
from mergekern.tiles import TILE_ALIGN, alignments

MIB = 1 << 20
RUNTIME_CAP = 512 * MIB  # a notebook that already holds models must not be refused for it
TILE_BYTES = 8 * MIB  # of one input: requests of this size reach a disk's full speed
WIDEST = 8.0  # bytes of an element
UNITS = 4  # in flight at once: being read, in the kernel, being written
RESIDENT = 3  # the same for tensors that are held whole, but for those larger than most
FRESH = 8  # bytes that are to go through a byte of buffers: its first touch costs as much as a few
PADDING = 2 * BLOCK + 64  # what aligning one buffer to its file's blocks costs at the most
_REFERENCE_TILE = 1 << 18  # elements that plain torch gets at once
_POSITIVE = (1 << 63) - 1  # all bits of an int64 but the sign's


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that a merge holds at its peak, and how its units are cut to stay within them.

    runtime: Python, its libraries and what the process held before, as far as it counts
    scratch: statistics, threads and the backend's own memory
    buffers: inputs read ahead, the unit in the kernel, outputs not written yet
    least:   the smallest max_memory that would do
    tile:    elements a backend may get at once, None for any number
    open:    elements of tensors whose outcome a guessed threshold leaves open
    crew:    how many tensors are merged at a time, at the most
    """

    runtime: int
    scratch: int
    buffers: int
    least: int
    tile: int | None = None
    open: int = 0
    crew: int = CREW

    @property
    def total(self) -> int:
        return self.runtime + self.scratch + self.buffers + self.open

    def __str__(self) -> str:
        scratch = self.scratch + self.open
        return (
            f"{format_size(self.total)} at the peak: {format_size(self.runtime)} Python and "
            f"libraries, {format_size(self.buffers)} buffers, {format_size(scratch)} scratch; "
            f"at the least {format_size(self.least)}"
        )


def memory_estimate(
    plans: Sequence[Plan], max_memory: int | None = None, backend: Backend | None = None
) -> MemoryEstimate:
    """What a run of these plans together will hold. Raises BudgetError below the least.

    max_memory: bytes for the whole process; None takes a quarter of what the machine has free, and
                no value makes it hold more than the plan can use
    backend: who will run it; None for the compiled loops on every core.
    """
    functions = any(spec.function is not None for plan in plans for spec in plan.specs)
    if functions or (backend is not None and backend.name != "cpu"):
        lazily.load()  # before what the process holds is counted
    runtime = min(resident_bytes(), RUNTIME_CAP)
    plain = backend is not None and backend.name == "reference"
    tile = _REFERENCE_TILE if plain else None
    lanes = os.cpu_count() or 1 if backend is None else backend.lanes
    outputs = _outputs(plans)
    least = 2 * int(outputs.least.max(initial=PADDING))
    crew = min(CREW, lanes)
    alone, scratch = (
        max(scratch_bytes(plan, tile, lanes, tensors) for plan in plans) for tensors in (1, crew)
    )
    solving = [solving_bytes(plan) for plan in plans]
    systems = sum(nbytes for nbytes, _ in solving)  # each plan holds a factor of its own
    alone, scratch = alone + systems, scratch + systems
    fewest, most = runtime + alone + least, runtime + scratch + least
    limit = max(runtime + available_bytes() // 4, most) if max_memory is None else max_memory
    if limit < fewest:
        raise BudgetError(
            f"max_memory is {mib(limit)}, wanted {mib(fewest)} at the least: "
            f"{mib(runtime)} for Python and libraries, {mib(alone)} of scratch and "
            f"{mib(least)} of buffers for tensors of this plan{_largest(solving)}"
        )
    if limit < most:  # rather one tensor at a time than none
        crew, scratch = 1, alone
    room = limit - runtime - scratch
    open_ = min(max(open_bytes(plan, crew) for plan in plans), (room - least) // 8)
    buffers = min(room - open_, max(least, _useful(outputs, _input_itemsize(plans), tile)))
    return MemoryEstimate(runtime, scratch, buffers, fewest, tile, open_, crew)


def _largest(solving: Sequence[tuple[int, str]]) -> str:
    """What a message says of the largest matrices that are solved with."""
    nbytes, name = max(solving, default=(0, ""))
    return f"; {mib(nbytes)} of scratch are what {name} is solved for with" if nbytes else ""


@dataclass(frozen=True)
class _Outputs:
    """The output tensors that any of the plans makes, in columns: inputs, each once however many
    plans read it, and what all plans make of it together.

    inputs, outputs: how many;  written: bytes of an element of all outputs
    widest:          bytes of an element of an input, as wide as it can be
    whole:           numbers of the whole tensor are needed first
    align:           tiles start at multiples of it
    """

    numel: np.ndarray
    inputs: np.ndarray
    outputs: np.ndarray
    written: np.ndarray
    widest: np.ndarray
    whole: np.ndarray
    align: np.ndarray

    @property
    def least(self) -> np.ndarray:
        """Buffers of the smallest tile of each."""
        return self.unit(np.minimum(self.numel, self.align), self.widest)

    def unit(self, elements: np.ndarray, input_itemsize: float | np.ndarray) -> np.ndarray:
        """Buffers of some elements of each: the inputs and the outputs."""
        per_element = self.inputs * input_itemsize + self.written
        found: np.ndarray = (elements * per_element).astype(np.int64)
        return found + (self.inputs + self.outputs) * PADDING


def _outputs(plans: Sequence[Plan]) -> _Outputs:
    names, numel, rows = rows_of(plans)
    outputs, written = np.zeros(len(names), np.int64), np.zeros(len(names))
    widest, whole = np.ones(len(names), np.int64), np.zeros(len(names), bool)
    for plan, row in zip(plans, rows, strict=True):
        kinds = plan.columns.of_kinds(plan.steps)
        width = column([(s.dtype if s.action == "copy" else s.work).itemsize for s in kinds])
        first = [s.spec is not None and s.spec.whole_tensor for s in kinds]
        outputs[row] += 1
        written[row] += plan.columns.itemsize / plan.columns.per
        widest[row] = np.maximum(widest[row], width[plan.columns.kind])
        whole[row] |= np.array(first, bool)[plan.columns.kind]
    align = alignments(plans, rows, len(names))
    return _Outputs(numel, _inputs(plans, rows, len(names)), outputs, written, widest, whole, align)


def _inputs(plans: Sequence[Plan], rows: Sequence[np.ndarray], count: int) -> np.ndarray:
    """How many tensors each output is made of: those of one label and name are one."""
    given = []
    for plan, row in zip(plans, rows, strict=True):
        # Hashes stand for names: two that are alike by chance would make an estimate one short.
        read = zip(plan.models, plan.columns.read, strict=True)
        codes = [
            (np.fromiter(map(hash, names), np.int64) ^ hash(label)) & _POSITIVE
            for label, names in read
        ]
        if plan.solutions is not None:  # of one name in all plans, and of each its own
            codes[-1] = (codes[-1] ^ hash(plan.digest)) & _POSITIVE
        given.append((row, np.concatenate([*codes, [-1]])[plan.columns.inputs]))
    inputs, _ = each_once(count, given)
    found: np.ndarray = (inputs >= 0).sum(axis=1)
    return found


def _useful(outputs: _Outputs, itemsize: float, tile: int | None) -> int:
    """What the plans can make use of: enough units in flight, or everything at once."""
    longest = tile or max(TILE_ALIGN, int(TILE_BYTES / itemsize))
    tiles = outputs.unit(np.minimum(outputs.numel, np.maximum(longest, outputs.align)), itemsize)
    entire = outputs.unit(outputs.numel, itemsize)
    held = np.sort(entire[outputs.whole]) if tile is None else entire[:0]
    # Half of the bytes belong to tensors that are no larger.
    usual = held[np.searchsorted(held.cumsum(), held.sum() / 2)] if len(held) else 0
    largest, widest = held.max(initial=0), (outputs.inputs + outputs.outputs).max(initial=0)
    bundled = min(UNITS * TILE_BYTES * widest, entire.sum())
    wanted = max(UNITS * tiles.max(initial=0), largest + (RESIDENT - 1) * usual, bundled)
    return int(min(wanted, max(largest, UNITS * TILE_BYTES, entire.sum() // FRESH)))


def _input_itemsize(plans: Sequence[Plan]) -> float:
    """Bytes of an input element, on average: plans know sums, headers know the rest."""
    columns = [plan.columns for plan in plans]
    elements = sum(int((c.numel * (c.inputs >= 0).sum(axis=1)).sum()) for c in columns)
    mean = sum(plan.input_bytes for plan in plans) / elements if elements else 1.0
    return min(max(1.0, mean), WIDEST)  # matrices that tensors are solved with are none of these
