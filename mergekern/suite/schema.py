"""The run file: which models, which methods with which values, evaluated on what.

base: org/base
experts: {math: org/math, coding: org/coding}     # by the domain that each is best in
methods:
  soup: {preset: mergebench/model_soup}
  ties: {merge_method: ties, parameters: {density: 0.2}, grid: {lambda: [0.4, 0.7, 1.0]}}
surrogate: {suite: mergebench-surrogate, limit: 200}   # chooses among a method's candidates
evaluation: {suite: mergebench}
forgetting: {suite: forgetting}                        # optional
whole_experts: true     # experts are evaluated on all of it, not on their own domain alone
plain: soup             # the method that findings compare the others with
weaker: weaker.yml      # a run over a weaker base and its experts, which findings compare with
output: runs/llama
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from mergekern.evaluate.suites import checked_file
from mergekern.methods import get_method, method_of

Text = Annotated[str, Field(min_length=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")]
Point = dict[str, Any]  # parameter -> value


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MethodEntry(_Strict):
    """One method: its recipe without models, and the values to choose among.

    grid: parameter -> values; every combination is a candidate
    base: whether the recipe names the base; when not given, where the method needs one
    statistics: domain -> the file that `mergekern collect` made of its expert
    experts: the domains whose experts are merged; all of them when not given. Fewer are
             evaluated on their own domains alone.
    """

    merge_method: Text | None = None
    preset: Text | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)
    grid: dict[Text, Annotated[list[Any], Field(min_length=1)]] = Field(default_factory=dict)
    dtype: str | None = None
    base: bool | None = None
    statistics: dict[Name, Text] = Field(default_factory=dict)
    experts: Annotated[tuple[Name, ...], Field(min_length=1)] | None = None

    @property
    def names_base(self) -> bool:
        if self.base is not None:
            return self.base
        method = get_method(self.merge_method) if self.merge_method else method_of(str(self.preset))
        # Of a base that may be left out, methods with statistics take what has none.
        return method.base_role in ("required", "first") or bool(method.statistics)

    @property
    def points(self) -> dict[str, Point]:
        """The candidates by name, like `density=0.1,lambda=0.5`; one called `given` without any."""
        found = {}
        for values in product(*self.grid.values()):
            point = dict(zip(self.grid, values, strict=True))
            name = ",".join(f"{key}={_text(value)}" for key, value in point.items())
            found[name or "given"] = point
        return found


class Judgement(_Strict):
    """On what models are judged.

    domains: of the suite; all of them when not given
    limit:   items of each task; all of them when not given
    """

    suite: Text
    domains: Annotated[tuple[Text, ...], Field(min_length=1)] | None = None
    limit: Annotated[int, Field(ge=1)] | None = None


class RunFile(_Strict):
    """A run; see the module."""

    base: Text
    experts: Annotated[dict[Name, Text], Field(min_length=1)]
    methods: Annotated[dict[Name, MethodEntry], Field(min_length=1)]
    evaluation: Judgement
    surrogate: Judgement | None = None
    forgetting: Judgement | None = None
    output: Path
    seed: int = 0
    dtype: str | None = None
    max_memory: str | None = None
    threads: Annotated[int, Field(ge=1)] | None = None
    merge_device: str = "auto"
    together: Annotated[int, Field(ge=1)] = 4  # candidates that one read of the inputs makes
    keep: bool = False  # candidates that were not chosen
    whole_experts: bool = False
    plain: Name | None = None
    weaker: Path | None = None
    evaluate: dict[str, Any] = Field(default_factory=dict)  # of mergekern.evaluate(): device …

    @field_validator("methods")
    @classmethod
    def _has_a_method(cls, methods: dict[str, MethodEntry]) -> dict[str, MethodEntry]:
        for name, entry in methods.items():
            if name in ("base", "experts"):
                raise ValueError(f"{name}: is what the models are called: want another name")
            if entry.merge_method is None and entry.preset is None:
                raise ValueError(f"{name}: want merge_method, or a preset that says it")
        return methods

    @model_validator(mode="after")
    def _names_what_is_there(self) -> RunFile:
        for name, entry in self.methods.items():
            for domain in (*entry.statistics, *(entry.experts or ())):
                if domain not in self.experts:
                    known = ", ".join(self.experts)
                    raise ValueError(f"methods.{name} names {domain}; there are experts of {known}")
        if self.plain is not None and self.plain not in self.methods:
            raise ValueError(f"plain is {self.plain!r}; there are {', '.join(self.methods)}")
        return self

    @property
    def merging(self) -> dict[str, Any]:
        """Of every merge."""
        return {
            "seed": self.seed,
            "max_memory": self.max_memory,
            "threads": self.threads,
            "device": self.merge_device,
        }

    def recipe(self, entry: MethodEntry, point: Point) -> dict[str, Any]:
        """The recipe of one candidate, as mergekern.merge() takes it."""
        given = {"merge_method": entry.merge_method, "preset": entry.preset}
        found: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
        if entry.names_base:
            found["base_model"] = self.base
        found["models"] = [
            {"model": model}
            | ({"statistics": entry.statistics[domain]} if domain in entry.statistics else {})
            for domain, model in self.experts.items()
            if entry.experts is None or domain in entry.experts
        ]
        found["parameters"] = {**entry.parameters, **point}
        if (dtype := entry.dtype or self.dtype) is not None:
            found["dtype"] = dtype
        return found


def load_run(path: str | Path) -> RunFile:
    """The run of a YAML file; local paths in it are taken from the file's folder.

    Raises EvaluationError naming the line and key at fault.
    """
    path = Path(path).expanduser()
    run = checked_file(RunFile, path, "run", "base, experts, methods …")
    beside = path.parent.absolute()
    methods = {name: _with_paths(beside, entry) for name, entry in run.methods.items()}
    return run.model_copy(
        update={
            "methods": methods,
            "base": _from(beside, run.base),
            "experts": {domain: _from(beside, model) for domain, model in run.experts.items()},
            "output": beside / run.output.expanduser(),
            "weaker": None if run.weaker is None else beside / run.weaker.expanduser(),
        }
    )


def _with_paths(folder: Path, entry: MethodEntry) -> MethodEntry:
    """Its statistics as seen from the folder."""
    found = {domain: _from(folder, path) for domain, path in entry.statistics.items()}
    return entry.model_copy(update={"statistics": found})


def _from(folder: Path, model: str) -> str:
    """A local path as seen from a folder; anything else, a Hub id above all, as it is."""
    beside = folder / Path(model).expanduser()
    return str(beside) if beside.exists() else model


def _text(value: Any) -> str:
    each = value if isinstance(value, list) else [value]
    return "_".join(str(one).lower().removesuffix(".0") for one in each)
