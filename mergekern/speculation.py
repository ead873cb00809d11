"""Exact trimming in one pass: guess the cuts, go by the guess, keep what it leaves open, verify.

A sample brackets every wanted key. One pass counts what reaches the upper end of each bracket, and
keeps the few elements that lie between the ends. If the counts prove the brackets right, the exact
cut is found among those elements alone, and their outputs are all that is left to be set right;
what a wrong bracket costs is a pass that counts.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Protocol

import torch

from mergekern.backends import Backend, Margin, Speculation
from mergekern.counting import Search, keys_by_counting
from mergekern.fused import EVERY_INDEX, ExpertScalars, Findings, FusedOp, Tile, Window
from mergekern.keys import LOWER, UPPER, Key, Wanted, bound_of, starts_of, windows_of
from mergekern.plan import Step
from mergekern.sampling import guess, most_open
from mergekern.tiles import Part, Tensors, cut


@dataclass(frozen=True)
class Piece:
    """The open elements of one tile: their indices in the tensor (ascending), and their values."""

    step: Step
    index: torch.Tensor
    tile: Tile

    def window(self, window: Window) -> Window:
        """The same window, its last indices counted among these elements."""
        return replace(
            window, lo_last=self._last(window.lo_last), hi_last=self._last(window.hi_last)
        )

    def fuse(self, backend: Backend, op: FusedOp, out: torch.Tensor) -> Findings:
        """Merge these elements and put them where they belong in `out`, the whole tensor.

        Nothing may be dropped at random: a coin goes by the index in the tensor.
        """
        experts = tuple(replace(e, window=self.window(e.window)) for e in op.experts)
        merged = torch.empty(self.tile.numel, dtype=out.dtype)
        found = backend.fuse(replace(op, experts=experts), self.tile, merged)
        out[self.index] = merged
        return found

    def _last(self, last: int) -> int:
        if last == EVERY_INDEX:
            return last
        return int(torch.searchsorted(self.index, last, right=True)) - 1


class Pieces(Protocol):
    """Where pieces are kept until the verdict; a list will do."""

    def append(self, piece: Piece, /) -> None: ...

    def __getitem__(self, number: int, /) -> Piece: ...

    def __iter__(self) -> Iterator[Piece]: ...


@dataclass
class Bet:
    """A wanted rank, the keys it is bet to lie between, and how many elements reach the upper one:
    by the key, and by the cut that the pass goes by."""

    rank: int
    high: Key
    low: Key
    reach_key: int = 0
    reach_cut: int = 0

    def won(self, between: int) -> bool:
        """between: how many elements lie between."""
        return self.reach_key <= self.rank <= self.reach_cut + between


class Trial:
    """One pass over some tensors with guessed cuts.

    by_index: equal magnitudes are told apart by their place; otherwise a cut has all or none
    pieces:   where open elements go
    room:     how many there may be; None for twice what is to be expected
    """

    def __init__(
        self,
        backend: Backend,
        tensors: Tensors,
        ranks: Mapping[Wanted, int],
        by_index: bool,
        pieces: Pieces | None = None,
        room: int | None = None,
    ) -> None:
        self.steps = tensors.steps
        self.pieces: Pieces = [] if pieces is None else pieces
        self._backend = backend
        self._by_index = by_index
        places = starts_of(self.steps)
        self._start = {s.name: at for s, at in zip(self.steps, places, strict=False)}
        self._sizes: list[tuple[Step, int]] = []  # of the pieces
        self._work = self.steps[0].work
        self.lost = False
        total = sum(step.numel for step in self.steps)
        self._room = most_open(total, len(ranks)) if room is None else room
        found = guess(backend, tensors, self._work, ranks)
        self.bets = {wanted: Bet(rank, *found[wanted]) for wanted, rank in ranks.items()}

    def windows(self, step: Step) -> tuple[Window, ...]:
        """What the pass goes by."""
        highs = {wanted: bet.high for wanted, bet in self.bets.items()}
        return windows_of(step, self._start[step.name], highs, self._by_index)

    def margins(self, step: Step) -> tuple[Margin, ...]:
        """How far those may be off."""
        start = self._start[step.name]
        highs = {wanted: bet.high for wanted, bet in self.bets.items()}
        lows = {wanted: bet.low for wanted, bet in self.bets.items()}
        strict = windows_of(step, start, highs, by_index=True)
        wide = windows_of(step, start, lows, self._by_index)
        return tuple(map(Margin, strict, wide))

    def add(self, step: Step, tile: Tile, found: Speculation) -> None:
        """Take in what the pass saw in one tile."""
        for wanted, place, side in self._bets_of(step):
            reach_key, reach_cut = found.kept[place, side].tolist()
            self.bets[wanted].reach_key += reach_key
            self.bets[wanted].reach_cut += reach_cut
        if self.lost:
            return
        index, values = self._backend.compact(tile, found.open)
        self._room -= index.numel()
        self.lost = self._room < 0
        if index.numel():
            self._sizes.append((step, index.numel()))
            self.pieces.append(Piece(step, index + tile.offset, values))

    def scan(self, tensors: Tensors) -> None:
        """The pass, without merging."""
        for step, tile in tensors.tiles():
            op = _looking(self.windows(step), step.work)
            self.add(step, tile, self._backend.speculate(op, tile, self.margins(step), None))

    def verdict(self) -> dict[Wanted, Key] | None:
        """The exact keys; None when a bet was lost, or left too much open."""
        if self.lost:
            return None
        reached, between = self._open_ones()
        self.lost = not all(bet.won(between[wanted]) for wanted, bet in self.bets.items())
        if self.lost:
            return None
        searches = {}
        for wanted, bet in self.bets.items():
            if bet.rank > bet.reach_cut:
                rank = bet.rank - bet.reach_cut + reached[wanted]
                high = min(bet.high.magnitude + 1, bound_of(self._work))
                searches[wanted] = Search(wanted[0], rank, bet.low.magnitude, high)
        tensors = _PieceTensors(self.pieces, self._sizes)
        found = keys_by_counting(
            self._backend, tensors, self._work, searches, by_index=self._by_index
        )
        return {
            wanted: self._placed(tensors, found[wanted]) if wanted in found else bet.high
            for wanted, bet in self.bets.items()
        }

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
        for piece in self.pieces:
            given = [piece.window(window) for window in self.windows(piece.step)]
            wide = [piece.window(margin.wide) for margin in self.margins(piece.step)]
            margins = [Margin(strict=w, wide=g) for w, g in zip(wide, given, strict=True)]
            op = _looking(given, piece.step.work)
            kept = self._backend.speculate(op, piece.tile, margins, None).kept
            for wanted, place, side in self._bets_of(piece.step):
                reach_wide, reach_cut = kept[place, side].tolist()
                reached[wanted] += reach_cut
                between[wanted] += reach_wide - reach_cut
        return reached, between

    def _placed(self, tensors: _PieceTensors, key: Key) -> Key:
        """A key among the open elements as a key among all."""
        if not self._by_index:
            return key
        number = bisect_right(tensors.starts, key.place) - 1
        piece = self.pieces[number]
        at = int(piece.index[key.place - tensors.starts[number]])
        return Key(key.magnitude, self._start[piece.step.name] + at)


class _PieceTensors:
    """Pieces as tensors of their own, for what is searched among them."""

    stretch = 0

    def __init__(self, pieces: Pieces, sizes: Sequence[tuple[Step, int]]) -> None:
        self._pieces = pieces
        self.steps = [
            replace(step, name=f"{step.name} {number}", shape=(size,))
            for number, (step, size) in enumerate(sizes)
        ]
        self._number = {step.name: number for number, step in enumerate(self.steps)}
        self.starts = list(accumulate((size for _, size in sizes), initial=0))

    def tiles(self) -> Iterator[tuple[Step, Tile]]:
        for number, step in enumerate(self.steps):
            yield step, self._pieces[number].tile

    def parts(self, parts: Sequence[Part]) -> Iterator[tuple[Sequence[Part], Tile]]:
        for part in parts:
            number = self._number[part.step.name]
            yield [part], cut(self._pieces[number].tile, part.start, part.stop)


def _looking(windows: Sequence[Window], work: torch.dtype) -> FusedOp:
    """An op for passes that only look."""
    experts = tuple(ExpertScalars(k, 1.0, window=window) for k, window in enumerate(windows))
    return FusedOp("task_vector", experts, work=work)
