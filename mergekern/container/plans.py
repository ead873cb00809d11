"""Plans of a container: one for what is unified, one for every task, one for the sums of rescalers.

They run together, so that every input is read once. A tensor is unified over the models in which it
fits the base's; where it does not fit, it is the task's own, and stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from mergekern.backends import CHUNK
from mergekern.checkpoint.base import Checkpoint, TensorInfo
from mergekern.checkpoint.container import SUMS, TASKS, UNIFIED
from mergekern.checkpoint.layout import lay_out
from mergekern.container.text import container_text
from mergekern.dtypes import DISCRETE, FLOAT64, MERGEABLE, UINT8, DType, dtype_name, work_dtype
from mergekern.errors import MismatchError, RecipeError
from mergekern.fitting import Fitting
from mergekern.naming import renamed
from mergekern.options import Options
from mergekern.packed import packed_shape
from mergekern.plan import Dropped, Input, Plan, Records, Step
from mergekern.recipe import Recipe
from mergekern.spec import AS_IS, Emitted, Spec, Unify

Held = Mapping[int, TensorInfo]  # by model
MASK = Records(8)


@dataclass(frozen=True)
class ContainerPlan:
    """What a merge into a container would do; str() shows it.

    tasks:  by name, in the order of the recipe's models
    names:  of each task's tensors, where they are not the base's: the base's name -> its own
    input_bytes: what one pass over all inputs reads
    memory: the engine's estimate, where one was made
    """

    unified: Plan
    tasks: Mapping[str, Plan]
    sums: Plan
    names: Mapping[str, Mapping[str, str]]
    input_bytes: int
    notes: tuple[str, ...] = ()
    memory: Any = field(default=None, compare=False)

    def __str__(self) -> str:
        return container_text(self)

    @property
    def parts(self) -> dict[str, Plan]:
        """The plans by the folder that each one writes, below the container's own."""
        tasks = {f"{TASKS}/{name}": plan for name, plan in self.tasks.items()}
        return {UNIFIED: self.unified, **tasks, SUMS: self.sums}

    @property
    def output_bytes(self) -> int:
        return sum(plan.output_bytes for plan in self.parts.values())


def container_plan(
    recipe: Recipe, checkpoints: Sequence[Checkpoint], options: Options
) -> ContainerPlan:
    """Resolve a recipe against its opened checkpoints, given in the order of recipe.sources.

    Raises RecipeError for what a container cannot have, MismatchError where nothing is unified and
    for floats that do not merge.
    """
    _check(recipe, options)
    fitting = Fitting(recipe, checkpoints, options)
    sorter = _Sorter(recipe, checkpoints, fitting)
    sorter.sort()
    notes = (*recipe.notes, *(note for c in checkpoints for note in c.notes), *sorter.notes)

    def nbytes(steps: Iterable[Step]) -> int:
        read = {given for step in steps for given in step.inputs}
        return sum(checkpoints[given.model].tensors[given.name].nbytes_read for given in read)

    def made(steps: Sequence[Step], dropped: Sequence[Dropped] = ()) -> Plan:
        stored = [TensorInfo(s.name, s.dtype, s.stored_shape) for s in steps]
        return Plan(
            method=recipe.method.name,
            parameters=recipe.parameters,
            seed=recipe.seed,
            models=fitting.labels,
            base=fitting.base,
            donor=fitting.donor,
            fingerprints=tuple(dict(checkpoint.fingerprint) for checkpoint in checkpoints),
            steps=tuple(steps),
            shards=lay_out(stored, options.shard_bytes),
            out_dtype=recipe.out_dtype or recipe.dtype,
            aliases={},
            config=None,
            dropped=tuple(dropped),
            input_bytes=nbytes(steps),
            notes=notes,
        )

    tasks = dict(zip(recipe.tasks, sorter.tasks.items(), strict=True))
    return ContainerPlan(
        unified=made(sorter.unified, sorter.dropped),
        tasks={name: made(steps) for name, (_, steps) in tasks.items()},
        sums=made(sorter.sums),
        names={name: sorter.own_names(model) for name, (model, _) in tasks.items()},
        input_bytes=nbytes(chain(sorter.unified, *sorter.tasks.values())),
        notes=notes,
    )


def _check(recipe: Recipe, options: Options) -> None:
    """Raise RecipeError for what has no meaning in a container."""
    name, first = recipe.method.name, recipe.parts[0]
    if len(recipe.parts) > 1 or first.module or any(e.layers for e in first.entries):
        raise RecipeError(
            f"{name} keeps a whole model for every task: list them under models, without slices "
            "and modules"
        )
    if recipe.tokenizer is not None or recipe.chat_template is not None:
        raise RecipeError(
            f"{name} keeps the tokenizer and chat template of every task's model: leave tokenizer "
            "and chat_template out"
        )
    if options.truncate_embeddings or options.mismatch != "error":
        given = "truncate_embeddings" if options.truncate_embeddings else "mismatch"
        raise RecipeError(
            f"{name} keeps what does not fit the base for the task that it is of: leave {given} out"
        )


class _Sorter:
    """Sorts every tensor: unified over some models, or the own of each one.

    tasks:   by model, its masks and own tensors
    dropped: the base's tensors that nothing is made of
    """

    def __init__(self, recipe: Recipe, checkpoints: Sequence[Checkpoint], fitting: Fitting) -> None:
        assert fitting.base is not None, f"{recipe.method.name}: no base"
        self._recipe, self._fitting, self._base = recipe, fitting, fitting.base
        like = checkpoints[self._base].tensors
        found = [renamed(checkpoint.tensors, like) for checkpoint in checkpoints]
        self._stored = [names for names, _ in found]
        self._specs: dict[Unify, Spec] = {}
        self.notes = tuple(
            f"{fitting.labels[model]}: tensors are known {how}, as in {fitting.labels[self._base]}"
            for model, (_, how) in enumerate(found)
            if how
        )
        self.unified: list[Step] = []
        self.sums: list[Step] = []
        self.tasks: dict[int, list[Step]] = {model: [] for model in fitting.expert_of}
        self.dropped: list[Dropped] = []

    def sort(self) -> None:
        names = [self._stored[self._base], *(self._stored[model] for model in self.tasks)]
        for name in dict.fromkeys(name for mine in names for name in mine):
            held = {m: self._stored[m][name] for m in range(len(names)) if name in self._stored[m]}
            why = {m: self._fault(held, m) for m in self.tasks if m in held}
            alike = [model for model, fault in why.items() if not fault]
            if len(alike) == 1 and len(self.tasks) > 1:
                why[alike.pop()] = "fits in this model alone"
            if alike:
                self._unify(name, held, alike)
            elif self._base in held:
                reason = "every model's own is kept" if why else "no model has it"
                label = self._fitting.labels[self._base]
                self.dropped.append(Dropped(label, held[self._base].name, reason))
            for model in why:
                if model not in alike:
                    self.tasks[model].append(self._own(name, model, held[model], why[model]))
        if not self.unified:
            labels = self._fitting.labels
            raise MismatchError(
                f"no tensor of {', '.join(labels[m] for m in self.tasks)} fits one of the base "
                f"{labels[self._base]} in name and shape: name the model they were fine-tuned from"
            )

    def own_names(self, model: int) -> dict[str, str]:
        """What a model calls its tensors, where that is not as the base does."""
        return {n: info.name for n, info in self._stored[model].items() if info.name != n}

    def _fault(self, held: Held, model: int) -> str:
        """Why a tensor is the model's own, "" when it may be unified."""
        label = self._fitting.labels[self._base]
        if self._base not in held:
            return f"the base {label} lacks it"
        info, base = held[model], held[self._base]
        if info.shape != base.shape:
            return f"has shape {list(info.shape)}, {label} has {list(base.shape)}"
        if {info.dtype, base.dtype} & set(DISCRETE):
            return "holds no floats"
        return ""

    def _unify(self, name: str, held: Held, models: Sequence[int]) -> None:
        base = held[self._base]
        fit = {self._base: base} | {model: held[model] for model in models}
        self._fitting.check_mergeable(name, fit)
        stored = self._dtype(base)
        one = Step(
            name=name,
            action="merge",
            dtype=stored,
            shape=base.shape,
            base=Input(self._base, base.name),
            experts=tuple(Input(model, held[model].name) for model in models),
            expert_index=tuple(self._fitting.expert_of[model] for model in models),
            work=self._work(fit),
            spec=self._spec("vector", stored),
        )
        self.unified.append(one)
        sums = Records(CHUNK, (2 * len(models),))
        self.sums.append(_emitting(one, FLOAT64, self._spec("sums", stored), sums))
        for place, model in enumerate(models):
            spec = self._spec("mask", stored, place)
            self.tasks[model].append(_emitting(one, UINT8, spec, MASK))
            assert self.tasks[model][-1].stored_shape == packed_shape(one.numel)

    def _own(self, name: str, model: int, info: TensorInfo, why: str) -> Step:
        dtype = self._dtype(info) if info.dtype in MERGEABLE else info.dtype
        same = dtype == info.dtype
        return Step(
            name=name,
            action="copy" if same else "merge",
            dtype=dtype,
            shape=info.shape,
            base=None,
            experts=(Input(model, info.name),),
            expert_index=(0,),
            work=work_dtype([info.dtype]),
            spec=None if same else AS_IS,
            note=why,
        )

    def _dtype(self, info: TensorInfo) -> DType:
        recipe = self._recipe
        for dtype in (recipe.out_dtype, recipe.dtype, info.native):
            if dtype is not None:
                return dtype
        return info.dtype

    def _work(self, fit: Held) -> DType:
        asked = self._recipe.dtype
        given = [] if asked is None or asked != FLOAT64 else [FLOAT64]
        return work_dtype([*given, *(info.dtype for info in fit.values())])

    def _spec(self, emits: Emitted, stored: DType, expert: int = 0) -> Spec:
        unify = Unify(emits, dtype_name(stored), expert)
        return self._specs.setdefault(unify, Spec("unify", unify=unify))


def _emitting(step: Step, dtype: DType, spec: Spec, records: Records) -> Step:
    """A step over the same inputs that writes something else of them."""
    return Step(
        name=step.name,
        action="merge",
        dtype=dtype,
        shape=step.shape,
        base=step.base,
        experts=step.experts,
        expert_index=step.expert_index,
        work=step.work,
        spec=spec,
        records=records,
    )
