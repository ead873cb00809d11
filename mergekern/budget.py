"""How much memory a merge holds: what there is, what it needs at the least, what it will take."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mergekern.backends import BLOCK as SUMMED
from mergekern.backends import CHUNK, Backend
from mergekern.checkpoint.direct import BLOCK
from mergekern.counting import COUNTERS, MOST_BINS
from mergekern.errors import BudgetError
from mergekern.plan import Plan, Step
from mergekern.sampling import most_open, sample_size
from mergekern.sizes import format_size
from mergekern.spec import Spec
from mergekern.tiles import TILE_ALIGN

MIB = 1 << 20
RUNTIME_CAP = 512 * MIB  # a notebook that already holds models must not be refused for it
TILE_BYTES = 8 * MIB  # of one input: requests of this size reach a disk's full speed
UNITS = 4  # in flight at once: being read, in the kernel, being written
RESIDENT = 3  # the same for tensors that are held whole
PADDING = 2 * BLOCK + 64  # what aligning one buffer to its file's blocks costs at the most
MARGIN = 24 * MIB  # threads' stacks, journal, interpreter

# What plain torch allocates per element of a tile: masks, coins and copies in the work dtype.
_REFERENCE_TILE = 1 << 18
_REFERENCE_FIXED, _REFERENCE_EXPERT = 256, 24


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that a merge holds at its peak, and how its units are cut to stay within them.

    runtime: Python, torch and what the process held before, as far as it counts
    scratch: statistics, threads and the backend's own memory
    buffers: inputs read ahead, the unit in the kernel, outputs not written yet
    least:   the smallest max_memory that would do
    tile:    elements a backend may get at once, None for any number
    open:    elements of a tensor whose outcome a guessed threshold leaves open
    """

    runtime: int
    scratch: int
    buffers: int
    least: int
    tile: int | None = None
    open: int = 0

    @property
    def total(self) -> int:
        return self.runtime + self.scratch + self.buffers + self.open

    def __str__(self) -> str:
        scratch = self.scratch + self.open
        return (
            f"{format_size(self.total)} at the peak: {format_size(self.runtime)} Python and torch, "
            f"{format_size(self.buffers)} buffers, {format_size(scratch)} scratch; "
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
    runtime = min(resident_bytes(), RUNTIME_CAP)
    plain = backend is not None and backend.name == "reference"
    tile = _REFERENCE_TILE if plain else None
    lanes = os.cpu_count() or 1 if backend is None else backend.lanes
    scratch = max(_scratch(plan, tile, lanes) for plan in plans)
    outputs = _outputs(plans)
    least = 2 * max((output.least for output in outputs), default=PADDING)
    limit = max_memory
    if limit is None:
        limit = max(runtime + available_bytes() // 4, runtime + scratch + least)
    room = limit - runtime - scratch
    if room < least:
        raise BudgetError(
            f"max_memory is {_mib(limit)}, wanted {_mib(runtime + scratch + least)} at the least: "
            f"{_mib(runtime)} for Python and torch, {_mib(scratch)} of scratch and "
            f"{_mib(least)} of buffers for tensors of this plan"
        )
    open_ = min(max(map(_open, plans)), (room - least) // 8)
    buffers = min(room - open_, max(least, _useful(outputs, _input_itemsize(plans), tile)))
    return MemoryEstimate(runtime, scratch, buffers, runtime + scratch + least, tile, open_)


@dataclass(slots=True)
class _Output:
    """An output tensor of any of the plans: its inputs, each once however many plans read it, and
    what all plans make of it together.

    outputs, written: how many, and bytes of an element of all of them
    widest:           bytes of an element of an input, as wide as it can be
    whole:            numbers of the whole tensor are needed first
    """

    numel: int
    inputs: set[tuple[str, str]]
    outputs: int = 0
    written: int = 0
    widest: int = 1
    whole: bool = False

    def add(self, step: Step) -> None:
        width = step.dtype.itemsize
        self.outputs += 1
        self.written += width
        self.widest = max(self.widest, width if step.action == "copy" else step.work.itemsize)
        self.whole = self.whole or (step.spec is not None and step.spec.whole_tensor)

    @property
    def least(self) -> int:
        """Buffers of its smallest tile."""
        return self.unit(min(self.numel, TILE_ALIGN), self.widest)

    def unit(self, elements: int, input_itemsize: float) -> int:
        """Buffers of some elements: the inputs and the outputs."""
        inputs = len(self.inputs)
        per_element = inputs * input_itemsize + self.written
        return int(elements * per_element) + (inputs + self.outputs) * PADDING


def _outputs(plans: Sequence[Plan]) -> list[_Output]:
    found: dict[tuple[str, int], _Output] = {}
    for plan in plans:
        for step in plan.steps:
            output = found.get((step.name, step.numel))
            if output is None:
                output = found[step.name, step.numel] = _Output(step.numel, set())
            output.inputs.update((plan.models[model], name) for model, name in step.inputs)
            output.add(step)
    return list(found.values())


def _useful(outputs: Sequence[_Output], itemsize: float, tile: int | None) -> int:
    """What the plans can make use of: enough units in flight, or everything at once."""
    most = widest = 0
    for output in outputs:
        longest = tile or max(TILE_ALIGN, int(TILE_BYTES / itemsize))
        most = max(most, UNITS * output.unit(min(output.numel, longest), itemsize))
        if output.whole and tile is None:
            most = max(most, RESIDENT * output.unit(output.numel, itemsize))
        widest = max(widest, len(output.inputs) + output.outputs)
    everything = sum(output.unit(output.numel, itemsize) for output in outputs)
    return max(most, min(UNITS * TILE_BYTES * widest, everything))


def _input_itemsize(plans: Sequence[Plan]) -> float:
    """Bytes of an input element, on average: plans know sums, headers know the rest."""
    elements = sum(step.numel * len(step.inputs) for plan in plans for step in plan.steps)
    return max(1.0, sum(plan.input_bytes for plan in plans) / elements) if elements else 1.0


def _scratch(plan: Plan, tile: int | None, lanes: int) -> int:
    """Memory for threads and interpreter, for statistics, and for the backend."""
    sums = kernel = chunks = selection = 0
    for step in plan.steps:
        experts = len(step.experts)
        if step.action == "merge":
            sums = max(sums, step.numel // SUMMED * 8 * experts * max(experts, 2) * 2)
        if step.spec is not None and step.spec.trims:
            selection = max(selection, _selection(step, step.numel, lanes))
            chunks += step.numel // CHUNK * 8 * experts * 2
            kernel = max(kernel, min(step.numel, CHUNK) * step.work.itemsize * lanes)
        if tile is not None:
            per_element = _REFERENCE_FIXED + _REFERENCE_EXPERT * experts
            kernel = max(kernel, min(step.numel, tile) * per_element)
    if plan.whole_model:
        total = sum(step.numel for step in plan.steps)
        selection = max(_selection(s, total, lanes) for s in plan.steps if s.spec is not None)
    return MARGIN + sums + kernel + chunks + selection


def _selection(step: Step, numel: int, lanes: int) -> int:
    """What finding thresholds over `numel` elements takes: a sample, then what it leaves open or,
    where it misled, counters."""
    spec = step.spec
    searches = 0 if spec is None else _searches(spec)
    if not searches:
        return 0
    bins = min(MOST_BINS, max(1 << 12, numel // 8))
    tallies = 8 * (min(COUNTERS, bins * lanes * searches) + 4 * bins)
    return max(tallies, sample_size(numel) * (12 * searches + 40))


def open_element(step: Step) -> int:
    """Bytes of an element that a guessed threshold leaves open: its values, and its place."""
    return 24 + sum(step.work.itemsize for _ in step.inputs)


def spilled_bytes(plan: Plan) -> int:
    """What open elements of a whole model may take on disk."""
    ranked = [(s, s.spec) for s in plan.steps if s.spec is not None and s.spec.whole_model]
    most = most_open(
        sum(step.numel for step, _ in ranked),
        max((_searches(spec) for _, spec in ranked), default=0),
    )
    element = max((8 + sum(s.work.itemsize for _ in s.inputs) for s, _ in ranked), default=0)
    return most * element


def _open(plan: Plan) -> int:
    """Bytes that open elements of one tensor may take; those of a whole model go to a file."""
    return max(
        (
            most_open(step.numel, _searches(step.spec)) * open_element(step)
            for step in plan.steps
            if step.spec is not None and step.spec.trims and not step.spec.whole_model
        ),
        default=0,
    )


def _searches(spec: Spec) -> int:
    """Magnitudes that a trimming looks for at once: one per expert, two where gamma cuts too."""
    pairs = zip(spec.density, spec.gamma, strict=True)
    return sum(1 + (gamma > 0) for density, gamma in pairs if density < 1)


def resident_bytes() -> int:
    """What this process holds now."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return RUNTIME_CAP  # not Linux: assume much rather than little
    return pages * os.sysconf("SC_PAGE_SIZE")


def available_bytes() -> int:
    """Memory that can be had without swapping: the machine's, or less in a control group."""
    free = 4 << 30
    with contextlib.suppress(OSError, ValueError):
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
    return min([free, *_cgroup_free()])


def _cgroup_free() -> list[int]:
    """What each control group above this process has left; its page cache counts as free."""
    found = []
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                names = ("memory.max", "memory.current", "file")
                found += _limits(Path("/sys/fs/cgroup"), path, names)
            elif "memory" in controllers.split(","):
                names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache")
                found += _limits(Path("/sys/fs/cgroup/memory"), path, names)
    return found


def _limits(root: Path, path: str, names: tuple[str, str, str]) -> list[int]:
    limit, usage, cache = names
    found = []
    parts = [part for part in path.split("/") if part and part != ".."]
    for depth in range(len(parts) + 1):
        group = root.joinpath(*parts[:depth])
        with contextlib.suppress(OSError, ValueError, KeyError):  # "max", or not to be seen here
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            used = int((group / usage).read_text()) - int(stat[cache])
            found.append(max(0, int((group / limit).read_text()) - used))
    return found


def _mib(nbytes: int) -> str:
    return f"{-(-nbytes // MIB)} MiB"
