"""The command line: mergekern merge and plan here, and where the others are."""

from __future__ import annotations

import gc
import inspect
from collections.abc import Collection, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_group

from mergekern import api, dropin
from mergekern.errors import RecipeError
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
from mergekern.methods import load_plugins
from mergekern.progress import choose_progress
from mergekern.recipe import has_grid, meant_by
from mergekern.recipe.beside import Pairs
from mergekern.terminal import one_line_errors
from mergekern.version import __version__

ELSEWHERE = {
    "methods": "manual:methods_command",
    "demo": "lab.command:demo_command",
    "materialise": "container.command:materialise_command",
    "collect": "collect.command:collect_command",
    "evaluate": "evaluate.command:evaluate_command",
    "suite": "suite.command:suite_command",
    "env": "evaluate.command:environments",
    "lab": "lab.command:lab",
}


class _Commands(TyperGroup):
    """Commands of other modules are built when they are named, as that takes time: a merge does
    without."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.commands:  # for one that nobody has, all: some may be named alike
            for name in [cmd_name] if cmd_name in ELSEWHERE else ELSEWHERE:
                self.commands[name] = _built(name)
        return super().get_command(ctx, cmd_name)

    def list_commands(self, ctx: Any) -> list[str]:
        return [*(name for name in self.commands if name not in ELSEWHERE), *ELSEWHERE]


def _built(name: str) -> Any:
    """A command of another module, or a group of some."""
    module, _, attribute = ELSEWHERE[name].partition(":")
    found = getattr(import_module(f"mergekern.{module}"), attribute)
    alone = typer.Typer()
    if isinstance(found, typer.Typer):
        alone.add_typer(found, name=name)
    else:
        alone.command(name)(found)
    return get_group(alone).commands[name]


app = typer.Typer(
    cls=_Commands,
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
        load_plugins(plugin)
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
        load_plugins(plugin)
        typer.echo(str(_plan(_arguments(context))))


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
