"""mergekern materialise: one task's model out of a container."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mergekern.container.materialise import materialise, plan_materialise
from mergekern.flags import (
    BackendName,
    Cache,
    Card,
    Debug,
    Device,
    DryRun,
    Dtype,
    Memory,
    Quiet,
    ShardSize,
    Threads,
    Tokenizer,
)
from mergekern.progress import choose_progress
from mergekern.terminal import one_line_errors


def materialise_command(
    container: Annotated[Path, typer.Argument(help="A folder that a merge by emr wrote.")],
    output: Annotated[Path, typer.Argument(help="The folder to write.")],
    task: Annotated[str, typer.Option(help="Whose model.")],
    base: Annotated[
        str | None, typer.Option(help="Where the base is now, if not where it was.")
    ] = None,
    max_memory: Memory = None,
    threads: Threads = None,
    device: Device = "auto",
    backend: BackendName = "auto",
    copy_tokenizer: Tokenizer = True,
    write_model_card: Card = True,
    cache: Cache = None,
    dtype: Dtype = None,
    max_shard_size: ShardSize = "5GB",
    dry_run: DryRun = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write one task's model of a container, as transformers loads it."""
    with one_line_errors(debug):
        if dry_run:
            plan = plan_materialise(
                container,
                output,
                task=task,
                base=base,
                dtype=dtype,
                cache=cache,
                max_memory=max_memory,
                max_shard_size=max_shard_size,
            )
            typer.echo(str(plan))
            return
        done = materialise(
            container,
            output,
            task=task,
            base=base,
            dtype=dtype,
            copy_tokenizer=copy_tokenizer,
            write_model_card=write_model_card,
            cache=cache,
            max_memory=max_memory,
            threads=threads,
            backend=backend,
            device=device,
            max_shard_size=max_shard_size,
            progress=choose_progress(quiet),
        )
        if not quiet:
            typer.echo(str(done))
