"""Evaluations as cells of a run: finished ones are found again, and what they took is recorded."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

from mergekern.errors import EvaluationError, MergeError
from mergekern.evaluate.evaluation import Evaluation
from mergekern.evaluate.options import EvaluationOptions
from mergekern.evaluate.report import mean_score
from mergekern.evaluate.run import choose_suite, evaluate
from mergekern.evaluate.subject import digest
from mergekern.evaluate.suites import Suite
from mergekern.methods import nearest
from mergekern.suite.schema import Judgement, RunFile
from mergekern.suite.state import State

Tell = Callable[[str], None]
# What of evaluate() a run says elsewhere, or has no use for.
OURS = ("model", "suite", "tasks", "output", "like", "limit", "dry_run", "tell")


class Judge:
    """Evaluates models on what the run names: evaluation, surrogate, forgetting."""

    def __init__(self, run: RunFile, state: State, tell: Tell) -> None:
        self._run = run
        self._state = state
        self._tell = tell
        given = {
            "evaluation": run.evaluation,
            "surrogate": run.surrogate,
            "forgetting": run.forgetting,
        }
        self._given: dict[str, Judgement] = {n: j for n, j in given.items() if j is not None}
        self.suites: dict[str, Suite] = {
            name: _suite_of(judgement) for name, judgement in self._given.items()
        }

    def check(self) -> None:
        """Raise EvaluationError for what evaluate() does not take."""
        known = [name for name in inspect.signature(evaluate).parameters if name not in OURS]
        for name in self._run.evaluate:
            if name not in known:
                hint = nearest(name, known)
                raise EvaluationError(
                    f"evaluate.{name} is no option of evaluations{hint}; want {', '.join(known)}"
                )
        checked = {each.name for each in fields(EvaluationOptions)} - {"include", "environments"}
        EvaluationOptions(**{n: v for n, v in self._run.evaluate.items() if n in checked})

    @property
    def suites_by_domain(self) -> dict[str, Suite]:
        """Those whose domains are the experts'."""
        return {on: suite for on, suite in self.suites.items() if on != "forgetting"}

    def key(self, on: str, *content: Any) -> str:
        """Of a cell that judges what the content stands for."""
        given = self._given.get(on)
        return digest([None if given is None else given.model_dump(), *content])

    def judge(
        self,
        cell: str,
        model: str,
        on: str,
        domains: Sequence[str] | None = None,
        key: str | None = None,
    ) -> Evaluation | None:
        """A model's evaluation; None where the run does not ask for it, or it failed as a whole.

        domains: those alone; key: of the cell, if the model's name does not say what it is
        """
        if on not in self.suites:
            return None
        suite = self.suites[on] if domains is None else self.suites[on].only(*domains)
        key = key or self.key(on, model, domains)
        known = self._state.done(cell, key) or {}
        began = time.monotonic()
        try:
            found: Evaluation = evaluate(
                model,
                suite=suite,
                output=self._run.output / "results",
                limit=self._given[on].limit,
                tell=lambda line: self._tell(f"{cell}: {line}"),
                **self._run.evaluate,
            )
        except MergeError as error:
            self._state.add(cell, key, "failed", reason=str(error))
            self._tell(f"{cell}: failed: {error}")
            return None
        if not known or any(each.status == "done" for each in found.cells):
            spent = known.get("seconds", 0.0) + time.monotonic() - began
            self._record(cell, key, found, spent)
        return found

    def _record(self, cell: str, key: str, found: Evaluation, seconds: float) -> None:
        facts: dict[str, Any] = {"seconds": seconds}
        if found.scores:
            facts["score"] = mean_score(found.scores).value
        if lost := {each.task.task: each.reason for each in found.cells if each.stored is None}:
            facts["missing"] = lost
        self._state.add(cell, key, "done" if found.scores else "failed", **facts)


def _suite_of(given: Judgement) -> Suite:
    suite = choose_suite(given.suite, None)
    return suite if given.domains is None else suite.only(*given.domains)
