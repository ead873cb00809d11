"""The commands `mergekern lab make` and `mergekern demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mergekern.flags import Debug, Threads
from mergekern.terminal import one_line_errors

# What trains and evaluates is imported when it does: other commands start without it.

Output = Annotated[Path, typer.Option("--output", "-o", help="Where lab.yml and results go.")]
Models = Annotated[Path | None, typer.Option("--cache", help="Where trained models are kept.")]
Weaker = Annotated[
    bool, typer.Option("--weaker-base", help="Also a base of fewer steps, to compare with.")
]
Limit = Annotated[
    int | None, typer.Option(min=1, help="Items of each task; default: all, as they are reported.")
]

lab = typer.Typer(
    help="Small real models on which merging methods are compared.", no_args_is_help=True
)


@lab.callback()
def _lab() -> None:
    """Small real models on which merging methods are compared; nothing is downloaded."""


@lab.command("make")
def make_command(
    output: Output = Path("mergekern-lab"),
    cache: Models = None,
    weaker_base: Weaker = False,
    limit: Limit = None,
    threads: Threads = None,
    debug: Debug = False,
) -> None:
    """Train a base and its experts, show that they are, and write lab.yml for `mergekern suite`."""
    with one_line_errors(debug):
        from mergekern.lab import make

        made = make.make_lab(output, cache, threads, weaker_base=weaker_base, limit=limit)
        typer.echo(f"models: {made.lab.folder}")
        made.check()
        runs = [made.run.with_name(make.WEAKER)] * weaker_base + [made.run]
        typer.echo("\n".join(f"now: mergekern suite {run}" for run in runs))


def demo_command(
    output: Annotated[Path, typer.Option(help="Where results go.")] = Path("mergekern-demo"),
    cache: Models = None,
    threads: Threads = None,
    debug: Debug = False,
) -> None:
    """Make small real experts, merge them three ways, evaluate base, experts and merges."""
    with one_line_errors(debug):
        from mergekern.lab import run_demo

        run_demo(output=output, cache=cache, threads=threads)
