"""The public calls: merge() and plan(), from a recipe or a method's name."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mergekern import card, engine
from mergekern.backends import Backend, get_backend
from mergekern.checkpoint import Checkpoint, open_checkpoint
from mergekern.checkpoint.sidefiles import write_side_files
from mergekern.errors import OutputError, RecipeError
from mergekern.fitting import Mismatch
from mergekern.lock import LOCK, check_unchanged, lock
from mergekern.methods import Method, all_methods
from mergekern.methods.parameters import nearest
from mergekern.plan import Dropped, Plan
from mergekern.planner import build_plan
from mergekern.progress import Progress, Silent
from mergekern.recipe import Recipe, read
from mergekern.report import group_dropped
from mergekern.sizes import format_size, parse_size

DEVICES = ("auto", "cpu")


@dataclass(frozen=True)
class MergeReport:
    """What a merge into a folder did; str() tells it.

    merged, copied: output tensors; dropped: input tensors that nothing was made of
    resumed:        some of it was found finished, from a call before this one
    notes:          what was asked for and had no effect, and what the folder lacks
    """

    output: Path
    tensors: int
    bytes_read: int
    bytes_written: int
    seconds: float
    merged: tuple[str, ...]
    copied: tuple[str, ...]
    dropped: tuple[Dropped, ...]
    resumed: bool
    notes: tuple[str, ...]

    def __str__(self) -> str:
        rate = (self.bytes_read + self.bytes_written) / max(self.seconds, 1e-9)
        first = (
            f"{self.output}: {len(self.merged)} tensors merged, {len(self.copied)} copied, "
            f"{len(self.dropped)} left out{', resumed' if self.resumed else ''}; "
            f"{format_size(self.bytes_read)} read, {format_size(self.bytes_written)} written "
            f"in {self.seconds:.1f} s ({format_size(rate)}/s)"
        )
        if self.resumed and not self.bytes_read and not self.bytes_written:
            first = f"{self.output}: already merged, {self.tensors} tensors; nothing to do"
        left_out = [f"left out: {line}" for line in group_dropped(self.dropped)]
        return "\n".join([first, *left_out, *(f"note: {note}" for note in self.notes)])


def merge(
    recipe_or_method: Any,
    *,
    models: Sequence[Any] | None = None,
    base: Any = None,
    output: str | Path | None = None,
    preset: str | None = None,
    seed: int | None = None,
    dtype: str | torch.dtype | None = None,
    out_dtype: str | torch.dtype | None = None,
    mismatch: Mismatch = "error",
    max_memory: int | str | None = None,
    threads: int | None = None,
    backend: str = "auto",
    device: str = "auto",
    max_shard_size: int | str = "5GB",
    progress: Progress | None = None,
    **parameters: Any,
) -> MergeReport | dict[str, torch.Tensor]:
    """Merge models into a folder, or in memory when all are in memory and no output is given.

    recipe_or_method: a method's name, or a recipe: file, YAML text, mapping, object with model_dump
    models, base:     paths, Hub ids or state dicts; with a method's name only
    preset:           a named bundle of parameters, see methods()
    seed:             of methods that draw random numbers; 0 when neither call nor recipe gives one
    dtype, out_dtype: of the output, the second wins; the base's when neither is given
    mismatch:         tensors that some models lack or shape otherwise: error, base, skip-model
    max_memory:       what the process may hold, like "8GiB"
    parameters:       of the method (lambda is spelt lambda_); a list gives one value per model
    Raises MergeError, or one of its kinds, naming what was found and the mend.
    """
    _check_device(device)
    limit = None if max_memory is None else parse_size(max_memory, "max_memory")
    recipe = read(
        recipe_or_method,
        models=models,
        base=base,
        preset=preset,
        seed=seed,
        dtype=dtype,
        out_dtype=out_dtype,
        parameters=parameters,
    )
    output = _output_path(output)
    if output is None and not all(source.in_memory for source in recipe.sources):
        raise OutputError("models on disk are merged into a folder: give output=")
    runner = get_backend(backend, threads)
    with _opened(recipe) as checkpoints:
        plan = _plan(recipe, checkpoints, output, mismatch, max_shard_size)
        if output is None:
            return engine.merge_in_memory(plan, checkpoints, backend=runner)
        return _into_folder(
            recipe, plan, checkpoints, output, runner, limit, progress or Silent(), mismatch
        )


def plan(
    recipe_or_method: Any,
    *,
    models: Sequence[Any] | None = None,
    base: Any = None,
    output: str | Path | None = None,
    preset: str | None = None,
    seed: int | None = None,
    dtype: str | torch.dtype | None = None,
    out_dtype: str | torch.dtype | None = None,
    mismatch: Mismatch = "error",
    max_memory: int | str | None = None,
    max_shard_size: int | str = "5GB",
    **parameters: Any,
) -> Plan:
    """What merge() with these arguments would read, write, hold and leave out; reads headers only.

    str() of the plan is a table. Raises what merge() would raise before its first byte.
    """
    limit = None if max_memory is None else parse_size(max_memory, "max_memory")
    recipe = read(
        recipe_or_method,
        models=models,
        base=base,
        preset=preset,
        seed=seed,
        dtype=dtype,
        out_dtype=out_dtype,
        parameters=parameters,
    )
    with _opened(recipe) as checkpoints:
        folder = _output_path(output)
        made = _plan(recipe, checkpoints, folder, mismatch, max_shard_size)
        if folder is not None:
            check_unchanged(folder, made, checkpoints)
            engine.is_merged(made, checkpoints, folder)
        return replace(made, memory=engine.memory_estimate(made, limit))


def methods() -> tuple[Method, ...]:
    """Every method there is: name, title, paper, parameters, presets."""
    return all_methods()


@contextmanager
def _opened(recipe: Recipe) -> Iterator[list[Checkpoint]]:
    with ExitStack() as stack:
        checkpoints = []
        for source in recipe.sources:
            checkpoint = open_checkpoint(source.where, revision=source.revision, label=source.label)
            stack.callback(checkpoint.close)
            checkpoints.append(checkpoint)
        yield checkpoints


def _plan(
    recipe: Recipe,
    checkpoints: Sequence[Checkpoint],
    output: Path | None,
    mismatch: Mismatch,
    max_shard_size: int | str,
) -> Plan:
    if output is not None:
        check_output(recipe, checkpoints, output)
    return build_plan(
        recipe,
        checkpoints,
        mismatch=mismatch,
        max_shard_size=parse_size(max_shard_size, "max_shard_size"),
        share=output is None and all(source.in_memory for source in recipe.sources),
    )


def _output_path(output: str | Path | None) -> Path | None:
    """The folder to write, ~ expanded as it is for models."""
    if output is None:
        return None
    if not isinstance(output, str | os.PathLike) or not os.fspath(output):
        raise OutputError(f"output is {output!r}; want the path of a folder")
    path = Path(os.path.expanduser(output))
    try:
        path.stat()
    except FileNotFoundError:
        pass  # it is made later
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{output}: cannot be written: {reason}; choose another") from error
    return path


def check_output(recipe: Recipe, checkpoints: Sequence[Checkpoint], output: Path) -> None:
    """Raise OutputError when the output is an input's folder, lies in one or holds one."""
    target = output.resolve()
    for source, checkpoint in zip(recipe.sources, checkpoints, strict=True):
        if source.in_memory:
            continue
        given = Path(os.path.expanduser(source.where))
        single = given.is_file()
        folder = (given.parent if single else checkpoint.folder or given).resolve()
        # A file's neighbours are no part of the model; only the very same folder is in danger.
        if target == folder or (
            not single and (folder in target.parents or target in folder.parents)
        ):
            raise OutputError(
                f"output {output} is or overlaps the folder of input {source.label} ({folder}); "
                "choose another folder"
            )


def _into_folder(
    recipe: Recipe,
    plan: Plan,
    checkpoints: Sequence[Checkpoint],
    output: Path,
    backend: Backend,
    max_memory: int | None,
    progress: Progress,
    mismatch: Mismatch,
) -> MergeReport:
    began = time.monotonic()
    check_unchanged(output, plan, checkpoints)
    summary = engine.merge_to_folder(
        plan,
        checkpoints,
        output,
        backend=backend,
        max_memory=max_memory,
        progress=progress,
        finish=_finisher(recipe, plan, checkpoints, mismatch),
    )
    names = {
        action: tuple(step.name for step in plan.steps if step.action == action)
        for action in ("merge", "copy")
    }
    return MergeReport(
        output=output,
        tensors=len(plan.steps),
        bytes_read=summary.bytes_read,
        bytes_written=summary.bytes_written,
        seconds=time.monotonic() - began,
        merged=names["merge"],
        copied=names["copy"],
        dropped=plan.dropped,
        resumed=summary.resumed_bytes > 0,
        notes=plan.notes,
    )


def _finisher(
    recipe: Recipe, plan: Plan, checkpoints: Sequence[Checkpoint], mismatch: Mismatch
) -> Callable[[Path], None]:
    def finish(folder: Path) -> None:
        """Card and lock, then the side files, whose config.json says that the folder is whole."""
        (folder / card.CARD).write_text(card.model_card(recipe, plan), encoding="utf-8")
        content = lock(recipe, plan, checkpoints, mismatch)
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (folder / LOCK).write_text(text, encoding="utf-8")
        write_side_files(checkpoints[plan.donor], folder, plan.out_dtype)

    return finish


def _check_device(device: str) -> None:
    if device not in DEVICES:
        hint = nearest(str(device), DEVICES)
        raise RecipeError(f"device is {device!r}{hint} (want {' or '.join(DEVICES)}; others later)")
