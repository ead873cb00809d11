"""Trimmed merges of tensors in memory, in one pass over them and a few elements more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mergekern.arrays import Array, joined
from mergekern.backends import Backend, Margin, Speculation
from mergekern.fused import Findings, FusedOp, Tile
from mergekern.plan import Step
from mergekern.statistics import fused_op
from mergekern.tiles import Part, Tensors, cut
from mergekern.trimming import Windows, outcome, start_trial


@dataclass(frozen=True)
class Merging:
    """One merge: its steps and its outputs, both by name, and what its passes found."""

    steps: Mapping[str, Step]
    outs: Mapping[str, Array]
    found: dict[str, Findings]

    def note(self, name: str, found: Findings) -> None:
        """Add what a pass over a part of a tensor found."""
        self.found[name] = self.found.get(name, Findings()) | found


class OnePass:
    """Merges that trim the same tensors alike, and differ in what they make of the rest: one
    sample, one count and one set of open elements serve them all.

    tensors: each in one tile, ranked together. See Spec.one_pass for which specs allow it, Trial
             for `room`
    """

    def __init__(
        self,
        backend: Backend,
        tensors: Tensors,
        merges: Sequence[Merging],
        room: int | None = None,
    ) -> None:
        trial = start_trial(backend, tensors, room=room)
        assert trial is not None, "nothing to trim"
        self._trial = trial
        self._backend = backend
        self._tensors = tensors
        self._merges = merges
        self._begun: _Begun | None = None

    def take(self, step: Step, whole: Tile, tile: Tile) -> None:
        """Merge a tile as the guess has it. All of a tensor is taken before the next one begins,
        and the tensors in their order."""
        begun = self._begun
        if begun is None:
            windows = self._trial.windows(step)
            ops = [fused_op(merge.steps[step.name], windows) for merge in self._merges]
            begun = self._begun = _Begun(ops, self._trial.margins(step), [])
        stop = tile.offset + tile.numel
        for merge, op in zip(self._merges, begun.ops, strict=True):
            out = merge.outs[step.name][tile.offset : stop]
            if op is begun.ops[0]:
                seen = self._backend.speculate(op, tile, begun.margins, out)
                begun.parts.append(seen)
                merge.note(step.name, seen.findings)
            else:
                merge.note(step.name, self._backend.fuse(op, tile, out))
        if stop == whole.numel:
            self._trial.add(step, whole, begun.seen())
            self._begun = None

    def finish(self) -> Windows:
        """Set right what the guess left open, or all of it where the guess was wrong. Returns the
        exact windows."""
        result = outcome(self._backend, self._tensors, self._trial)
        tiles = {step.name: tile for step, tile in self._tensors.tiles()}
        for merge in self._merges:
            ops = {
                name: fused_op(merge.steps[name], windows)
                for name, windows in result.windows.items()
            }
            if not result.lost:
                self._mend(merge, ops, result.again, tiles)
            for name, found in merge.found.items():
                # Too large a result may have been one that went by a wrong guess.
                if result.lost or found.overflow:
                    out = merge.outs[name]
                    merge.found[name] = self._backend.fuse(ops[name], tiles[name], out)
        return result.windows

    def _mend(
        self,
        merge: Merging,
        ops: Mapping[str, FusedOp],
        again: Sequence[Part],
        tiles: Mapping[str, Tile],
    ) -> None:
        for doubt in self._trial.doubts:
            name = doubt.step.name
            merge.note(name, doubt.fuse(self._backend, ops[name], merge.outs[name]))
        for part in again:
            name = part.step.name
            tile = cut(tiles[name], part.start, part.stop)
            out = merge.outs[name][part.start : part.stop]
            merge.note(name, self._backend.fuse(ops[name], tile, out))


@dataclass(frozen=True)
class _Begun:
    """A tensor of which parts were seen."""

    ops: list[FusedOp]
    margins: tuple[Margin, ...]
    parts: list[Speculation]

    def seen(self) -> Speculation:
        """What one pass over all of it would have seen: tiles begin at whole bytes of marks."""
        if len(self.parts) == 1:
            return self.parts[0]
        kept = sum((part.kept for part in self.parts[1:]), self.parts[0].kept)
        return Speculation(Findings(), kept, joined([part.open for part in self.parts]))
