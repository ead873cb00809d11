"""The command line: mergekern merge, materialise, plan, methods, collect, evaluate and others."""

from __future__ import annotations

import gc
import inspect
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperCommand

from mergekern import api, dropin
from mergekern.collect.command import collect_command
from mergekern.container.command import materialise_command
from mergekern.errors import RecipeError
from mergekern.evaluate.command import environments, evaluate_command
from mergekern.flags import (
    BackendName,
    Base,
    Cache,
    Card,
    Crimes,
    Debug,
    Device,
    DeviceMemory,
    DryRun,
    Dtype,
    Intermediate,
    Memory,
    MismatchRule,
    Models,
    OutDtype,
    Output,
    Params,
    Plugin,
    PresetName,
    Quiet,
    Seed,
    ShardSize,
    StatisticsOf,
    Threads,
    Tokenizer,
    Truncate,
    What,
)
from mergekern.lab.command import lab
from mergekern.manual import methods_table, tell
from mergekern.methods import get_method, load_plugin
from mergekern.progress import choose_progress
from mergekern.recipe import has_grid, meant_by
from mergekern.recipe.beside import Pairs
from mergekern.suite.command import suite_command
from mergekern.terminal import one_line_errors
from mergekern.version import __version__

app = typer.Typer(
    help="Merges fine-tuned LLM checkpoints, streaming, in bounded memory.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


class _DropIn(TyperCommand):
    """Takes mergekit's flags too, in the words of ours."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        own = {flag for option in self.params for flag in option.opts}
        with one_line_errors(debug=False):
            args, notes = dropin.translated(args, own)
        for note in notes:
            typer.echo(note, err=True)
        return super().parse_args(ctx, args)


MERGEKIT = "mergekit's flags are taken as well: " + " ".join(
    option.flags[0] for option in dropin.OPTIONS
)


@app.command("merge", cls=_DropIn, epilog=MERGEKIT)
def merge_command(
    context: typer.Context,
    recipe_or_method: What = None,
    output: Output = None,
    intermediate: Intermediate = None,
    model: Models = None,
    base: Base = None,
    param: Params = None,
    preset: PresetName = None,
    statistics: StatisticsOf = None,
    max_memory: Memory = None,
    max_device_memory: DeviceMemory = None,
    threads: Threads = None,
    seed: Seed = None,
    device: Device = "auto",
    backend: BackendName = "auto",
    mismatch: MismatchRule = "error",
    truncate_embeddings: Truncate = False,
    allow_crimes: Crimes = False,
    copy_tokenizer: Tokenizer = True,
    write_model_card: Card = True,
    cache: Cache = None,
    dtype: Dtype = None,
    out_dtype: OutDtype = None,
    max_shard_size: ShardSize = "5GB",
    dry_run: DryRun = False,
    quiet: Quiet = False,
    plugin: Plugin = None,
    debug: Debug = False,
) -> None:
    """Merge models into a folder that transformers loads; a grid into a folder for each point."""
    with one_line_errors(debug):
        _load(plugin)
        places = _places(recipe_or_method, output, preset)
        if dry_run:
            typer.echo(str(_plan(_arguments(context, without=dropin.RUNNING) | places)))
            return
        done = _merge(_arguments(context) | places | {"progress": choose_progress(quiet)})
        if not quiet:
            typer.echo("\n".join(map(str, done)))


@app.command("plan")
def plan_command(
    context: typer.Context,
    recipe_or_method: What = None,
    intermediate: Intermediate = None,
    model: Models = None,
    base: Base = None,
    param: Params = None,
    preset: PresetName = None,
    statistics: StatisticsOf = None,
    max_memory: Memory = None,
    seed: Seed = None,
    mismatch: MismatchRule = "error",
    truncate_embeddings: Truncate = False,
    allow_crimes: Crimes = False,
    cache: Cache = None,
    dtype: Dtype = None,
    out_dtype: OutDtype = None,
    max_shard_size: ShardSize = "5GB",
    plugin: Plugin = None,
    debug: Debug = False,
) -> None:
    """Show what a merge would read, write, hold in memory and leave out."""
    with one_line_errors(debug):
        _load(plugin)
        typer.echo(str(_plan(_arguments(context))))


@app.command("methods")
def methods_command(
    name: Annotated[str | None, typer.Argument(help="One method, in detail.")] = None,
    plugin: Plugin = None,
    debug: Debug = False,
) -> None:
    """List the methods, or tell all about one."""
    with one_line_errors(debug):
        _load(plugin)
        console = Console()
        if name is None:
            console.print(methods_table())
        else:
            tell(console, get_method(name))


@app.command("demo")
def demo_command(
    output: Annotated[Path, typer.Option(help="Where results go.")] = Path("mergekern-demo"),
    cache: Annotated[Path | None, typer.Option(help="Where trained models are kept.")] = None,
    threads: Threads = None,
    debug: Debug = False,
) -> None:
    """Make small real experts, merge them three ways, evaluate base, experts and merges."""
    with one_line_errors(debug):
        from mergekern.lab import run_demo

        run_demo(output=output, cache=cache, threads=threads)


app.command("materialise")(materialise_command)
app.command("collect")(collect_command)
app.command("evaluate")(evaluate_command)
app.command("suite")(suite_command)
app.add_typer(environments, name="env")
app.add_typer(lab, name="lab")


def _load(plugins: Sequence[str] | None) -> None:
    for plugin in plugins or ():
        load_plugin(plugin)


def _merge(arguments: Mapping[str, Any]) -> Sequence[Any]:
    """The reports of a merge, or of all that a recipe's grid stands for."""
    many = _of_many(arguments)
    return [api.merge(**arguments)] if many is None else api.merge_many(**many)


def _plan(arguments: Mapping[str, Any]) -> Any:
    many = _of_many(arguments)
    return api.plan(**arguments) if many is None else api.plan_many(**many)


def _places(what: str | None, output: Path | None, preset: str | None) -> dict[str, Any]:
    """What to merge by, and the folder to write: the one that is given alone, if a preset says the
    rest."""
    if output is not None:
        return {}
    if what is None or preset is None or any(method.name == what for method in api.methods()):
        raise RecipeError(
            "name the folder to write, behind the recipe or the method if there is one"
        )
    return {"recipe_or_method": None, "output": Path(what)}


def _of_many(arguments: Mapping[str, Any]) -> dict[str, Any] | None:
    """The arguments of a merge as those of many, where the recipe has a grid."""
    what = meant_by(arguments["recipe_or_method"], arguments["preset"])
    if arguments["models"] is not None or arguments["base"] is not None or not has_grid(what):
        return None
    names = {"recipe_or_method": "recipes", "output": "outputs"}
    own = {names.get(name, name): value for name, value in arguments.items()}
    of_one = ("models", "base", "intermediate")
    return {name: value for name, value in own.items() if name not in of_one}


def _arguments(context: typer.Context, without: Collection[str] = ()) -> dict[str, Any]:
    """The command line's options as the arguments of merge() and plan()."""
    own = {"model", "param", "statistics", "dry_run", "quiet", "plugin", "debug", *without}
    flags = {str(option.name): option.opts[0] for option in context.command.params}
    flags["models"] = flags["model"]
    options = {name: value for name, value in context.params.items() if name not in own}
    return {
        **options,
        "models": context.params["model"] or None,
        **({"statistics": Pairs(given)} if (given := context.params["statistics"]) else {}),
        **_parameters(context.params["param"], flags),
    }


def _parameters(given: list[str] | None, flags: Mapping[str, str]) -> dict[str, Any]:
    """name=value pairs; commas make a list, one value per model. flags: the options' own."""
    parameters: dict[str, Any] = {}
    for pair in given or []:
        name, equals, value = pair.partition("=")
        if not equals or not name or not value:
            raise RecipeError(f"--param {pair!r}; want name=value, like density=0.2")
        if name in parameters:
            raise RecipeError(f"--param {name} is given twice")
        if name in flags:
            raise RecipeError(f"{name} is an option of its own: {flags[name]}")
        if name in inspect.signature(api.merge).parameters:
            raise RecipeError(f"{name} is no parameter of a method")
        parameters[name] = value.split(",") if "," in value else value
    return parameters


def main() -> None:
    """The `mergekern` command."""
    gc.freeze()  # what is imported stays: the collector, at the end too, need not go through it
    app()
