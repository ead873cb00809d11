"""The public calls: merge() and plan(), one recipe or many, from recipes or a method's name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mergekern import dropin, engine
from mergekern.backends import Backend
from mergekern.backends.choose import HOST, check_choice, get_backend
from mergekern.container.job import merge_container, plan_container
from mergekern.container.plans import ContainerPlan
from mergekern.done import MergeReport
from mergekern.errors import CheckpointError, OutputError
from mergekern.folders import output_path
from mergekern.jobs import Job, ready, run
from mergekern.lazily import torch
from mergekern.many import Plans, output_folders, plans_of, read_recipes
from mergekern.methods import Method, all_methods
from mergekern.options import Mismatch, Options
from mergekern.plan import Plan
from mergekern.progress import Progress
from mergekern.recipe import has_stages, meant_by
from mergekern.sizes import parse_size
from mergekern.staging import StagedMerge, StagePlans, staged_merges


@dropin.takes_mergekits_names
def merge(
    recipe_or_method: Any = None,
    output: str | Path | None = None,
    *,
    models: Sequence[Any] | None = None,
    base: Any = None,
    intermediate: str | Path | None = None,
    out: torch.nn.Module | Mapping[str, torch.Tensor] | None = None,
    preset: str | None = None,
    seed: int | None = None,
    dtype: str | torch.dtype | None = None,
    out_dtype: str | torch.dtype | None = None,
    mismatch: Mismatch = "error",
    truncate_embeddings: bool = False,
    allow_crimes: bool = False,
    copy_tokenizer: bool = True,
    write_model_card: bool = True,
    cache: str | Path | None = None,
    max_memory: int | str | None = None,
    max_device_memory: int | str | None = None,
    threads: int | None = None,
    backend: str = "auto",
    device: str = "auto",
    max_shard_size: int | str = "5GB",
    progress: Progress | None = None,
    **parameters: Any,
) -> MergeReport | dict[str, torch.Tensor]:
    """Merge models into a folder, or in memory when all are in memory and no output is given.

    recipe_or_method: a method's name, or a recipe: file, YAML text, mapping, object with model_dump
    intermediate:     where stages of a recipe of several documents go, each into a folder of its
                      name; `<output>.stages` if not given. A stage that is done is not done again
    models, base:     paths, Hub ids or state dicts; with a method's name only
    out:              a module or state dict that a merge in memory is written into, in place:
                      nothing is allocated for the result, which is returned too
    preset:           a named bundle of parameters, see methods(); one that a method alone has says
                      the method too
    seed:             of methods that draw random numbers; 0 when neither call nor recipe gives one
    dtype, out_dtype: of the output, the second wins; the base's when neither is given
    mismatch:         tensors that some models lack or shape otherwise: error, base, skip-model
    truncate_embeddings: cut vocabularies of different size to the smallest, whatever their tokens
    allow_crimes:     merge models of different architectures, by their tensors' names and shapes
    copy_tokenizer, write_model_card: False leaves these out of the folder
    cache:            the folder that Hub models are downloaded to; huggingface_hub's if not given
    max_memory:       what the process may hold, like "8GiB"
    max_device_memory: of a GPU, for what passes through it; what is free, less a margin, if not
                      given
    threads:          on the CPU; the cores that this process may use if not given
    backend:          auto, cpu, cuda, triton or reference (slow; the meaning of the rest). All give
                      the same bytes
    device:           auto (where the models lie; else a GPU if there is one), cpu, cuda or cuda:1
    parameters:       of the method (lambda is spelt lambda_); a list gives one value per model
    Raises MergeError, or one of its kinds, naming what was found and the mend.
    """
    check_choice(backend, device, threads)
    limit = _size(max_memory, "max_memory")
    room = _size(max_device_memory, "max_device_memory")
    folder = None if output is None else output_path(output)
    merges = staged_merges(
        meant_by(recipe_or_method, preset),
        folder,
        intermediate,
        seed,
        models=models,
        base=base,
        preset=preset,
        dtype=dtype,
        out_dtype=out_dtype,
        parameters=parameters,
    )
    if folder is not None and out is not None:
        raise OutputError("output is a folder and out is in memory: give one of them")
    if folder is None and not all(source.resident for source in merges[-1].recipe.sources):
        raise OutputError("models on disk are merged into a folder: give output=")
    shard_bytes = parse_size(max_shard_size, "max_shard_size")
    how = Options(
        mismatch=mismatch,
        truncate_embeddings=truncate_embeddings,
        allow_crimes=allow_crimes,
        shard_bytes=shard_bytes,
        cache=_path(cache),
        copy_tokenizer=copy_tokenizer,
        write_model_card=write_model_card,
    )
    done: list[Any] = []
    for merge in merges:
        if merge.recipe.method.container:
            chosen = get_backend(backend, threads, device=device, max_device_memory=room)
            done.append(merge_container(merge.recipe, merge.folder, how, chosen, limit, progress))
            continue
        with ready([merge.recipe], [merge.folder], how) as jobs:
            chosen = _backend(jobs, backend, device, threads, room)
            done += run(jobs, chosen, limit, progress, out)
    return replace(done[-1], stages=tuple(done[:-1])) if len(done) > 1 else done[0]


@dropin.takes_mergekits_names
def plan(
    recipe_or_method: Any = None,
    *,
    models: Sequence[Any] | None = None,
    base: Any = None,
    output: str | Path | None = None,
    intermediate: str | Path | None = None,
    preset: str | None = None,
    seed: int | None = None,
    dtype: str | torch.dtype | None = None,
    out_dtype: str | torch.dtype | None = None,
    mismatch: Mismatch = "error",
    truncate_embeddings: bool = False,
    allow_crimes: bool = False,
    cache: str | Path | None = None,
    max_memory: int | str | None = None,
    max_shard_size: int | str = "5GB",
    **parameters: Any,
) -> Plan | ContainerPlan | StagePlans:
    """What merge() with these arguments would read, write, hold and leave out; reads headers only.

    A Plan, whose str() is a table; for `emr` a ContainerPlan; of a recipe of several documents
    StagePlans, with one for every stage whose inputs are there. Raises what merge() would raise
    before its first byte.
    """
    limit = _size(max_memory, "max_memory")
    folder = None if output is None else output_path(output)
    what = meant_by(recipe_or_method, preset)
    if folder is None and has_stages(what):
        folder = Path("output")  # a name for what has none yet
    merges = staged_merges(
        what,
        folder,
        intermediate,
        seed,
        models=models,
        base=base,
        preset=preset,
        dtype=dtype,
        out_dtype=out_dtype,
        parameters=parameters,
    )
    shard_bytes = parse_size(max_shard_size, "max_shard_size")
    how = Options(mismatch, truncate_embeddings, allow_crimes, shard_bytes, _path(cache))
    if len(merges) == 1:
        return _planned(merges[0], how, limit)
    plans = (_planned(merge, how, limit) if merge.ready else None for merge in merges)
    return StagePlans(merges, tuple(plans))


@dropin.takes_mergekits_names
def merge_many(
    recipes: Any,
    outputs: Any = None,
    *,
    preset: str | None = None,
    seed: int | None = None,
    dtype: str | torch.dtype | None = None,
    out_dtype: str | torch.dtype | None = None,
    mismatch: Mismatch = "error",
    truncate_embeddings: bool = False,
    allow_crimes: bool = False,
    copy_tokenizer: bool = True,
    write_model_card: bool = True,
    cache: str | Path | None = None,
    max_memory: int | str | None = None,
    max_device_memory: int | str | None = None,
    threads: int | None = None,
    backend: str = "auto",
    device: str = "auto",
    max_shard_size: int | str = "5GB",
    progress: Progress | None = None,
    **parameters: Any,
) -> list[MergeReport] | list[dict[str, torch.Tensor]]:
    """What merge() of every recipe gives, in order, from one read of what they share.

    recipes: a list of what merge() takes as a recipe, or one recipe with a grid
    outputs: a folder for each, or for a grid one folder, which gets a subfolder for every point,
             like density=0.1,lambda=0.5; None merges in memory, in one walk over the inputs
    The rest is as for merge(), and holds for every recipe.
    """
    check_choice(backend, device, threads)
    limit = _size(max_memory, "max_memory")
    room = _size(max_device_memory, "max_device_memory")
    named = read_recipes(
        recipes, preset=preset, seed=seed, dtype=dtype, out_dtype=out_dtype, parameters=parameters
    )
    folders = output_folders(outputs, recipes, tuple(named))
    on_disk = [s.label for recipe in named.values() for s in recipe.sources if not s.resident]
    if on_disk and None in folders:
        raise OutputError(f"models on disk, as {on_disk[0]}, are merged into folders: give outputs")
    shard_bytes = parse_size(max_shard_size, "max_shard_size")
    how = Options(
        mismatch=mismatch,
        truncate_embeddings=truncate_embeddings,
        allow_crimes=allow_crimes,
        shard_bytes=shard_bytes,
        cache=_path(cache),
        copy_tokenizer=copy_tokenizer,
        write_model_card=write_model_card,
    )
    with ready(list(named.values()), folders, how) as jobs:
        return run(jobs, _backend(jobs, backend, device, threads, room), limit, progress)


@dropin.takes_mergekits_names
def plan_many(
    recipes: Any,
    outputs: Any = None,
    *,
    preset: str | None = None,
    seed: int | None = None,
    dtype: str | torch.dtype | None = None,
    out_dtype: str | torch.dtype | None = None,
    mismatch: Mismatch = "error",
    truncate_embeddings: bool = False,
    allow_crimes: bool = False,
    cache: str | Path | None = None,
    max_memory: int | str | None = None,
    max_shard_size: int | str = "5GB",
    **parameters: Any,
) -> Plans:
    """What merge_many() with these arguments would read, write and hold; reads headers only."""
    limit = _size(max_memory, "max_memory")
    named = read_recipes(
        recipes, preset=preset, seed=seed, dtype=dtype, out_dtype=out_dtype, parameters=parameters
    )
    folders = output_folders(outputs, recipes, tuple(named))
    shard_bytes = parse_size(max_shard_size, "max_shard_size")
    how = Options(mismatch, truncate_embeddings, allow_crimes, shard_bytes, _path(cache))
    with ready(list(named.values()), folders, how) as jobs:
        for job in jobs:
            job.check_folder()
        made = plans_of(dict(zip(named, jobs, strict=True)))
        return replace(made, memory=engine.memory_estimate(made.plans, limit))


def methods() -> tuple[Method, ...]:
    """Every method there is: name, title, paper, parameters, presets."""
    return all_methods()


def _planned(merge: StagedMerge, options: Options, limit: int | None) -> Plan | ContainerPlan:
    if merge.recipe.method.container:
        return plan_container(merge.recipe, merge.folder, options, limit)
    with ready([merge.recipe], [merge.folder], options) as (job,):
        job.check_folder()
        return job.planned(limit)


def _backend(
    jobs: Sequence[Job], name: str, device: str, threads: int | None, room: int | None
) -> Backend:
    """The backend for these jobs, by where their models lie."""
    places = {c.device: c.label for job in jobs for c in job.checkpoints}
    if any(job.output is not None for job in jobs):
        places = {}  # what lies on a GPU passes through the host's buffers, as files do
    elif len(places) > 1:
        found = ", ".join(f"{label} on {place}" for place, label in places.items())
        raise CheckpointError(f"models lie on several devices ({found}): move them to one")
    held = next(iter(places), HOST)
    return get_backend(name, threads, device=device, held=held, max_device_memory=room)


def _path(given: str | Path | None) -> Path | None:
    return None if given is None else Path(given).expanduser()


def _size(given: int | str | None, name: str) -> int | None:
    return None if given is None else parse_size(given, name)
