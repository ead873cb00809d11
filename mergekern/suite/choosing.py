"""The candidates of a method: merged from shared reads, judged on the surrogate tasks, one kept."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mergekern.errors import MergeError
from mergekern.evaluate.subject import digest, subject_of
from mergekern.lock import LOCK
from mergekern.suite.judging import Judge, Tell
from mergekern.suite.merging import merge_apart
from mergekern.suite.schema import MethodEntry, Point, RunFile
from mergekern.suite.state import State


@dataclass(frozen=True)
class Candidate:
    """One merge of a method: its point on the grid, its recipe, where it goes.

    key:     of its recipe and its inputs' headers
    domains: those it is judged by; None: all
    """

    method: str
    name: str
    point: Point
    recipe: dict[str, Any]
    folder: Path
    key: str
    domains: tuple[str, ...] | None = None

    @property
    def cell(self) -> str:
        return f"{self.method}/{self.name}"

    @property
    def is_there(self) -> bool:
        return (self.folder / LOCK).is_file() and (self.folder / "config.json").is_file()


@dataclass
class Spent:
    """What a method's candidates took together.

    peak:  bytes of the largest merging process
    notes: of their merges, each once
    """

    merge_seconds: float = 0.0
    validation_seconds: float = 0.0
    peak: int = 0
    candidates: list[dict[str, Any]] = field(default_factory=list)  # point, surrogate score
    notes: list[str] = field(default_factory=list)


def candidates_of(run: RunFile, method: str, entry: MethodEntry) -> list[Candidate]:
    """In the order of the grid. Reads headers; raises MergeError for what cannot be merged."""
    found = []
    for name, point in entry.points.items():
        recipe = run.recipe(entry, point)
        key = digest([subject_of(recipe).identity, run.seed])
        folder = run.output / "merged" / method / name
        found.append(Candidate(method, name, point, recipe, folder, key, entry.experts))
    return found


class Contest:
    """Chooses among candidates."""

    def __init__(self, run: RunFile, state: State, judge: Judge, tell: Tell) -> None:
        self._run = run
        self._state = state
        self._judge = judge
        self._tell = tell

    def best(self, candidates: Sequence[Candidate]) -> tuple[Candidate, Spent]:
        """The one with the best mean over the surrogate's domains; of equals, and where there is
        one alone, the first. Raises MergeError when none can be had."""
        spent, best, top = Spent(), None, -math.inf
        for group in _groups(candidates, self._run.together):
            self._merge([each for each in group if not self._is_judged(each, candidates)])
            for candidate in group:
                score = self._score(candidate, candidates, spent)
                loser = candidate
                if score > top:
                    loser, best, top = best or candidate, candidate, score
                if loser is not best and not self._run.keep:
                    shutil.rmtree(loser.folder, ignore_errors=True)
        if best is None:
            raise MergeError("no candidate has a surrogate score; the lines above say why")
        if not best.is_there:
            self._merge([best])
        return best, spent

    def _score(self, candidate: Candidate, candidates: Sequence[Candidate], spent: Spent) -> float:
        merged = self._state.of(f"{candidate.cell}/merge") or {}
        spent.merge_seconds += merged.get("seconds", 0.0)
        spent.peak = max(spent.peak, merged.get("peak", 0))
        spent.notes += [note for note in merged.get("notes", ()) if note not in spent.notes]
        score = 0.0
        if len(candidates) > 1:
            cell, key = f"{candidate.cell}/surrogate", self._judge.key("surrogate", candidate.key)
            if self._state.done(cell, key) is None:
                folder = str(candidate.folder)
                self._judge.judge(cell, folder, "surrogate", candidate.domains, key=key)
            known = self._state.of(cell) or {}
            score = float(known.get("score", -math.inf))
            spent.validation_seconds += known.get("seconds", 0.0)
        told = None if len(candidates) == 1 or math.isinf(score) else score
        spent.candidates.append({"point": candidate.point, "surrogate": told})
        return score

    def _is_judged(self, candidate: Candidate, candidates: Sequence[Candidate]) -> bool:
        """Whether nothing is left to find out about it, so that it need not be there."""
        if self._state.done(f"{candidate.cell}/merge", candidate.key) is None:
            return False
        key = self._judge.key("surrogate", candidate.key)
        judged = self._state.done(f"{candidate.cell}/surrogate", key) is not None
        return judged or len(candidates) == 1

    def _merge(self, candidates: Sequence[Candidate]) -> None:
        """Those that are not there, from one read of their inputs."""
        left = [each for each in candidates if not self._is_merged(each)]
        if not left:
            return
        names = ", ".join(each.cell for each in left)
        self._tell(f"merging {names} …")
        for each in left:
            if not self._is_begun(each):
                shutil.rmtree(each.folder, ignore_errors=True)
                self._state.add(f"{each.cell}/merge", each.key, "begun")
        log = self._run.output / "logs" / f"{left[0].cell.replace('/', '.')}.merge.log"
        recipes, folders = [each.recipe for each in left], [each.folder for each in left]
        try:
            used = merge_apart(recipes, folders, self._run.merging, log)
        except MergeError as error:
            for each in left:
                self._state.add(f"{each.cell}/merge", each.key, "failed", reason=str(error))
            raise
        for each, notes in zip(left, used.notes, strict=True):
            facts = {"seconds": used.seconds / len(left), "peak": used.peak, "notes": notes}
            self._state.add(f"{each.cell}/merge", each.key, "done", **facts)
        self._tell(f"merged {names} in {used.seconds:.1f} s")

    def _is_merged(self, candidate: Candidate) -> bool:
        done = self._state.done(f"{candidate.cell}/merge", candidate.key)
        return done is not None and candidate.is_there

    def _is_begun(self, candidate: Candidate) -> bool:
        """Whether what lies in its folder is an unfinished merge of the same, which goes on."""
        known = self._state.of(f"{candidate.cell}/merge")
        return known is not None and known["key"] == candidate.key


def _groups(candidates: Sequence[Candidate], size: int) -> Iterator[Sequence[Candidate]]:
    for first in range(0, len(candidates), size):
        yield candidates[first : first + size]
