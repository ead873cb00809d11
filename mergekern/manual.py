"""The command `mergekern methods`: the table of all methods, and the manual of one."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mergekern.flags import Debug, Plugin
from mergekern.methods import Method, all_methods, get_method, load_plugins
from mergekern.report import show
from mergekern.terminal import one_line_errors


def methods_command(
    name: Annotated[str | None, typer.Argument(help="One method, in detail.")] = None,
    plugin: Plugin = None,
    debug: Debug = False,
) -> None:
    """List the methods, or tell all about one."""
    with one_line_errors(debug):
        load_plugins(plugin)
        console = Console()
        if name is None:
            console.print(methods_table())
        else:
            tell(console, get_method(name))


def methods_table() -> Table:
    """All of them, a line each."""
    table = Table(box=None, pad_edge=False)
    table.add_column("method", no_wrap=True)
    for title in ("what it does", "parameters", "presets", "paper"):
        table.add_column(title, overflow="fold")
    for method in all_methods():
        parameters = " ".join(parameter.name for parameter in method.parameters)
        presets = " ".join(method.presets)
        table.add_row(method.name, method.title, parameters, presets, method.paper)
    return table


def tell(console: Console, method: Method) -> None:
    """All about one."""
    paper = f" ({method.paper})" if method.paper else ""
    heading = f"{method.name}: {method.title}{paper}, {method.base_text}"
    typer.echo(f"{heading}\n\n{method.doc}\n")
    table = Table(box=None, pad_edge=False)
    for title in ("parameter", "default", "meaning"):
        table.add_column(title, overflow="fold")
    for parameter in method.parameters:
        meaning = parameter.doc.text + (", per model" if parameter.per_model else "")
        limits = parameter.doc.interval or " | ".join(parameter.choices)
        cells = (parameter.name, parameter.default_text, f"{meaning}  {limits}")
        table.add_row(*(Text(cell) for cell in cells))
    console.print(table)
    for name, preset in method.presets.items():
        values = " ".join(f"{key}={show(value)}" for key, value in preset.parameters.items())
        typer.echo(f"\npreset {name}: {values}\n{preset.doc}")
