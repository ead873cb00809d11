"""Selection by variance: the places where experts disagree most, and what each of them is worth.

The variance of all deltas takes the place of a magnitude: the places of the largest ones are found
as thresholds are (speculation.py), exactly and without a sort.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from mergekern.backends import Backend
from mergekern.counting import keys_by_counting
from mergekern.fused import EVERY_INDEX, ExpertScalars, FusedOp, Tile, Window
from mergekern.keys import LOWER, UPPER, windows_of
from mergekern.plan import Step
from mergekern.sampling import draw, guess
from mergekern.speculation import Bet, Trial
from mergekern.tiles import Part, Tensors

NOTHING = Window(lo=EVERY_INDEX)
ALL = 0  # the place of all experts together


class Spread:
    """A tensor of which the variance of all experts' deltas is looked at."""

    def __init__(self, tensors: Tensors) -> None:
        self._tensors = tensors
        (step,) = tensors.steps
        self.steps = [replace(step, expert_index=(ALL,))]
        self.stretch = tensors.stretch

    def tiles(self) -> Iterator[tuple[Step, Tile]]:
        for _, tile in self._tensors.tiles():
            yield self.steps[0], replace(tile, spread=True)

    def parts(self, parts: Sequence[Part]) -> Iterator[tuple[Sequence[Part], Tile]]:
        (step,) = self._tensors.steps
        own = [replace(part, step=step) for part in parts]
        for group, tile in self._tensors.parts(own):
            mine = [replace(part, step=self.steps[0]) for part in group]
            yield mine, replace(tile, spread=True)


def largest_variances(backend: Backend, tensors: Tensors, fraction: float) -> Window:
    """The window of the largest variances of one tensor: int(fraction * n) of the n that are not 0,
    the first by index where they are equal."""
    spread = Spread(tensors)
    (step,) = spread.steps
    sample = draw(backend, spread, step.work, [ALL])
    bits, wanted = sample.runs[ALL].bits, (ALL, LOWER)
    differ = np.count_nonzero(bits) * step.numel // max(1, bits.size)
    found = guess(sample, step.work, {wanted: max(1, int(differ * fraction))}, by_index=True)
    # The rank is about right. The pass finds it, and bets may be off by so little.
    bet = Bet(0, *found[wanted])
    trial = Trial(backend, spread.steps, {wanted: bet}, by_index=True)
    bet.rank = int(_scan(backend, spread, trial) * fraction)
    if not bet.rank:
        return NOTHING
    keys = trial.verdict(spread)
    if keys is None:
        ranks = {wanted: bet.rank}
        keys = keys_by_counting(backend, spread, step.work, ranks, by_index=True)
    (window,) = windows_of(step, 0, keys, by_index=True)
    return window


def _scan(backend: Backend, spread: Spread, trial: Trial) -> int:
    """The pass of a trial. Returns how many variances are not 0: they reach an upper cut of 1."""
    above = 0
    for step, tile in spread.tiles():
        (window,), (margin,) = trial.windows(step), trial.margins(step)
        margin = replace(margin, strict=replace(margin.strict, hi=1))
        op = FusedOp("task_vector", (ExpertScalars(ALL, 1.0, window=window),), work=step.work)
        seen = backend.speculate(op, tile, [margin], None)
        trial.add(step, tile, seen)
        above += int(seen.kept[0, UPPER, 0])
    return above


def shares_of(energies: Sequence[float], numels: Sequence[int], least: float) -> tuple[float, ...]:
    """Weights in proportion to the mean squares, given the sums and of how many elements they are;
    equal ones where all the means together are 0, below `least`, or no number."""
    means = [energy / max(1, numel) for energy, numel in zip(energies, numels, strict=True)]
    total = sum(means)
    if total <= 0 or not least <= total < float("inf"):
        return (1.0 / len(means),) * len(means)
    return tuple(mean / total for mean in means)
