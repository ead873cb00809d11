"""A container's plan as text that a person reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mergekern.dtypes import dtype_name
from mergekern.report import group_dropped, group_steps, rows_text, show
from mergekern.sizes import format_size

if TYPE_CHECKING:  # plans print themselves with this module
    from mergekern.container.plans import ContainerPlan


def container_text(plan: ContainerPlan) -> str:
    """As a table: models, what is unified and whose own, what is written where, and its size."""
    unified = plan.unified
    given = "  ".join(f"{name}={show(value)}" for name, value in unified.parameters.items())
    dtypes = ", ".join(sorted({dtype_name(step.dtype) for step in unified.steps}))
    own = {name: [s for s in task.steps if s.records is None] for name, task in plan.tasks.items()}
    labels = [label for place, label in enumerate(unified.models) if place != unified.base]
    rows = [("method", f"{unified.method}  {given}".rstrip())]
    if unified.base is not None:
        rows.append(("base", unified.models[unified.base]))
    rows += [("task", f"{name}  {label}") for name, label in zip(plan.tasks, labels, strict=True)]
    kept = ", ".join(f"{len(steps)} own of {name}" for name, steps in own.items() if steps)
    counts = [f"{len(unified.steps)} unified", kept, f"{len(unified.dropped)} left out"]
    rows.append(("tensors", ", ".join(filter(None, counts))))
    rows.append(("reads", f"{format_size(plan.input_bytes)}, in 1 pass"))
    rows.append(("writes", f"{format_size(plan.output_bytes)} in all"))
    rows.append(("", f"unified/: {format_size(unified.output_bytes)} of {dtypes}"))
    for name, task in plan.tasks.items():
        masks = sum(step.nbytes for step in task.steps if step.records is not None)
        mine = sum(step.nbytes for step in own[name])
        besides = f", {format_size(mine)} its own" if mine else ""
        rows.append(("", f"tasks/{name}/: {format_size(masks)} of masks{besides}"))
    rows.append(("", f"sums/: {format_size(plan.sums.output_bytes)}, what rescalers are made of"))
    if plan.memory is not None:
        rows.append(("memory", str(plan.memory)))
    for name, steps in own.items():
        rows += [
            (f"own of {name}", each)
            for action in ("copy", "merge")
            for each in group_steps(steps, action)
        ]
    rows += [("left out", line) for line in group_dropped(unified.dropped)]
    rows += [("note", note) for note in plan.notes]
    return rows_text(rows)
