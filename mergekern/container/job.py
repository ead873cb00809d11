"""A merge into a container, made ready to run: its parts run together, the manifest comes last."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from mergekern import ambient, card, engine
from mergekern.backends import Backend
from mergekern.checkpoint import Checkpoint, open_checkpoint
from mergekern.checkpoint.base import listing
from mergekern.checkpoint.container import (
    MANIFEST,
    PARTS,
    SUMS,
    TASKS,
    Base,
    Manifest,
    Task,
)
from mergekern.checkpoint.files import write_whole
from mergekern.checkpoint.identity import identity_of
from mergekern.checkpoint.sidefiles import tokenizer_files, write_side_files
from mergekern.container.plans import ContainerPlan, container_plan
from mergekern.container.rescalers import rescalers
from mergekern.done import MergeReport
from mergekern.errors import OutputError
from mergekern.jobs import opened
from mergekern.lock import LOCK, check_unchanged, lock
from mergekern.options import Options
from mergekern.plan import Plan
from mergekern.progress import Progress, Silent
from mergekern.recipe import Recipe, Source


@dataclass(frozen=True)
class ContainerJob:
    """One merge into a container: what was asked for, what will be done, and where it goes."""

    recipe: Recipe
    plan: ContainerPlan
    checkpoints: Sequence[Checkpoint]
    options: Options
    output: Path | None

    @property
    def plans(self) -> list[Plan]:
        return list(self.plan.parts.values())

    def planned(self, max_memory: int | None) -> ContainerPlan:
        """The plan with the engine's estimate."""
        return replace(self.plan, memory=engine.memory_estimate(self.plans, max_memory))

    def run(
        self, backend: Backend, max_memory: int | None, progress: Progress | None
    ) -> MergeReport:
        """Write what is not there yet."""
        if self.output is None:
            raise OutputError(
                f"{self.recipe.method.name} writes a container of several models: give a folder as "
                "output"
            )
        self.check_folder()
        parts = self.plan.parts
        with ambient.set_aside():
            summaries = engine.merge_to_folders(
                self.plans,
                [self.checkpoints] * len(parts),
                [self.output / part for part in parts],
                backend=backend,
                max_memory=max_memory,
                progress=progress or Silent(),
                finishes=[partial(self._finish, part, plan) for part, plan in parts.items()],
            )
        self._conclude(self.output)
        return self._report(self.output, summaries)

    def _finish(self, part: str, plan: Plan, folder: Path) -> None:
        """The lock of a part, and the side files of a task."""
        _write(folder / LOCK, self._lock(plan))
        if part in self._donors:
            donor = self._donors[part]
            instead: dict[str, bytes | None] = {}
            if not self.options.copy_tokenizer:
                instead = dict.fromkeys(tokenizer_files(donor))
            write_side_files(donor, folder, plan.out_dtype, None, instead)

    @property
    def _donors(self) -> dict[str, Checkpoint]:
        """The tasks' models by the part that is theirs."""
        opened = {id(s): c for s, c in zip(self.recipe.models, self.checkpoints, strict=True)}
        pairs = zip(self.plan.tasks, self.recipe.experts, strict=True)
        return {f"{TASKS}/{name}": opened[id(expert)] for name, expert in pairs}

    def check_folder(self) -> None:
        """Raise OutputError when the folder holds what this merge cannot go on with."""
        if self.output is None:
            return
        known = {*PARTS, LOCK, MANIFEST, card.CARD}
        _check_known(self.output, known)
        _check_known(self.output / TASKS, set(self.plan.tasks))
        for part, plan in self.plan.parts.items():
            check_unchanged(self.output / part, plan, self.checkpoints)
            engine.is_merged(plan, self.checkpoints, self.output / part)

    def _conclude(self, output: Path) -> None:
        """Card, lock and manifest, once all parts are written; the manifest says that they are."""
        if (output / MANIFEST).exists():
            return
        if self.options.write_model_card:
            text = card.model_card(self.recipe, self.plan.unified) + _usage(self.plan)
            (output / card.CARD).write_text(text, encoding="utf-8")
        digests = {part: plan.digest for part, plan in self.plan.parts.items()}
        digest = hashlib.sha256(json.dumps(digests).encode()).hexdigest()
        content = self._lock(self.plan.unified) | {"plan": digest, "parts": digests}
        _write(output / LOCK, content)
        write_whole(output / MANIFEST, self._manifest(output).text.encode())

    def _lock(self, plan: Plan) -> dict[str, Any]:
        return lock(self.recipe, plan, self.checkpoints, self.options.mismatch)

    def _manifest(self, output: Path) -> Manifest:
        assert self.plan.unified.base is not None and self.recipe.base is not None
        with closing(open_checkpoint(output / SUMS)) as sums:
            found = rescalers(self.plan.sums, sums, len(self.plan.tasks))
        tasks = {
            name: Task(
                model=source.label,
                rescalers=of,
                names=dict(self.plan.names[name]),
                own=tuple(step.name for step in plan.steps if step.records is None),
                files=_headers(plan),
            )
            for (name, plan), source, of in zip(
                self.plan.tasks.items(), self.recipe.experts, found, strict=True
            )
        }
        return Manifest(
            format="mergekern.emr",
            version=1,
            base=base_of_source(self.recipe.base),
            identity=identity_of(self.checkpoints[self.plan.unified.base]),
            rescaler=self.recipe.parameters["rescaler"],
            unified=_headers(self.plan.unified),
            tasks=tasks,
        )

    def _report(self, output: Path, summaries: Sequence[engine.RunSummary]) -> MergeReport:
        """What was done, once the container is finished."""
        own = [
            f"{name}: {step.name}"
            for name, plan in self.plan.tasks.items()
            for step in plan.steps
            if step.records is None
        ]
        merged = tuple(step.name for step in self.plan.unified.steps)
        first = next(iter(self.plan.tasks))
        return MergeReport(
            output=output,
            tensors=len(merged) + len(own),
            bytes_read=sum(summary.bytes_read for summary in summaries),
            bytes_written=sum(summary.bytes_written for summary in summaries),
            seconds=max(summary.seconds for summary in summaries),
            merged=merged,
            copied=tuple(own),
            dropped=self.plan.unified.dropped,
            resumed=any(summary.resumed_bytes > 0 for summary in summaries),
            notes=(
                *self.plan.notes,
                f"a container of {', '.join(self.plan.tasks)}: `mergekern materialise "
                f"{output} OUTPUT --task {first}` takes one out of it",
            ),
        )


def merge_container(
    recipe: Recipe,
    output: Path | None,
    options: Options,
    backend: Backend,
    max_memory: int | None,
    progress: Progress | None,
) -> MergeReport:
    """Merge by a recipe whose method makes a container."""
    with _ready(recipe, output, options) as job:
        return job.run(backend, max_memory, progress)


def plan_container(
    recipe: Recipe, output: Path | None, options: Options, max_memory: int | None
) -> ContainerPlan:
    """What merge_container() would do; output may be unknown yet."""
    with _ready(recipe, output, options) as job:
        job.check_folder()
        return job.planned(max_memory)


@contextmanager
def _ready(recipe: Recipe, output: Path | None, options: Options) -> Iterator[ContainerJob]:
    with opened([recipe], [output], options) as (checkpoints,):
        plan = container_plan(recipe, checkpoints, options)
        yield ContainerJob(recipe, plan, checkpoints, options, output)


def base_of_source(source: Source) -> Base | None:
    """How a model is opened again; None for one in memory."""
    lora = source.lora
    if source.in_memory or (lora is not None and lora.in_memory):
        return None
    return Base(
        model=_from_anywhere(source.where),
        revision=source.revision,
        lora=None if lora is None else _from_anywhere(lora.where),
        lora_revision=None if lora is None else lora.revision,
    )


def _from_anywhere(where: str) -> str:
    """A folder's path as other working folders know it; a Hub id as it is."""
    path = os.path.abspath(os.path.expanduser(where))
    return path if os.path.isdir(path) else where


def _headers(plan: Plan) -> dict[str, str]:
    return {shard.file: hashlib.sha256(shard.header).hexdigest() for shard in plan.shards}


def _check_known(folder: Path, known: set[str]) -> None:
    """Raise OutputError for what is no part of this container."""
    try:
        foreign = set(os.listdir(folder)) - known
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise OutputError(f"{folder}: is a file, wanted a folder to write into") from None
    except OSError as error:
        raise OutputError(
            f"{folder}: cannot be read: {error.strerror}; choose another folder"
        ) from error
    if foreign:
        raise OutputError(
            f"{folder}: holds other files ({listing(foreign)}); remove them or choose another "
            "folder"
        )


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _usage(plan: ContainerPlan) -> str:
    lines = "\n".join(f"mergekern materialise FOLDER OUTPUT --task {name}" for name in plan.tasks)
    return f"\n## One model of these\n\n```sh\n{lines}\n```\n"
