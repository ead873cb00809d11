"""Running a suite: every cell once, one line of state each, the others go on when one fails."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from typing import Any

from mergekern import api
from mergekern.backends.choose import check_choice
from mergekern.errors import EvaluationError, MergeError
from mergekern.suite.choosing import Contest, candidates_of
from mergekern.suite.findings import find
from mergekern.suite.judging import Judge, Tell
from mergekern.suite.results import RESULTS, Chosen, Results, Row
from mergekern.suite.schema import MethodEntry, RunFile, load_run
from mergekern.suite.state import State


def run_suite(run: RunFile, *, tell: Tell | None = None) -> Results:
    """Evaluate base, experts and, of every method, its best candidate.

    What is finished is not done again. A cell that fails says why in the results, and the others go
    on. Raises MergeError, before anything is merged, for names, values and models that make no
    sense.
    """
    runner = _Runner(run, tell or (lambda line: None))
    runner.cells()
    return runner.run()


def plan_suite(run: RunFile) -> list[str]:
    """A line for every cell: what it is, and whether it is finished. Reads headers alone."""
    return _Runner(run, lambda line: None).cells()


class _Runner:
    def __init__(self, run: RunFile, tell: Tell) -> None:
        self._run = run
        self._state = State(run.output / "state.jsonl")
        self._judge = Judge(run, self._state, tell)
        self._contest = Contest(run, self._state, self._judge, tell)

    def cells(self) -> list[str]:
        """Checks everything that can be known beforehand on the way."""
        self._check()
        lines = [f"base: {self._run.base}"]
        for domain, model in self._run.experts.items():
            self._judge.suites["evaluation"].only(domain)
            lines.append(f"expert of {domain}: {model}")
        for name, entry in self._run.methods.items():
            if len(entry.points) > 1 and self._run.surrogate is None:
                raise EvaluationError(
                    f"methods.{name} has {len(entry.points)} candidates and nothing to choose by: "
                    "give surrogate, or one value for each parameter"
                )
            for suite in self._judge.suites_by_domain.values():
                suite.only(*(entry.experts or ()))
            for candidate in candidates_of(self._run, name, entry):
                api.plan(candidate.recipe, seed=self._run.seed, max_memory=self._run.max_memory)
                done = self._state.done(f"{candidate.cell}/merge", candidate.key)
                lines.append(f"{candidate.cell}: {'merged before' if done else 'to be merged'}")
        for on, suite in self._judge.suites.items():
            lines.append(f"{on}: {suite.name}, {len(suite.tasks)} tasks")
        return lines

    def _check(self) -> None:
        """What every cell would stumble over."""
        run = self._run
        check_choice("auto", run.merge_device, run.threads)
        self._judge.check()
        if run.weaker is not None:
            load_run(run.weaker)

    def run(self) -> Results:
        run, judge = self._run, self._judge.judge
        base = judge("base/evaluation", run.base, "evaluation")
        experts = {
            domain: judge(
                f"experts/{domain}/evaluation",
                model,
                "evaluation",
                None if run.whole_experts else [domain],
            )
            for domain, model in run.experts.items()
        }
        forgetting = {
            domain: judge(f"experts/{domain}/forgetting", model, "forgetting")
            for domain, model in run.experts.items()
        }
        results = Results(
            base=base,
            base_forgetting=judge("base/forgetting", run.base, "forgetting"),
            experts={domain: found for domain, found in experts.items() if found is not None},
            expert_forgetting={d: found for d, found in forgetting.items() if found is not None},
            rows=tuple(self._row(name, entry) for name, entry in run.methods.items()),
        )
        return replace(results, findings=find(results, run.plain, self._weaker()))

    def _weaker(self) -> Any:
        """The results over a weaker base, where they are there."""
        if self._run.weaker is None:
            return None
        path = load_run(self._run.weaker).output / RESULTS
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def _row(self, method: str, entry: MethodEntry) -> Row:
        """A method from its candidates to its evaluation; the row says what failed."""
        try:
            best, spent = self._contest.best(candidates_of(self._run, method, entry))
        except MergeError as error:
            return Row(method, failed=str(error), experts=entry.experts)
        folder, cell = str(best.folder), f"{method}/evaluation"
        key = self._judge.key("evaluation", best.key)
        whole = self._judge.judge(cell, folder, "evaluation", entry.experts, key=key)
        known = self._state.of(cell) or {}
        forgetting = None
        if entry.experts is None:
            key = self._judge.key("forgetting", best.key)
            forgetting = self._judge.judge(f"{method}/forgetting", folder, "forgetting", key=key)
        return Row(
            method,
            chosen=Chosen(best.point, entry.merge_method or str(entry.preset), asdict(spent)),
            evaluation=whole,
            forgetting=forgetting,
            experts=entry.experts,
            evaluation_seconds=float(known.get("seconds", math.nan)),
            failed="" if whole is not None else str(known.get("reason", "")),
        )
