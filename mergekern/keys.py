"""Keys: a total order of the elements of one expert's deltas, by magnitude and then by place.

Larger magnitudes come first, and of equal ones, of which deltas of bf16 weights have masses, the
lower place. The key of the k-th largest says which k elements a trimming keeps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

from mergekern.dtypes import FLOAT64, DType
from mergekern.fused import EVERY_INDEX, Window
from mergekern.plan import Step

LOWER, UPPER = 0, 1  # the cuts of a window
OPEN = Window()

Wanted = tuple[int, int]  # an expert, and one of its cuts


@dataclass(frozen=True)
class Key:
    """magnitude: bits of |delta|; place: index among the elements of all tensors, in order."""

    magnitude: int
    place: int

    def cut(self, start: int, numel: int) -> tuple[int, int]:
        """A window's cut and its last index, in the tensor whose first place is `start`."""
        last = self.place - start
        if last >= numel - 1:
            return self.magnitude, EVERY_INDEX
        return self.magnitude, last if last > -1 else -1


def starts_of(steps: Sequence[Step]) -> list[int]:
    """The place of each tensor's first element, and the one behind the last."""
    return list(accumulate((step.numel for step in steps), initial=0))


def bound_of(work: DType) -> int:
    """All magnitudes are below it."""
    return 1 << (63 if work == FLOAT64 else 31)


def windows_of(
    step: Step, start: int, keys: Mapping[Wanted, Key], by_index: bool
) -> tuple[Window, ...]:
    """The windows of one tensor, whose first place is `start`: what reaches the lower key and not
    the upper one. An expert without keys is not trimmed.

    by_index: equal magnitudes are told apart by their place; otherwise a cut has all of them.
    """
    return tuple(_window(step, start, keys, expert, by_index) for expert in step.expert_index)


def _window(
    step: Step, start: int, keys: Mapping[Wanted, Key], expert: int, by_index: bool
) -> Window:
    lower, upper = keys.get((expert, LOWER)), keys.get((expert, UPPER))
    if lower is None and upper is None:
        return OPEN
    lo, lo_last = (OPEN.lo, EVERY_INDEX) if lower is None else lower.cut(start, step.numel)
    hi, hi_last = (OPEN.hi, EVERY_INDEX) if upper is None else upper.cut(start, step.numel)
    return _make(lo, lo_last if by_index else EVERY_INDEX, hi, hi_last if by_index else EVERY_INDEX)


@lru_cache(maxsize=1024)
def _make(lo: int, lo_last: int, hi: int, hi_last: int) -> Window:
    """Most tensors lie before or behind a key, and so have windows in common."""
    return Window(lo, lo_last, hi, hi_last)
