"""Where one plan's output goes: its folder, its journal, and what of it is there already."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np
from xxhash import xxh3_64_hexdigest

from mergekern.coverage import Coverage
from mergekern.errors import OutputError
from mergekern.extents import Span
from mergekern.journal import Journal, Range, Tried
from mergekern.keys import Wanted
from mergekern.output import OutputFolder
from mergekern.plan import Plan
from mergekern.scratch import spilled_bytes
from mergekern.speculation import Bet
from mergekern.table import Target
from mergekern.trimming import Windows
from mergekern.units import Ranges, all_of

DOUBTS = ".mergekern.doubts"


class Destination:
    """One output folder while it is being merged into. Closed in any case; finished at the end."""

    def __init__(self, plan: Plan, output: Path) -> None:
        """Take the folder. Raises OutputError when it cannot be had."""
        self.plan = plan
        self._made = not output.exists()
        self._taken = False
        try:
            output.mkdir(parents=True, exist_ok=True)
            self._journal = Journal(output)
        except OSError as error:
            raise OutputError(f"{output}: cannot be written: {error.strerror}") from error
        self._folder = OutputFolder(output, plan.shards)
        self._number = {shard.file: number for number, shard in enumerate(plan.shards)}
        self._covered = Coverage()

    def open(self, inputs: list[Any] | None, buffer: memoryview, pool: Executor) -> int:
        """Make the files, with what a run before this one left in them. Returns its bytes.

        inputs: the state of the input files; None when they cannot be known to be the same.
        """
        journal = self._journal
        digest = journal.records.digest
        if digest is not None and inputs is not None:
            same_plan = digest == self.plan.digest
            _check_same(self._folder.folder, same_plan, journal.records.inputs == inputs)
        else:
            journal.begin(self.plan.digest, inputs)
        self._taken = True
        self._folder.prepare(self._doubts_left())
        self._covered = self._folder.verify(journal.records.ranges, buffer, pool)
        return self._covered.nbytes

    def _doubts_left(self) -> int:
        """Bytes that the file of open elements may still grow by."""
        if self.windows is not None:
            return 0
        there = self.doubts_path.stat().st_size if self.doubts_path.exists() else 0
        return max(0, spilled_bytes(self.plan) - there)

    @property
    def windows(self) -> Windows | None:
        """The thresholds of the whole model, once they are known."""
        return self._journal.records.windows

    def keep_windows(self, windows: Windows) -> None:
        self._journal.add_windows(windows)
        self._journal.records.windows = windows

    def missing(self, target: Target, whole: np.ndarray) -> Ranges:
        """The elements still to be merged, from and to where tiles can begin.

        whole: True for tensors that are merged whole if at all.
        """
        return _beyond(self._covered, target, whole)

    def untried(self, target: Target, tried: Sequence[Range]) -> Ranges:
        """The same, but for what a trial pass did."""
        ranges = ((found.file, found.offset, found.length) for found in tried)
        covered = Coverage([*self._covered.ranges(), *ranges])
        return _beyond(covered, target, np.zeros(len(target.numel), bool))

    def expect(self, left: Mapping[int, int]) -> None:
        """Say how many bytes of each shard are to come; those without any are finished."""
        self._folder.expect(left)

    def store(self, span: Span, data: memoryview) -> None:
        """Write bytes, then record that they are there. Called by writer threads."""
        self._folder.write(span.shard, span.offset, data)
        file = self.plan.shards[span.shard].file
        self._journal.add_range(Range(file, span.offset, len(data), xxh3_64_hexdigest(data)))
        self._folder.written(span.shard, len(data))

    # a trial pass: bytes are written first, and recorded as finished once they are set right

    @property
    def doubts_path(self) -> Path:
        return self._folder.folder / DOUBTS

    @property
    def bets(self) -> dict[Wanted, Bet] | None:
        """Those of a trial pass that was cut short."""
        return self._journal.records.bets

    def keep_bets(self, bets: Mapping[Wanted, Bet]) -> None:
        self._journal.add_bets(bets)

    def tried(self, buffer: memoryview, pool: Executor) -> list[Tried]:
        """What a trial pass that was cut short did and is there, each byte in one of them."""
        every = self._journal.records.tried
        ranges = [found for tried in every for found in tried.ranges]
        there = self._folder.verify(ranges, buffer, pool)
        taken, found = Coverage(), []
        for tried in reversed(every):  # what was done again counts as it was done last
            places = [(r.file, r.offset, r.offset + r.length) for r in tried.ranges]
            whole = not any(there.missing(*place) for place in places)
            if whole and all(taken.missing(*p) == [(0, p[2] - p[1])] for p in places):
                for mine in tried.ranges:
                    taken.add(mine.file, mine.offset, mine.length)
                found.append(tried)
        return found

    def try_out(self, span: Span, data: memoryview) -> Range:
        """Write bytes that are not final. Called by writer threads."""
        self._folder.write(span.shard, span.offset, data)
        file = self.plan.shards[span.shard].file
        return Range(file, span.offset, len(data), xxh3_64_hexdigest(data))

    def keep_tried(self, tried: Tried) -> None:
        self._journal.add_tried(tried)

    def reread(self, found: Range, buffer: memoryview) -> memoryview:
        """Bytes that were tried out, as a view of the buffer."""
        return self._folder.read(self._number[found.file], found.offset, found.length, buffer)

    def rewrite(self, found: Range, data: memoryview) -> None:
        """Write the bytes of a range again; they lie in memory as reread() gave them."""
        self._folder.write(self._number[found.file], found.offset, data)

    def settle(self, found: Range) -> None:
        """Record bytes that were tried out as final."""
        self._journal.add_range(found)
        self._covered.add(found.file, found.offset, found.length)
        self._folder.written(self._number[found.file], found.length)

    def finish(self, finish: Callable[[Path], None]) -> None:
        """Index and side files; the journal goes last."""
        self._folder.write_index()
        try:
            self.doubts_path.unlink(missing_ok=True)  # of a trial pass that was killed at its end
            finish(self._folder.folder)
            self._folder.sync()
        except OSError as error:
            raise self._folder.failure(error, str(error.filename or "a side file")) from error
        self._journal.remove()

    def abandon(self) -> None:
        """Leave nothing behind where nothing was merged yet."""
        records = self._journal.records
        if not self._taken or records.ranges or records.tried or records.windows:
            return
        self._folder.discard()
        self._journal.remove()
        if self._made:
            self._folder.folder.rmdir()

    def close(self) -> None:
        """Let go of the files; what is recorded stays."""
        self._folder.close()
        self._journal.close()


def _beyond(covered: Coverage, target: Target, whole: np.ndarray) -> Ranges:
    """What of a target's outputs is not covered; see Destination.missing()."""
    if not covered.nbytes:
        return all_of(target.numel)
    ranges = []
    rows = np.flatnonzero(target.numel)
    places = target.places(rows, np.zeros_like(rows), target.numel[rows])
    for row, begin, end in zip(*(column.tolist() for column in (rows, *places)), strict=True):
        numel, size, per = (int(x[row]) for x in (target.numel, target.itemsize, target.per))
        file = target.plan.shards[int(target.shard[row])].file
        missing = covered.missing(file, begin, end)
        if missing and whole[row]:
            ranges.append((row, 0, numel))
        else:
            align = int(target.align[row])
            found = _widened(missing, size, per, numel, align)
            ranges += [(row, *each) for each in found]
    columns = np.array(ranges, np.int64).reshape(-1, 3).T
    return Ranges(*columns)


def _widened(
    missing: list[tuple[int, int]], itemsize: int, per: int, numel: int, align: int
) -> list[tuple[int, int]]:
    """Byte ranges of an output tensor as ranges of elements that tiles can begin at.

    itemsize: bytes of a record;  per: how many elements it stands for
    """
    found: list[tuple[int, int]] = []
    for first, last in missing:
        start = first // itemsize * per // align * align
        stop = min(numel, -(-(-(-last // itemsize) * per) // align) * align)
        if found and start <= found[-1][1]:
            start = found.pop()[0]
        found.append((start, stop))
    return found


def _check_same(output: Path, same_plan: bool, same_inputs: bool) -> None:
    if same_plan and same_inputs:
        return
    what = (
        "inputs whose files were changed since"
        if same_plan
        else ("another recipe, other inputs or other settings")
    )
    raise OutputError(
        f"{output}: holds an unfinished merge of {what}, which this one cannot go on with; remove "
        f"the folder or choose another"
    )
