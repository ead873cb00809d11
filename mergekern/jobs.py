"""Merges made ready to run: recipes, plans and open checkpoints together, and what they become."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mergekern import ambient, card, engine
from mergekern.backends import Backend
from mergekern.backends.cpu import CpuBackend
from mergekern.checkpoint import Checkpoint, open_checkpoint
from mergekern.checkpoint.sidefiles import tokenizer_files, write_side_files
from mergekern.done import MergeReport
from mergekern.errors import RecipeError
from mergekern.folders import check_apart, check_output
from mergekern.informed import check_statistics
from mergekern.inmemory import merge_in_memory
from mergekern.lazily import is_module, torch
from mergekern.lock import LOCK, check_unchanged, lock
from mergekern.options import Options
from mergekern.plan import Plan
from mergekern.planner import build_plan
from mergekern.progress import Progress, Silent
from mergekern.recipe import Recipe, Source
from mergekern.remembered import plan_in_memory
from mergekern.solutions import with_solutions
from mergekern.systems import Workers
from mergekern.tokenizer import Alignment, Models, align, truncate


@dataclass(frozen=True)
class Job:
    """One merge: what was asked for, what will be done, and where it goes (None: memory).

    side_files: in place of the donor's; see Alignment.files
    """

    recipe: Recipe
    plan: Plan
    checkpoints: Sequence[Checkpoint]
    options: Options
    output: Path | None
    side_files: Mapping[str, bytes | None]

    def check_folder(self) -> None:
        """Raise OutputError when the folder holds what this merge cannot go on with."""
        if self.output is not None:
            check_unchanged(self.output, self.plan, self.checkpoints)
            engine.is_merged(self.plan, self.checkpoints, self.output)

    def finish(self, folder: Path) -> None:
        """Card and lock, then the side files, whose config.json says that the folder is whole."""
        if self.options.write_model_card:
            text = card.model_card(self.recipe, self.plan)
            (folder / card.CARD).write_text(text, encoding="utf-8")
        content = lock(self.recipe, self.plan, self.checkpoints, self.options.mismatch)
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (folder / LOCK).write_text(text, encoding="utf-8")
        donor = self.checkpoints[self.plan.donor]
        instead = self.side_files
        if not self.options.copy_tokenizer:
            instead = {**dict.fromkeys(tokenizer_files(donor)), **instead}
        write_side_files(donor, folder, self.plan.out_dtype, self.plan.config, instead)

    def planned(self, max_memory: int | None) -> Plan:
        """The plan with the engine's estimate."""
        return replace(self.plan, memory=engine.memory_estimate([self.plan], max_memory))

    def report(self, summary: engine.RunSummary) -> MergeReport:
        """What was done, once the folder is finished."""
        assert self.output is not None
        names = {
            action: tuple(step.name for step in self.plan.steps if step.action == action)
            for action in ("merge", "copy")
        }
        return MergeReport(
            output=self.output,
            tensors=len(self.plan.steps),
            bytes_read=summary.bytes_read,
            bytes_written=summary.bytes_written,
            seconds=summary.seconds,
            merged=names["merge"],
            copied=names["copy"],
            dropped=self.plan.dropped,
            resumed=summary.resumed_bytes > 0,
            notes=self.plan.notes,
        )


@contextmanager
def ready(
    recipes: Sequence[Recipe],
    outputs: Sequence[Path | None],
    options: Options,
) -> Iterator[list[Job]]:
    """The jobs of some recipes, in order.

    Reads headers only, and raises what can be known from them before the first merge begins.
    """
    check_apart(output for output in outputs if output is not None)
    for method in (recipe.method for recipe in recipes):
        if method.container:
            raise RecipeError(
                f"{method.name} writes a container of several models: merge it by itself, into a "
                "folder, and go on with the models that `mergekern materialise` takes out of it"
            )
    with opened(recipes, outputs, options) as every:
        jobs = []
        known: dict[Hashable, Alignment] = {}
        for recipe, output, checkpoints in zip(recipes, outputs, every, strict=True):
            models = checkpoints[: len(recipe.models)]
            notes = check_statistics(recipe, checkpoints)
            aligned = _aligned(recipe, models, options.truncate_embeddings, known)
            given = (*aligned.checkpoints, *checkpoints[len(models) :])
            told = replace(recipe, notes=recipe.notes + notes + aligned.notes)
            if output is None and all(source.resident for source in recipe.sources):
                plan = plan_in_memory(told, given, options)
            else:
                plan = build_plan(told, given, options, share=False)
            jobs.append(Job(recipe, plan, given, options, output, aligned.files))
        yield jobs


@contextmanager
def opened(
    recipes: Sequence[Recipe], outputs: Sequence[Path | None], options: Options
) -> Iterator[list[list[Checkpoint]]]:
    """The checkpoints of every recipe's sources. A model that several of them name is opened once.

    Raises OutputError for outputs that would spoil an input.
    """
    with ExitStack() as stack:
        found: dict[Hashable, tuple[Source, Checkpoint]] = {}
        for recipe in recipes:
            for source in recipe.sources:
                if _identity(source) not in found:
                    lora = source.lora
                    checkpoint = open_checkpoint(
                        source.where,
                        revision=source.revision,
                        label=source.label,
                        lora=None if lora is None else lora.where,
                        lora_revision=None if lora is None else lora.revision,
                        cache=options.cache,
                        base=options.base,
                    )
                    stack.callback(checkpoint.close)
                    found[_identity(source)] = source, checkpoint
        for output in outputs:
            if output is not None:
                check_output(found.values(), output)
        yield [[found[_identity(source)][1] for source in r.sources] for r in recipes]


def run(
    jobs: Sequence[Job],
    backend: Backend,
    max_memory: int | None,
    progress: Progress | None,
    out: torch.nn.Module | Mapping[str, torch.Tensor] | None = None,
) -> list[Any]:
    """Reports of merges into folders, or state dicts. All can be begun before the first one is.

    Models on disk are merged in memory, too, when a job has no output: tensor by tensor, so that
    beside the result one tensor of each is held (all of them where thresholds range over models).
    """
    host = backend if isinstance(backend, CpuBackend) else CpuBackend()
    workers = Workers(host.threads, host.instruction_set)
    with ambient.set_aside(), ExitStack() as stack:
        checkpoints = [
            stack.enter_context(with_solutions(job.plan, job.checkpoints, workers)) for job in jobs
        ]
        return _run(jobs, checkpoints, backend, max_memory, progress, out)


def _run(
    jobs: Sequence[Job],
    checkpoints: Sequence[Sequence[Checkpoint]],
    backend: Backend,
    max_memory: int | None,
    progress: Progress | None,
    out: torch.nn.Module | Mapping[str, torch.Tensor] | None,
) -> list[Any]:
    plans = [job.plan for job in jobs]
    outputs = [job.output for job in jobs if job.output is not None]
    if not outputs:
        into = out.state_dict() if is_module(out) else out
        return merge_in_memory(plans, checkpoints, backend=backend, into=into)
    for job in jobs:
        job.check_folder()
    summaries = engine.merge_to_folders(
        plans,
        checkpoints,
        outputs,
        backend=backend,
        max_memory=max_memory,
        progress=progress or Silent(),
        finishes=[job.finish for job in jobs],
    )
    return [job.report(summary) for job, summary in zip(jobs, summaries, strict=True)]


def _aligned(
    recipe: Recipe,
    checkpoints: Sequence[Checkpoint],
    cut: bool,
    known: dict[Hashable, Alignment],
) -> Alignment:
    """The checkpoints as the recipe's tokenizer has them, or cut to the smallest vocabulary.

    known: by what was asked for, since recipes that read the same tensors share what they read
    """
    place = {id(source): number for number, source in enumerate(recipe.models)}
    base = None if recipe.base is None else place[id(recipe.base)]
    bases = [part.base for part in recipe.parts if part.base is not None]
    merged = frozenset(place[id(source)] for source in (*recipe.experts, *bases))
    models = Models(recipe.models, checkpoints, base, base or 0, merged)
    if cut and recipe.tokenizer is not None:
        raise RecipeError(
            "truncate_embeddings cuts vocabularies that no tokenizer aligns, and the recipe has "
            "one: leave either of them out"
        )
    settings = None if recipe.tokenizer is None else json.dumps(recipe.tokenizer.written)
    asked = (settings, recipe.chat_template, base, tuple(map(id, checkpoints)))
    if asked not in known:
        narrow = truncate(models) if cut else align(None, None, models)
        models = replace(models, checkpoints=narrow.checkpoints)
        found = align(recipe.tokenizer, recipe.chat_template, models)
        known[asked] = replace(found, notes=narrow.notes + found.notes)
    return known[asked]


def _identity(source: Source) -> Hashable:
    """Messages, plans and cards name a model as its recipe does: two names are opened twice."""
    return source.key, source.label
