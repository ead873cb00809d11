"""What a merge into a folder did, as it is returned and told."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from mergekern.plan import Dropped
from mergekern.report import group_dropped
from mergekern.sizes import format_size


@dataclass(frozen=True)
class MergeReport:
    """What a merge into a folder did; str() tells it.

    bytes_read:     of what was merged; where that is computed as it is read (adapters, tasks of
                    containers, solutions of equations) what it comes to, not what is behind it
    merged, copied: output tensors; dropped: input tensors that nothing was made of
    resumed:        some of it was found finished, from a call before this one
    notes:          what was asked for and had no effect, and what the folder lacks
    stages:         the merges that this one has read, of a recipe of several documents
    """

    output: Path
    tensors: int
    bytes_read: int
    bytes_written: int
    seconds: float
    merged: tuple[str, ...]
    copied: tuple[str, ...]
    dropped: tuple[Dropped, ...]
    resumed: bool
    notes: tuple[str, ...]
    stages: tuple[MergeReport, ...] = ()

    def __str__(self) -> str:
        if self.stages:
            folder = self.stages[0].output.parent
            done = "\n".join(map(str, (*self.stages, replace(self, stages=()))))
            return f"{done}\nnote: {self.output} is whole without the stages in {folder}"
        rate = (self.bytes_read + self.bytes_written) / max(self.seconds, 1e-9)
        first = (
            f"{self.output}: {len(self.merged)} tensors merged, {len(self.copied)} copied, "
            f"{len(self.dropped)} left out{', resumed' if self.resumed else ''}; "
            f"{format_size(self.bytes_read)} read, {format_size(self.bytes_written)} written "
            f"in {self.seconds:.1f} s ({format_size(rate)}/s)"
        )
        if self.resumed and not self.bytes_read and not self.bytes_written:
            first = f"{self.output}: already merged, {self.tensors} tensors; nothing to do"
        left_out = [f"left out: {line}" for line in group_dropped(self.dropped)]
        return "\n".join([first, *left_out, *(f"note: {note}" for note in self.notes)])
