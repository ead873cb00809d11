"""Trimming: which magnitudes a spec keeps, as exact windows of tensors or of a whole model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from mergekern.backends import Backend
from mergekern.counting import keys_by_counting
from mergekern.doubts import Doubts
from mergekern.dtypes import DType
from mergekern.fused import EVERY_INDEX, Window
from mergekern.keys import LOWER, UPPER, Key, Wanted, starts_of, windows_of
from mergekern.plan import Step
from mergekern.sampling import Sample, draw, guess
from mergekern.spec import Spec
from mergekern.speculation import Bet, Trial
from mergekern.tiles import Part, Tensors, numels_of

Windows = dict[str, tuple[Window, ...]]  # output tensor -> one window per expert of its step

log = logging.getLogger(__name__)


def exact_windows(
    backend: Backend, tensors: Tensors, doubts: Doubts | None = None, room: int | None = None
) -> Windows:
    """One window per expert and tensor, for magnitudes ranked over all given tensors together.

    Reads a sample and then everything once; again where the sample misled. See Trial for the rest.
    """
    trial = start_trial(backend, tensors, doubts, room)
    if trial is None:
        return _windows(tensors.steps, {})
    trial.scan(tensors)
    return outcome(backend, tensors, trial).windows


def start_trial(
    backend: Backend,
    tensors: Tensors,
    doubts: Doubts | None = None,
    room: int | None = None,
    sample: Callable[[Tensors, DType, Iterable[int]], Sample] | None = None,
) -> Trial | None:
    """Guessed windows of trimmed tensors; None where nothing is trimmed.

    sample: what draws one, if not sampling.draw(). See Trial for the rest.
    """
    ranks, by_index = _ranks(tensors.steps)
    if not ranks:
        return None
    work = tensors.steps[0].work
    drawn = (sample or partial(draw, backend))(tensors, work, [expert for expert, _ in ranks])
    found = guess(drawn, work, ranks, by_index=by_index)
    bets = {wanted: Bet(rank, *found[wanted]) for wanted, rank in ranks.items()}
    return Trial(backend, tensors.steps, bets, by_index, doubts, room)


def go_on_with_trial(
    backend: Backend, steps: Sequence[Step], bets: dict[Wanted, Bet], doubts: Doubts
) -> Trial:
    """A trial whose bets are known; restore() then takes in what was seen before."""
    _, by_index = _ranks(steps)
    return Trial(backend, steps, bets, by_index, doubts)


@dataclass(frozen=True)
class Outcome:
    """What a trial came to: the exact windows, and what of its pass has to be set right.

    lost:  everything; otherwise
    again: these parts, and the elements in doubt
    """

    windows: Windows
    lost: bool
    again: Sequence[Part]


def outcome(backend: Backend, tensors: Tensors, trial: Trial) -> Outcome:
    """Conclude a trial that has seen everything; where it was lost, count."""
    keys = trial.verdict(tensors)
    if keys is not None:
        return Outcome(_windows(tensors.steps, keys), False, tuple(trial.again(keys)))
    log.info("%d tensors: a sample misled, magnitudes are counted", len(tensors.steps))
    return Outcome(counted_windows(backend, tensors), True, ())


def counted_windows(backend: Backend, tensors: Tensors) -> Windows:
    """What exact_windows gives, without a guess: two passes or more."""
    ranks, by_index = _ranks(tensors.steps)
    if not ranks:
        return _windows(tensors.steps, {})
    work = tensors.steps[0].work
    found = keys_by_counting(backend, tensors, work, ranks, by_index=by_index)
    return _windows(tensors.steps, found)


def kept_ranks(spec: Spec, place: int, numel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(top, stop): of magnitudes in descending order, ranks top + 1 … stop are kept.

    int(density * n) elements, at least one, below the int(gamma * n) largest; where that leaves too
    few, density wins.
    """
    target = np.maximum(1, (spec.density[place] * numel).astype(np.int64))
    top = np.minimum((spec.gamma[place] * numel).astype(np.int64), numel - target)
    return top, top + target


def cut_ranks(spec: Spec, numel: np.ndarray) -> np.ndarray:
    """int64 [n, experts, 2]: the ranks that the cuts of tensors lie at, as fused.Batch has them."""
    found = np.zeros((len(numel), len(spec.density), 2), np.int64)
    for place, density in enumerate(spec.density):
        if density < 1:
            top, stop = kept_ranks(spec, place, numel)
            found[:, place, LOWER] = stop
            # Where ties are kept whole, what is above the largest kept one is cut off.
            found[:, place, UPPER] = np.where(top, top + (spec.ties == "keep"), 0)
    return found


def _ranks(steps: Sequence[Step]) -> tuple[dict[Wanted, int], bool]:
    """The ranks that the cuts lie at, and whether equal magnitudes are told apart by place."""
    numels = numels_of(steps)
    ranks: dict[Wanted, int] = {}
    by_index = True
    for step in steps:
        spec = step.spec
        assert spec is not None, f"{step.name}: not a merge step"
        by_index = spec.ties == "index"
        if not spec.trims:
            continue
        wanted = cut_ranks(spec, np.array([numels[expert] for expert in step.expert_index]))
        for place, expert in enumerate(step.expert_index):
            for side in (LOWER, UPPER):
                rank = int(wanted[place, place, side])
                if rank and numels[expert]:
                    ranks[expert, side] = rank
    return ranks, by_index


def _windows(steps: Sequence[Step], keys: Mapping[Wanted, Key]) -> Windows:
    by_index = all(step.spec is None or step.spec.ties == "index" for step in steps)
    if not by_index:
        keys = {
            wanted: Key(key.magnitude + (wanted[1] == UPPER), EVERY_INDEX)
            for wanted, key in keys.items()
        }
    starts = starts_of(steps)
    return {
        step.name: windows_of(step, start, keys, by_index)
        for step, start in zip(steps, starts, strict=False)
    }
