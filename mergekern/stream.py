"""Units on their way through one stretch of memory: read ahead, worked on, written behind."""

from __future__ import annotations

import mmap
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from operator import itemgetter

import torch

from mergekern.checkpoint.base import Checkpoint
from mergekern.fused import Tile
from mergekern.units import Unit

HUGE_PAGE = 2 << 20
READERS = 4  # requests in flight that a disk needs to reach its full speed
WRITERS = 2
REQUEST = 8 << 20  # bytes read by one task

Read = tuple[int, str, int, int, torch.Tensor]  # model, tensor, first and last element, buffer


class Arena:
    """Memory allocated once and reused, handed out as a ring: first taken, first given back."""

    def __init__(self, nbytes: int) -> None:
        # Private, not shared: shared anonymous memory is a file to the kernel, without huge pages.
        private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._map = mmap.mmap(-1, nbytes + HUGE_PAGE, flags=private)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            self._map.madvise(mmap.MADV_HUGEPAGE)
        whole = torch.frombuffer(self._map, dtype=torch.uint8)
        skip = -whole.data_ptr() % HUGE_PAGE
        self.nbytes = nbytes
        self.tensor = whole[skip : skip + nbytes]
        self.bytes = memoryview(self._map)[skip : skip + nbytes]
        self._taken: deque[tuple[int, int]] = deque()

    def take(self, nbytes: int) -> int | None:
        """The first byte of a free stretch; None when there is none until something is given."""
        begin = self._free(nbytes)
        if begin is not None:
            self._taken.append((begin, nbytes))
        return begin

    def give(self) -> None:
        """Give back what was taken first."""
        self._taken.popleft()

    def _free(self, nbytes: int) -> int | None:
        if not self._taken:
            return 0 if nbytes <= self.nbytes else None
        oldest, newest = self._taken[0][0], self._taken[-1]
        head = -(-sum(newest) // 4096) * 4096
        wrapped = newest[0] < oldest
        if head + nbytes <= (oldest if wrapped else self.nbytes):
            return head
        return 0 if not wrapped and nbytes <= oldest else None


class Flight:
    """A unit with its memory: being read, held, being written."""

    def __init__(self, unit: Unit, begin: int, pipeline: Pipeline) -> None:
        self.unit = unit
        self.begin = begin
        self.reads: list[Future[None]] = []
        self.writes: list[Future[None]] = []
        self.held = True
        self._pipeline = pipeline

    @property
    def futures(self) -> list[Future[None]]:
        return self.reads + self.writes

    def input(self, part: int, place: int) -> torch.Tensor:
        """One input of one part, flat, in its own dtype."""
        piece = self.unit.parts[part]
        source = piece.step.inputs[place]
        checkpoint = self._pipeline.checkpoints[source.model]
        begin = self.unit.places[part].inputs[place]
        if begin is None:
            return checkpoint.read(source.name, piece.start, piece.stop, None)
        dtype = checkpoint.tensors[source.name].dtype
        return self._view(begin, piece.numel * dtype.itemsize).view(dtype)

    def tile(self, part: int) -> Tile:
        piece = self.unit.parts[part]
        step = piece.step
        inputs = [self.input(part, place) for place in range(len(step.inputs))]
        base = None if step.base is None else inputs.pop(0)
        return Tile(step.name, piece.start, base, tuple(inputs))

    def out(self, part: int) -> torch.Tensor:
        """Where a part's output belongs, flat, in its dtype."""
        piece = self.unit.parts[part]
        dtype = piece.step.dtype
        view = self._view(self.unit.places[part].out, piece.numel * dtype.itemsize)
        return view.view(dtype)

    def bytes(self, begin: int, length: int) -> memoryview:
        first = self.begin + begin
        return self._pipeline.arena.bytes[first : first + length]

    def _view(self, begin: int, length: int) -> torch.Tensor:
        first = self.begin + begin
        return self._pipeline.arena.tensor[first : first + length]


class Pipeline:
    """Reader and writer threads around one arena. Only one stream runs at a time.

    All bookkeeping is the calling thread's; other threads see futures and nothing else. Their
    errors surface in the calling thread, once.
    """

    def __init__(self, checkpoints: Sequence[Checkpoint], arena: Arena) -> None:
        self.checkpoints = checkpoints
        self.arena = arena
        self.bytes_read = 0
        self.readers = ThreadPoolExecutor(READERS, thread_name_prefix="mergekern-read")
        self.writers = ThreadPoolExecutor(WRITERS, thread_name_prefix="mergekern-write")
        self._flights: deque[Flight] = deque()  # as they lie in the arena, oldest first

    def stream(self, units: Iterator[Unit]) -> Iterator[Flight]:
        """Units with their inputs read, in order; each is held until the next one is asked for."""
        ahead: deque[Flight] = deque()
        unit = next(units, None)
        try:
            while unit is not None or ahead:
                while unit is not None and (flight := self._launch(unit, not ahead)) is not None:
                    ahead.append(flight)
                    unit = next(units, None)
                _finish(ahead[0].reads)
                yield ahead[0]
                ahead.popleft().held = False
        finally:
            for flight in ahead:
                flight.held = False
                for read in flight.reads:
                    read.cancel()

    def write(self, flight: Flight, job: Callable[[], None]) -> None:
        """Run a job on a writer thread; the flight's memory stays until it is done."""
        flight.writes.append(self.writers.submit(job))

    def drain(self) -> None:
        """Wait until everything is written."""
        while self._flights:
            self._land()

    def close(self) -> None:
        """Stop after what is being read or written this moment; the rest is dropped."""
        for pool in (self.readers, self.writers):
            pool.shutdown(wait=False, cancel_futures=True)
        for pool in (self.readers, self.writers):
            pool.shutdown(wait=True)

    def _launch(self, unit: Unit, patient: bool) -> Flight | None:
        """Start reading a unit; None when its memory is not free yet, unless patient."""
        while self._flights and not self._flights[0].held and _done(self._flights[0]):
            self._land()
        begin = self.arena.take(unit.nbytes)
        while begin is None and patient:
            self._land()
            begin = self.arena.take(unit.nbytes)
        if begin is None:
            return None
        flight = Flight(unit, begin, self)
        self._flights.append(flight)
        for task in self._tasks(flight):
            flight.reads.append(self.readers.submit(self._read, task))
        return flight

    def _land(self) -> None:
        """Wait for the oldest flight and free its memory."""
        flight = self._flights[0]
        assert not flight.held, "a unit does not fit beside those held: nested streams"
        _finish([future for future in flight.futures if not future.cancelled()])
        self._flights.popleft()
        self.arena.give()

    def _tasks(self, flight: Flight) -> Iterator[list[Read]]:
        """The reads of a unit: by model, so that each file is visited in its order, then cut."""
        reads = sorted(self._reads(flight), key=itemgetter(0))
        task: list[Read] = []
        nbytes = 0
        for read in reads:
            if task and (nbytes + read[4].numel() > REQUEST or task[0][0] != read[0]):
                yield task
                task, nbytes = [], 0
            task.append(read)
            nbytes += read[4].numel()
        if task:
            yield task
        self.bytes_read += sum(read[4].numel() for read in reads)

    def _reads(self, flight: Flight) -> Iterator[Read]:
        for part, place in zip(flight.unit.parts, flight.unit.places, strict=True):
            for source, begin in zip(part.step.inputs, place.inputs, strict=True):
                if begin is None:
                    continue
                checkpoint = self.checkpoints[source.model]
                itemsize = checkpoint.tensors[source.name].dtype.itemsize
                longest = REQUEST // itemsize
                for start in range(part.start, part.stop, longest):
                    stop = min(start + longest, part.stop)
                    first = flight.begin + begin + (start - part.start) * itemsize
                    buffer = self.arena.tensor[first : first + (stop - start) * itemsize]
                    yield source.model, source.name, start, stop, buffer

    def _read(self, task: list[Read]) -> None:
        for model, name, start, stop, buffer in task:
            found = self.checkpoints[model].read(name, start, stop, buffer)
            if found.data_ptr() != buffer.data_ptr():  # a reader that has to compute what it reads
                buffer.copy_(found.contiguous().view(torch.uint8))


def _done(flight: Flight) -> bool:
    return all(future.done() for future in flight.futures)


def _finish(futures: Sequence[Future[None]]) -> None:
    """Wait for all of them, and raise the first error as soon as there is one."""
    done, _ = wait(futures, return_when="FIRST_EXCEPTION")
    for future in done:
        future.result()
