"""One task's model, taken out of a container into a folder of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mergekern import jobs
from mergekern.backends.choose import HOST, check_choice, get_backend
from mergekern.checkpoint.container import MANIFEST, Base, is_container
from mergekern.container.job import base_of_source
from mergekern.done import MergeReport
from mergekern.errors import CheckpointError, RecipeError
from mergekern.folders import output_path
from mergekern.options import Options
from mergekern.plan import Plan
from mergekern.progress import Progress
from mergekern.recipe import parse_source, read
from mergekern.sizes import parse_size

if TYPE_CHECKING:
    import torch

PathLike = str | os.PathLike[str]


def materialise(
    container: PathLike,
    output: PathLike,
    *,
    task: str,
    base: str | None = None,
    dtype: str | torch.dtype | None = None,
    copy_tokenizer: bool = True,
    write_model_card: bool = True,
    cache: PathLike | None = None,
    max_memory: int | str | None = None,
    threads: int | None = None,
    backend: str = "auto",
    device: str = "auto",
    max_shard_size: int | str = "5GB",
    progress: Progress | None = None,
) -> MergeReport:
    """Write one task's model, base + lambda * mask * vector, into a folder that transformers loads.

    container: a folder that a merge by `emr` wrote. `CONTAINER@TASK` names the same model wherever
               a model is named: in recipes, to evaluate() and collect()
    task:      whose model; without a choice, an error lists them
    base:      where the base is now, if not where the container says; it must be the same model
    dtype:     of the output; that of the container's vector if not given
    The rest is as for merge(). Raises MergeError, or one of its kinds, naming the mend.
    """
    check_choice(backend, device, threads)
    limit = None if max_memory is None else parse_size(max_memory, "max_memory")
    how = Options(
        shard_bytes=parse_size(max_shard_size, "max_shard_size"),
        cache=None if cache is None else Path(cache).expanduser(),
        copy_tokenizer=copy_tokenizer,
        write_model_card=write_model_card,
        base=_base(base),
    )
    chosen = get_backend(backend, threads, device=device, held=HOST)
    with _ready(container, output, task, dtype, how) as job:
        [done] = jobs.run([job], chosen, limit, progress)
    assert isinstance(done, MergeReport)
    return done


def plan_materialise(
    container: PathLike,
    output: PathLike,
    *,
    task: str,
    base: str | None = None,
    dtype: str | torch.dtype | None = None,
    cache: PathLike | None = None,
    max_memory: int | str | None = None,
    max_shard_size: int | str = "5GB",
) -> Plan:
    """What materialise() with these arguments would read, write and hold."""
    limit = None if max_memory is None else parse_size(max_memory, "max_memory")
    how = Options(
        shard_bytes=parse_size(max_shard_size, "max_shard_size"),
        cache=None if cache is None else Path(cache).expanduser(),
        base=_base(base),
    )
    with _ready(container, output, task, dtype, how) as job:
        job.check_folder()
        return job.planned(limit)


@contextmanager
def _ready(
    container: PathLike,
    output: PathLike,
    task: str,
    dtype: str | torch.dtype | None,
    how: Options,
) -> Iterator[jobs.Job]:
    folder = Path(container).expanduser()
    if not is_container(folder):
        what = f"has no {MANIFEST}" if folder.is_dir() else "is no folder"
        raise CheckpointError(f"{container}: {what}: want one that a merge by emr wrote")
    model = {"model": {"path": os.fspath(container), "revision": task}}
    asked = read({"merge_method": "passthrough", "models": [{"model": model}]}, dtype=dtype)
    with jobs.ready([asked], [output_path(output)], how) as (job,):
        yield job


def _base(given: str | None) -> Base | None:
    if given is None:
        return None
    found = base_of_source(parse_source(given, "base"))
    if found is None:
        raise RecipeError(f"base is {given!r:.80}; want a folder or a Hub id")
    return found
