"""Plans and results as text that a person reads."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import yaml

from mergekern.dtypes import dtype_name
from mergekern.sizes import format_size

if TYPE_CHECKING:  # plans print themselves with this module
    from mergekern.plan import Dropped, Plan, Step

NUMBERED = re.compile(r"(.*?\.|)(\d+)\.(.*)")
SHOWN = 3  # names of a group before "and N more"


def plan_text(plan: Plan) -> str:
    """The plan as a table: models, parameters, steps, what is left out, bytes, memory, passes."""
    rows = [("method", f"{plan.method}  {_parameters(plan)}".rstrip()), *_models(plan)]
    merged = sum(step.action == "merge" for step in plan.steps)
    copied = len(plan.steps) - merged
    dtypes = ", ".join(sorted({dtype_name(step.dtype) for step in plan.steps}))
    files = "1 file" if len(plan.shards) == 1 else f"{len(plan.shards)} files"
    passes = "1 pass" if plan.passes == 1 else f"{plan.passes} passes"
    passes += ", rarely one more" if plan.passes > 1 and plan.whole_model else ""
    rows += [
        ("tensors", f"{merged} merged, {copied} copied, {len(plan.dropped)} left out"),
        *_solved(plan),
        ("reads", f"{format_size(plan.input_bytes)}, in {passes}"),
        ("writes", f"{format_size(plan.output_bytes)} of {dtypes} in {files}"),
    ]
    if plan.memory is not None:
        rows.append(("memory", str(plan.memory)))
    rows += [("shares", f"{alias} with {first}") for alias, first in plan.aliases.items()]
    rows += [("copied", line) for line in group_steps(plan.steps, "copy")]
    rows += [("merged", line) for line in group_steps(plan.steps, "merge")]
    rows += [("layers", line) for line in group_layers(plan)]
    rows += [("left out", line) for line in group_dropped(plan.dropped)]
    rows += [("note", note) for note in plan.notes]
    return rows_text(rows)


def many_text(names: Sequence[str], plans: Sequence[Plan], input_bytes: int, memory: Any) -> str:
    """Plans that share their inputs: what they come to together, their names, the first in full."""
    output_bytes = sum(plan.output_bytes for plan in plans)
    rows = [
        ("merges", str(len(plans))),
        ("inputs", f"{format_size(input_bytes)} that they share"),
        ("writes", f"{format_size(output_bytes)} in all"),
        *([] if memory is None else [("memory", str(memory))]),
        *(("merge", name) for name in names),
    ]
    return "\n".join([*_align(rows), f"\nplan of {names[0]}:", plan_text(plans[0])])


def group_steps(steps: Iterable[Step], action: str) -> list[str]:
    """Steps of an action that have a note, those with the same one in one line."""
    groups: dict[str, list[str]] = {}
    for step in steps:
        if step.note and step.action == action:
            groups.setdefault(step.note, []).append(step.name)
    return [f"{_some(names)}: {note}" for note, names in groups.items()]


def group_dropped(dropped: Iterable[Dropped]) -> list[str]:
    """What is left out, by model and reason."""
    groups: dict[tuple[str, str], list[str]] = {}
    for gone in dropped:
        groups.setdefault((gone.model, gone.reason), []).append(gone.tensor)
    return [f"{_some(names)} of {model}: {reason}" for (model, reason), names in groups.items()]


def per_model(parameters: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    """The parameters that have one value per expert."""
    return {name: value for name, value in parameters.items() if isinstance(value, tuple)}


def _parameters(plan: Plan) -> str:
    shared = {k: v for k, v in plan.parameters.items() if not isinstance(v, tuple)}
    return "  ".join(f"{name}={show(value)}" for name, value in shared.items())


def _models(plan: Plan) -> list[tuple[str, str]]:
    values = per_model(plan.parameters)
    experts = list(plan.models[: plan.solutions])
    rows = []
    if plan.base is not None and any(len(each) < len(experts) for each in values.values()):
        rows.append(("base", experts.pop(plan.base)))
    for place, label in enumerate(experts):
        own = {name: each[place] for name, each in values.items() if place < len(each)}
        settings = "  ".join(f"{name}={show(value)}" for name, value in own.items())
        rows.append(("model", f"{label}  {settings}".rstrip()))
    return rows


def _solved(plan: Plan) -> list[tuple[str, str]]:
    widths = {s.equations.sizes(s.shape)[0] for s in plan.steps if s.equations is not None}
    count = sum(step.equations is not None for step in plan.steps)
    systems = ", ".join(map(str, sorted(widths)))
    return [("solves", f"{count} tensors, with matrices of {systems} rows")] if count else []


def group_layers(plan: Plan) -> list[str]:
    """Layers that have another number in the output than in the models they come from."""
    moved: dict[tuple[int, str, int], set[int]] = {}
    for step in plan.steps:
        for read in (read for read in step.origins if read.name != step.name):
            made, given = NUMBERED.fullmatch(step.name), NUMBERED.fullmatch(read.name)
            if made and given and given[3] == made[3] and given[2] != made[2]:
                shift = int(made[2]) - int(given[2])
                moved.setdefault((read.model, given[1], shift), set()).add(int(given[2]))
    return [
        f"{prefix}{_run(first, last)} of {plan.models[model]} as "
        f"{_run(first + shift, last + shift)}"
        for (model, prefix, shift), layers in moved.items()
        for first, last in _runs(layers)
    ]


def _runs(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """The first and last of every run without a gap."""
    runs: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][1] == number - 1:
            runs[-1] = runs[-1][0], number
        else:
            runs.append((number, number))
    return runs


def _run(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}–{last}"


def show(value: Any) -> str:
    """A parameter's value as recipes write it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, dict)):  # gradients and filters
        return yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False).strip()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def rows_text(rows: Sequence[tuple[str, str]]) -> str:
    """Rows of a word and a text, the texts below one another."""
    return "\n".join(_align(rows))


def _align(rows: Sequence[tuple[str, str]]) -> list[str]:
    """Two columns; a word that repeats the one above it is left blank."""
    width = max(len(word) for word, _ in rows)
    lines, above = [], ""
    for word, text in rows:
        lines.append(f"{'' if word == above else word:<{width}}  {text}")
        above = word
    return lines
