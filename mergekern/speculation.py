"""Exact trimming in one pass: guess the cuts, go by the guess, keep what it leaves open, verify.

A sample brackets every wanted key. One pass counts what reaches the upper end of each bracket, and
keeps the few elements that lie between the ends. If the counts prove the brackets right, the exact
cut is found among those elements alone, and their outputs are all that is left to be set right;
what a wrong bracket costs is a pass that counts.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from mergekern.arrays import Array
from mergekern.backends import Backend, Margin, Speculation
from mergekern.counting import keys_by_counting
from mergekern.doubts import Doubt, Doubts, DoubtTensors, HeldDoubts
from mergekern.dtypes import DType
from mergekern.fused import ExpertScalars, FusedOp, Tile, Window
from mergekern.keys import LOWER, UPPER, Key, Wanted, starts_of, windows_of
from mergekern.plan import Step
from mergekern.sampling import MOST, draw, guess, most_open
from mergekern.tiles import Part, Tensors
from mergekern.walking import parts_between, walk

Reach = dict[Wanted, tuple[int, ...]]  # how many elements reach a bet's upper key, and its cut


@dataclass
class Bet:
    """A wanted rank, the keys it is bet to lie between, and how many elements reach the upper one:
    by the key, and by the cut that the pass goes by.

    Where the keys are one, and equal magnitudes are told apart by place, the bet is that the wanted
    key is near: not far before or behind it, and of the same magnitude.
    """

    rank: int
    high: Key
    low: Key
    reach_key: int = 0
    reach_cut: int = 0

    @property
    def off(self) -> int:
        """How many elements that the cut leaves out belong in; fewer than none, if too many are."""
        return self.rank - self.reach_cut

    def won(self, between: int, by_index: bool) -> bool:
        """between: how many elements lie between the keys."""
        most = self.rank if by_index else self.rank - 1  # no place stands for its last element
        return self.reach_key <= most and self.rank <= self.reach_cut + between


class Trial:
    """One pass over the tensors of some steps with guessed cuts.

    bets:     what is guessed, for every wanted rank
    by_index: equal magnitudes are told apart by their place; otherwise a cut has all or none
    doubts:   where open elements go
    room:     how many there may be; None for twice what is to be expected
    """

    def __init__(
        self,
        backend: Backend,
        steps: Sequence[Step],
        bets: dict[Wanted, Bet],
        by_index: bool,
        doubts: Doubts | None = None,
        room: int | None = None,
    ) -> None:
        self.steps = steps
        self.bets = bets
        self.doubts: Doubts = HeldDoubts() if doubts is None else doubts
        self.lost = False
        self._highs = {wanted: bet.high for wanted, bet in bets.items()}
        self._lows = {wanted: bet.low for wanted, bet in bets.items()}
        self._backend = backend
        self._by_index = by_index
        self._work = steps[0].work
        places = starts_of(steps)
        self._start = {step.name: at for step, at in zip(steps, places, strict=False)}
        self._room = most_open(places[-1], len(bets)) if room is None else room

    def windows(self, step: Step) -> tuple[Window, ...]:
        """What the pass goes by."""
        return windows_of(step, self._start[step.name], self._highs, self._by_index)

    def margins(self, step: Step) -> tuple[Margin, ...]:
        """How far those may be off."""
        start = self._start[step.name]
        strict = windows_of(step, start, self._highs, by_index=True)
        wide = windows_of(step, start, self._lows, self._by_index)
        return tuple(map(Margin, strict, wide))

    def add(self, step: Step, tile: Tile, found: Speculation) -> Reach:
        """Take in what the pass saw in one tile. Returns what was counted there."""
        reach = {
            wanted: tuple(found.kept[place, side].tolist())
            for wanted, place, side in self._bets_of(step)
        }
        self.count(reach)
        if not self.lost:
            self._keep_open(step, tile, found.open)
        return reach

    def count(self, reach: Reach) -> None:
        """Add what was counted in a part of the tensors."""
        for wanted, (by_key, by_cut) in reach.items():
            self.bets[wanted].reach_key += by_key
            self.bets[wanted].reach_cut += by_cut

    def restore(self, reach: Reach, opened: int) -> None:
        """Add what an earlier run counted in a part, with its open elements; doubts has them."""
        self.count(reach)
        self._room -= opened
        self.lost = self.lost or self._room < 0

    def scan(self, tensors: Tensors) -> None:
        """The pass, without merging."""
        for step, tile in tensors.tiles():
            op = _looking(self.windows(step), step.work)
            self.add(step, tile, self._backend.speculate(op, tile, self.margins(step), None))

    def verdict(self, tensors: Tensors) -> dict[Wanted, Key] | None:
        """The exact keys; None when a bet was lost, or left too much open.

        Reads the tensors again where a key is near, as far as it is off.
        """
        keys = None if self.lost else self._keys(tensors)
        self.lost = keys is None
        return keys

    def again(self, keys: Mapping[Wanted, Key]) -> Iterator[Part]:
        """Where near keys were off: what has to be merged again, in pieces of TILE_ALIGN."""
        near = (wanted for wanted, bet in self.bets.items() if self._near(bet))
        pairs = [(self.bets[wanted].high.place, keys[wanted].place) for wanted in near]
        intervals = [(min(pair) + 1, max(pair) + 1) for pair in pairs if pair[0] != pair[1]]
        return parts_between(self.steps, intervals)

    def _keep_open(self, step: Step, tile: Tile, marks: Array) -> None:
        found = self._backend.compact(tile, marks, self._room)
        self.lost = found is None
        if found is None:
            return
        index, values = found
        self._room -= len(index)
        if len(index):
            index = index + tile.offset if tile.offset else index
            self.doubts.append(Doubt(step, index, values))

    def _keys(self, tensors: Tensors) -> dict[Wanted, Key] | None:
        keys: dict[Wanted, Key] = {}
        ranks: dict[Wanted, int] = {}
        reached, between = self._open_ones()
        for wanted, bet in self.bets.items():
            if self._near(bet):
                key = walk(self._backend, tensors, wanted[0], bet.high, bet.off)
                if key is None:
                    return None
                keys[wanted] = key
            elif not bet.won(between[wanted], self._by_index):
                return None
            elif bet.off <= 0:
                keys[wanted] = bet.high
            else:
                ranks[wanted] = bet.off + reached[wanted]
        return keys | self._keys_in_doubt(ranks)

    def _keys_in_doubt(self, ranks: Mapping[Wanted, int]) -> dict[Wanted, Key]:
        """The keys of ranks among the elements in doubt."""
        tensors, by_index = DoubtTensors(self.doubts), self._by_index
        backend, work = self._backend, self._work
        if sum(step.numel for step in tensors.steps) <= MOST:
            sample = draw(backend, tensors, work, [expert for expert, _ in ranks], everything=True)
            pairs = guess(sample, work, ranks, by_index=by_index)
            found = {wanted: key for wanted, (key, _) in pairs.items()}
        else:
            found = keys_by_counting(backend, tensors, work, ranks, by_index=by_index)
        return {wanted: self._placed(tensors, key) for wanted, key in found.items()}

    def _near(self, bet: Bet) -> bool:
        return self._by_index and bet.high == bet.low

    def _bets_of(self, step: Step) -> Iterator[tuple[Wanted, int, int]]:
        """Those on a tensor's experts: the bet, the expert's place in the tile, the cut."""
        for place, expert in enumerate(step.expert_index):
            for side in (LOWER, UPPER):
                if (expert, side) in self.bets:
                    yield (expert, side), place, side

    def _open_ones(self) -> tuple[dict[Wanted, int], dict[Wanted, int]]:
        """Of the elements kept: how many reach each bet's cut, and how many lie just below, which
        is between its keys."""
        reached = dict.fromkeys(self.bets, 0)
        between = dict.fromkeys(self.bets, 0)
        for doubt in self.doubts:
            given = [doubt.window(window) for window in self.windows(doubt.step)]
            wide = [doubt.window(margin.wide) for margin in self.margins(doubt.step)]
            margins = [Margin(strict=w, wide=g) for w, g in zip(wide, given, strict=True)]
            op = _looking(given, doubt.step.work)
            kept = self._backend.speculate(op, doubt.tile, margins, None).kept
            for wanted, place, side in self._bets_of(doubt.step):
                reach_wide, reach_cut = kept[place, side].tolist()
                reached[wanted] += reach_cut
                between[wanted] += reach_wide - reach_cut
        return reached, between

    def _placed(self, tensors: DoubtTensors, key: Key) -> Key:
        """A key among the open elements as a key among all."""
        if not self._by_index:
            return key
        starts = starts_of(tensors.steps)
        number = bisect_right(starts, key.place) - 1
        doubt = self.doubts[number]
        at = int(doubt.index[key.place - starts[number]])
        return Key(key.magnitude, self._start[doubt.step.name] + at)


def _looking(windows: Sequence[Window], work: DType) -> FusedOp:
    """An op for passes that only look."""
    experts = tuple(ExpertScalars(k, 1.0, window=window) for k, window in enumerate(windows))
    return FusedOp("task_vector", experts, work=work)
