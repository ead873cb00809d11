"""The command line's arguments and options: each is said once, for every command that takes it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

What = Annotated[
    str | None,
    typer.Argument(help="A recipe file, or a method's name; not needed if --preset says it."),
]
Output = Annotated[Path | None, typer.Argument(help="The folder to write.")]
Intermediate = Annotated[
    Path | None,
    typer.Option(
        "--intermediate-dir",
        "-I",
        help="For stages, of recipes of several documents; default: OUTPUT.stages.",
    ),
]
Models = Annotated[
    list[str] | None, typer.Option("--model", "-m", help="A model to merge; once for each.")
]
Base = Annotated[str | None, typer.Option(help="The model they were fine-tuned from.")]
Params = Annotated[
    list[str] | None,
    typer.Option("--param", "-p", help="name=value, or name=v1,v2 with one value per model."),
]
StatisticsOf = Annotated[
    list[str] | None,
    typer.Option(
        "--statistics", help="MODEL=FILE, what `mergekern collect` made of it; once for each model."
    ),
]
PresetName = Annotated[str | None, typer.Option(help="A named bundle of parameters.")]
Memory = Annotated[str | None, typer.Option(help="What the process may hold, like 8GiB.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Default: the cores it may use.")]
Seed = Annotated[int | None, typer.Option(min=0, help="Of methods that draw random numbers.")]
DeviceMemory = Annotated[str | None, typer.Option(help="Of a GPU; default: most of what is free.")]
Device = Annotated[str, typer.Option(help="auto (a GPU if there is one), cpu, cuda or cuda:1.")]
BackendName = Annotated[
    str, typer.Option("--backend", help="auto, cpu, cuda, triton or reference: same bytes.")
]
MismatchRule = Annotated[
    str, typer.Option("--mismatch", help="Tensors that do not fit: error, base or skip-model.")
]
Truncate = Annotated[
    bool,
    typer.Option(
        "--truncate-embeddings", help="Cut vocabularies to the smallest, whatever they mean."
    ),
]
Crimes = Annotated[
    bool,
    typer.Option(
        "--allow-crimes/--no-allow-crimes", help="Merge architectures that differ, by names."
    ),
]
Tokenizer = Annotated[bool, typer.Option("--copy-tokenizer/--no-copy-tokenizer")]
Card = Annotated[bool, typer.Option("--write-model-card/--no-write-model-card")]
Cache = Annotated[Path | None, typer.Option(help="Where Hub models are downloaded to.")]
Dtype = Annotated[str | None, typer.Option(help="Of the output, like bfloat16; default: base's.")]
OutDtype = Annotated[str | None, typer.Option(help="Of the output; wins over --dtype.")]
ShardSize = Annotated[str, typer.Option(help="Largest output file.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no summary.")]
Plugin = Annotated[
    list[str] | None,
    typer.Option("--plugin", help="A .py file or a module that defines methods; once for each."),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the trace of an error.")]
