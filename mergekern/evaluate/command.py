"""The commands `mergekern evaluate` and `mergekern env create`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mergekern.errors import EvaluationError
from mergekern.flags import Cache, Debug, Quiet
from mergekern.terminal import one_line_errors

if TYPE_CHECKING:
    from mergekern.evaluate.evaluation import Evaluation

# What runs an evaluation is imported when one is run: other commands start without it.

Model = Annotated[str, typer.Argument(help="A folder, a Hub id, base+adapter, or a recipe file.")]
SuiteName = Annotated[
    str | None,
    typer.Option(
        "--suite",
        help="mergebench, mergebench-surrogate, forgetting, lm-eval-only, local, local-surrogate, "
        "local-forgetting, or a YAML file.",
    ),
]
Tasks = Annotated[str | None, typer.Option(help="lm-eval's, in place of a suite: a,b,c.")]
Results = Annotated[Path, typer.Option("--output", "-o", help="The folder of results.")]
Base = Annotated[str | None, typer.Option(help="Evaluated too: what was forgotten of it.")]
Experts = Annotated[
    list[str] | None,
    typer.Option("--expert", help="DOMAIN=MODEL, evaluated on it too: what was kept of it."),
]
Limit = Annotated[int | None, typer.Option(min=1, help="Items of each task; the first ones.")]
Place = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:1.")]
Batch = Annotated[int | None, typer.Option(min=1, help="In place of the suite's.")]
LoadDtype = Annotated[str, typer.Option(help="Weights are loaded as; auto: as they are stored.")]
EngineName = Annotated[str, typer.Option(help="Of lm-eval: auto, hf or vllm.")]
Template = Annotated[bool, typer.Option("--chat-template", help="Prompts go through the model's.")]
Include = Annotated[
    list[Path] | None, typer.Option("--include", help="A folder with task files of your own.")
]
Execution = Annotated[
    bool,
    typer.Option(
        "--allow-code-execution", help="Run what the model has written, in its harness's sandbox."
    ),
]
Timeout = Annotated[
    float | None, typer.Option(help="Seconds for a task of a harness in its own environment.")
]
Dry = Annotated[bool, typer.Option("--dry-run", help="List what would be run, and stop.")]


def evaluate_command(
    model: Model,
    suite: SuiteName = None,
    tasks: Tasks = None,
    output: Results = Path("mergekern-results"),
    base: Base = None,
    expert: Experts = None,
    limit: Limit = None,
    device: Place = "auto",
    batch_size: Batch = None,
    dtype: LoadDtype = "auto",
    engine: EngineName = "auto",
    chat_template: Template = False,
    include: Include = None,
    allow_code_execution: Execution = False,
    timeout: Timeout = 12 * 3600.0,
    cache: Cache = None,
    dry_run: Dry = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Score a model on a suite of tasks; what is finished is not run again."""
    with one_line_errors(debug):
        from mergekern.evaluate.run import choose_suite, evaluate

        chosen = choose_suite(suite, tasks)
        options: dict[str, Any] = {
            "output": output,
            "limit": limit,
            "device": device,
            "batch_size": batch_size,
            "dtype": dtype,
            "engine": engine,
            "chat_template": chat_template,
            "include": include or (),
            "allow_code_execution": allow_code_execution,
            "timeout": timeout,
            "cache": cache,
            "dry_run": dry_run,
            "tell": None if quiet else _tell,
        }
        experts = {
            domain: (own, chosen.only(domain)) for domain, own in _experts(expert or []).items()
        }
        found = evaluate(model, suite=chosen, **options)
        on_base = None if base is None else evaluate(base, suite=chosen, **options)
        of_experts = {
            domain: evaluate(own, suite=only, **options) for domain, (own, only) in experts.items()
        }
        _show(found, on_base, of_experts)
        if not dry_run and not any(cell.stored for cell in found.cells):
            raise EvaluationError("no task has a result; the lines above say why")


def _show(found: Evaluation, base: Evaluation | None, experts: dict[str, Evaluation]) -> None:
    from mergekern.evaluate.report import shares_text

    typer.echo(str(found))
    for other in (base, *experts.values()):
        if other is not None:
            typer.echo(f"\n{other}")
    if text := shares_text(found, base, experts):
        typer.echo(f"\n{text}")


def _experts(given: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for pair in given:
        domain, equals, model = pair.partition("=")
        if not (domain and equals and model) or domain in found:
            raise EvaluationError(f"--expert {pair!r}; want DOMAIN=MODEL, once for a domain")
        found[domain] = model
    return found


def _tell(line: str) -> None:
    typer.echo(line, err=True)


environments = typer.Typer(
    help="Environments of harnesses whose requirements conflict with ours.", no_args_is_help=True
)


@environments.callback()
def _environments() -> None:
    """Environments of harnesses whose requirements conflict with ours."""


@environments.command("create")
def create_command(
    name: Annotated[str, typer.Argument(help="bigcode or safety.")],
    folder: Annotated[Path | None, typer.Option(help="Where; default: the user's data.")] = None,
    python: Annotated[str | None, typer.Option(help="Its Python; default: this one.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the commands alone.")] = False,
    debug: Debug = False,
) -> None:
    """Make one: the commands are shown first."""
    with one_line_errors(debug):
        from mergekern.evaluate import environments as made

        where = None if folder is None else folder.expanduser().absolute()
        lines = made.commands(name, where, python)
        typer.echo("\n".join(map(made.shown, lines)))
        typer.echo(f"note: {made.note(name)}", err=True)
        if not dry_run:
            done = made.create_environment(name, where, python=python, show=_tell)
            typer.echo(f"{done.folder}: ready, its harness at {done.commit}")
