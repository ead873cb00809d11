"""Suites of tasks as data: which tasks make up which domain, how each is run, what it counts for.

description: ...
domains:
  math:
    - {task: gsm8k_cot, shots: 8, batch_size: 16, metrics: ["exact_match,flexible-extract"]}
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mergekern.errors import EvaluationError
from mergekern.methods import nearest
from mergekern.recipe.text import documents, spell

SUITES = Path(__file__).parent / "suites"
Harness = Literal["lm-eval", "bigcode", "safety"]
Text = Annotated[str, Field(min_length=1)]
Checked = TypeVar("Checked", bound=BaseModel)


class Task(BaseModel):
    """One task, its settings, and the number that is its score.

    task:          the harness's name for it
    shots:         None: the task's own
    batch_size:    None: the call's
    flags:         of the harness's command line, as --name value; true is a flag without a value
    generation:    for lm-eval, in place of the task's generation settings
    executes_code: runs what the model has written
    metrics:       as lm-eval names them, "metric,filter"; the first that a result has is the score,
                   without any the first metric that the result reports
    better:        where less is better, the score is 1 - value; None: what the result says
    scale:         of the metric; 100 for percents
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: Text
    harness: Harness = "lm-eval"
    shots: int | None = Field(default=None, ge=0)
    batch_size: int | None = Field(default=None, ge=1)
    flags: dict[str, bool | int | float | str] = Field(default_factory=dict)
    generation: dict[str, Any] = Field(default_factory=dict)
    executes_code: bool = False
    metrics: tuple[Text, ...] = ()
    better: Literal["higher", "lower"] | None = None
    scale: float = Field(default=1.0, gt=0)

    @model_validator(mode="after")
    def _fits_its_harness(self) -> Task:
        if self.harness == "lm-eval" and self.flags:
            raise ValueError("flags are for harnesses with a command line; lm-eval has generation")
        if self.harness != "lm-eval" and (self.generation or self.shots is not None):
            raise ValueError(f"{self.harness} takes flags, not shots or generation")
        return self


class Suite(BaseModel):
    """Tasks by domain. A domain's score is the mean of its tasks'."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Text
    description: str = ""
    domains: Annotated[
        dict[Text, Annotated[tuple[Task, ...], Field(min_length=1)]], Field(min_length=1)
    ]

    @model_validator(mode="after")
    def _each_task_once(self) -> Suite:
        names = [(task.harness, task.task) for tasks in self.domains.values() for task in tasks]
        twice = {name for _, name in names if names.count((_, name)) > 1}
        if twice:
            raise ValueError(f"task {sorted(twice)[0]!r} is there twice")
        return self

    @property
    def tasks(self) -> tuple[tuple[str, Task], ...]:
        """(domain, task) in order."""
        return tuple((domain, task) for domain, its in self.domains.items() for task in its)

    def only(self, *domains: str) -> Suite:
        """The suite with these domains alone; EvaluationError if it has none of that name."""
        for domain in domains:
            if domain not in self.domains:
                known = f"{nearest(domain, self.domains)} (it has {', '.join(self.domains)})"
                raise EvaluationError(f"suite {self.name} has no domain {domain!r}{known}")
        kept = {domain: its for domain, its in self.domains.items() if domain in domains}
        return self.model_copy(update={"domains": kept})


def suite_names() -> list[str]:
    """The suites that come with the package."""
    return sorted(path.stem for path in SUITES.glob("*.yaml"))


def load_suite(name: str | Path) -> Suite:
    """A suite by its name, or from a YAML file. Raises EvaluationError naming the key at fault."""
    path = SUITES / f"{name}.yaml"
    if str(name).endswith((".yaml", ".yml")):
        path = Path(name).expanduser()
    elif str(name) not in suite_names():
        known = f"{nearest(str(name), suite_names())}; there are {', '.join(suite_names())}"
        raise EvaluationError(f"no suite named {str(name)!r}{known}, or give a .yaml file")
    return checked_file(Suite, path, "suite", "description and domains", name=path.stem)


def checked_file(
    model: type[Checked], path: Path, kind: str, keys: str, **defaults: Any
) -> Checked:
    """A YAML file of one mapping as its pydantic model.

    kind, keys: what it is and holds, as messages say it;  defaults: of keys that it lacks
    Raises EvaluationError naming the line and key at fault.
    """
    try:
        found = documents(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise EvaluationError(f"{kind} {path} cannot be read: {reason}") from error
    if len(found) != 1 or not isinstance(found[0][0], dict):
        raise EvaluationError(f"{path}: want one mapping with {keys}")
    content, origin = found[0]
    try:
        return model.model_validate({**defaults, **content})
    except ValidationError as error:
        first = error.errors()[0]
        place = spell(first["loc"]) or kind
        fault = first["msg"].removeprefix("Value error, ")
        raise EvaluationError(f"{origin.at(*first['loc'])}{place}: {fault}") from error


def suite_of(tasks: Sequence[str]) -> Suite:
    """A suite of lm-eval's tasks by name, each a domain of its own."""
    return _checked(
        {"name": "tasks", "domains": {task: ({"task": task},) for task in tasks}}, tasks
    )


def _checked(content: dict[str, Any], tasks: Sequence[str]) -> Suite:
    if len(set(tasks)) < len(tasks):
        raise EvaluationError(f"tasks are {', '.join(tasks)}: one is there twice")
    try:
        return Suite.model_validate(content)
    except ValidationError as error:
        raise EvaluationError(f"tasks are {list(tasks)!r}; want names, at least one") from error
