"""Builds the plan: every tensor of every model is merged, copied, or left out for a stated reason.

Reads headers and configs only. What does not fit together is an error that names the model, the
tensor, what was found and the option that decides, unless that option has been given.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from mergekern.checkpoint.base import Checkpoint, TensorInfo
from mergekern.checkpoint.layout import lay_out
from mergekern.collector import collector_paused
from mergekern.dtypes import FLOAT64, DType
from mergekern.errors import MismatchError
from mergekern.fitting import Fitting, Gone
from mergekern.layers import layers_of
from mergekern.options import DEFAULT, Options
from mergekern.outputs import Outputs
from mergekern.plan import Dropped, Input, Plan, Step
from mergekern.recipe import Recipe
from mergekern.spec import Spec
from mergekern.tied import Names, match_names

SOLUTIONS = "solutions of equations"


@collector_paused()
def build_plan(
    recipe: Recipe,
    checkpoints: Sequence[Checkpoint],
    options: Options = DEFAULT,
    *,
    share: bool = True,
) -> Plan:
    """Resolve a recipe against its opened checkpoints, given in the order of recipe.sources.

    options.mismatch: what to do with a tensor that some models lack, or have in another shape or
        kind:
        error       raise MismatchError
        base        take the base's tensor as it is; leave out what the base lacks
        skip-model  merge the models whose tensor fits the base's, or without a base the first one's
    share: tensors of one storage stay one, as they can in memory and not in files
    Raises MismatchError, and RecipeError for an option that cannot apply.
    """
    models = checkpoints[: len(recipe.models)]
    fitting = Fitting(recipe, checkpoints, options)
    names = match_names(models, fitting.donor, share)
    outputs = Outputs(recipe, models, names, fitting.donor)
    steps, gone = _decide_all(fitting, outputs)
    read = {given for step in steps for given in step.origins}
    solved = any(step.equations is not None for step in steps)
    gone = [*names.left_out, *gone, *_untouched(recipe, names, outputs, read)]
    gone += [
        (model, name, "no merged tensor asks for it")
        for model, checkpoint in enumerate(checkpoints[len(models) :], len(models))
        for name in checkpoint.tensors
    ]
    steps = _widen(_pooled(steps, outputs.config or models[fitting.donor].config), recipe.dtype)
    others = () if share else fitting.notes(models)
    return Plan(
        method=recipe.method.name,
        parameters=recipe.parameters,
        seed=recipe.seed,
        models=(*fitting.labels, *((SOLUTIONS,) if solved else ())),
        base=fitting.base,
        donor=fitting.donor,
        fingerprints=tuple(dict(checkpoint.fingerprint) for checkpoint in checkpoints),
        steps=tuple(steps),
        shards=lay_out(
            [TensorInfo(s.name, s.dtype, s.stored_shape) for s in steps], options.shard_bytes
        ),
        out_dtype=recipe.out_dtype or recipe.dtype,
        aliases=names.aliases,
        config=outputs.config,
        dropped=_dropped(fitting.labels, read, gone),
        input_bytes=_bytes_of(steps, checkpoints),
        notes=_notes(recipe, fitting, names, outputs.notes + others),
    )


def _decide_all(fitting: Fitting, outputs: Outputs) -> tuple[list[Step], Gone]:
    """Every output tensor's step and what is left out; all faults are counted in one error."""
    steps: list[Step] = []
    gone: Gone = []
    faults: list[str] = []
    for output in outputs:
        try:
            step, left_out = fitting.decide(output)
        except MismatchError as fault:
            faults.append(str(fault))
            continue
        gone += left_out
        steps += [] if step is None else [step]
    if faults:
        others = len(faults) - 1
        count = "1 more tensor does" if others == 1 else f"{others} more tensors do"
        raise MismatchError(faults[0] + (f" ({count} not fit)" if others else ""))
    return steps, gone


def _notes(
    recipe: Recipe, fitting: Fitting, names: Names, others: tuple[str, ...]
) -> tuple[str, ...]:
    renamed = (
        f"{fitting.labels[model]}: tensors are known {how}, as in {fitting.labels[fitting.donor]}"
        for model, how in names.renamed
    )
    return (*recipe.notes, *renamed, *others)


def _untouched(recipe: Recipe, names: Names, outputs: Outputs, read: Collection[Input]) -> Gone:
    """What slices and modules leave of the inputs."""
    first = recipe.parts[0]
    if len(recipe.parts) == 1 and not first.module and not any(e.layers for e in first.entries):
        return []
    return [
        (model, info.name, outputs.why_not(model, name))
        for model, stored in enumerate(names.stored)
        for name, info in stored.items()
        if (model, info.name) not in read
    ]


def _dropped(labels: Sequence[str], read: Collection[Input], gone: Gone) -> tuple[Dropped, ...]:
    """What no step reads; a tensor that serves two names may be left out of one and read by one."""
    reasons: dict[tuple[int, str], str] = {}
    for model, stored, reason in gone:
        if Input(model, stored) not in read:
            reasons.setdefault((model, stored), reason)
    return tuple(Dropped(labels[model], name, why) for (model, name), why in reasons.items())


def _widen(steps: list[Step], dtype: DType | None) -> list[Step]:
    """Work in fp64 where `dtype` says so, or where magnitudes of the whole model are compared."""
    whole_model = any(step.spec is not None and step.spec.whole_model for step in steps)
    widest = any(step.work == FLOAT64 for step in steps)
    asked = dtype is not None and dtype == FLOAT64  # numpy takes None for float64
    if not asked and not (whole_model and widest):
        return steps
    return [replace(step, work=FLOAT64) if step.action == "merge" else step for step in steps]


def _pooled(steps: list[Step], config: Mapping[str, Any]) -> list[Step]:
    """With the names of the pools whose tensors are weighed together; those of a pool share a
    spec."""
    if not any(_size_of_pool(step) for step in steps):
        return steps
    layers = layers_of([step.name for step in steps], config)
    specs: dict[tuple[int, str], Spec] = {}
    found = []
    for step in steps:
        size, spec = _size_of_pool(step), step.spec
        if size and spec is not None:
            pool = "model" if size == "model" else layers.around(step.name, size)
            spec = specs.setdefault((id(spec), pool), replace(spec, pool=pool))
        found.append(replace(step, spec=spec))
    return found


def _size_of_pool(step: Step) -> Literal["", "module", "layer", "model"]:
    by = "" if step.spec is None else step.spec.by_energy
    return "" if by == "tensor" else by


def _bytes_of(steps: Sequence[Step], checkpoints: Sequence[Checkpoint]) -> int:
    """What one pass reads; layers that share a matrix are solved for with one reading of it."""
    solved = [step.equations for step in steps if step.equations is not None]
    grams = {gram for equations in solved for gram in equations.grams}
    read = [given for step in steps for given in step.origins]
    if grams:
        read = [*grams, *(given for given in read if given not in grams)]
    return sum([checkpoints[model].tensors[name].nbytes_read for model, name in read])
