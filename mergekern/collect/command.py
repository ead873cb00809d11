"""The command `mergekern collect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mergekern.flags import Cache, Debug, Quiet
from mergekern.terminal import one_line_errors

# What collects is imported when it does: other commands start without it.

KindName = Annotated[str, typer.Argument(metavar="KIND", help="fisher, gram or masks.")]
Model = Annotated[str, typer.Option("--model", "-m", help="A folder, a Hub id, or base+adapter.")]
Data = Annotated[str, typer.Option(help="A .jsonl, .json or text file, or a dataset of the Hub.")]
Samples = Annotated[int, typer.Option(help="How many are drawn at random.")]
File = Annotated[
    Path | None, typer.Option("--output", "-o", help="Default: MODEL.KIND.safetensors, here.")
]
LabelsOf = Annotated[
    str, typer.Option("--labels", help="Of fisher: empirical (the data's), hard (the model's own).")
]
Embeddings = Annotated[
    bool,
    typer.Option("--embeddings", help="Of fisher: embeddings as well; of masks: the head too."),
]
Base = Annotated[
    str | None, typer.Option("--base", "-b", help="Of masks: what the model was fine-tuned from.")
]
Sparsity = Annotated[float, typer.Option(help="Of masks: the fraction that they begin with.")]
Bias = Annotated[float, typer.Option(help="Of masks: their first logits are plus and minus this.")]
Rate = Annotated[float, typer.Option(help="Of masks: what gradients are multiplied by.")]
L1 = Annotated[float, typer.Option(help="Of masks: the push towards fewer elements.")]
Epochs = Annotated[int, typer.Option(help="Of masks: how often all samples are gone through.")]
Length = Annotated[int, typer.Option(help="Tokens that a sample is cut to.")]
Drawn = Annotated[int, typer.Option(min=0, help="Of the samples that are drawn.")]
Split = Annotated[str, typer.Option(help="Of a dataset.")]
RunDtype = Annotated[str | None, typer.Option(help="Run in; default: as the model is stored.")]
Place = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:1.")]
Dry = Annotated[bool, typer.Option("--dry-run", help="Say what would be collected, and stop.")]


def collect_command(
    kind: KindName,
    model: Model,
    data: Data,
    samples: Samples = 1000,
    output: File = None,
    labels: LabelsOf = "empirical",
    embeddings: Embeddings = False,
    base: Base = None,
    sparsity: Sparsity = 0.1,
    bias: Bias = 3.0,
    rate: Rate = 1e8,
    l1: L1 = 0.0,
    epochs: Epochs = 1,
    max_length: Length = 2048,
    seed: Drawn = 0,
    split: Split = "train",
    dtype: RunDtype = None,
    device: Place = "auto",
    cache: Cache = None,
    dry_run: Dry = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Collect statistics of a model over data: fisher and masks, for the methods fisher and
    stitch, or gram."""
    with one_line_errors(debug):
        from mergekern.collect.run import collect

        options: dict[str, Any] = {
            "samples": samples,
            "output": output,
            "labels": labels,
            "embeddings": embeddings,
            "base": base,
            "sparsity": sparsity,
            "bias": bias,
            "rate": rate,
            "l1": l1,
            "epochs": epochs,
            "max_length": max_length,
            "seed": seed,
            "split": split,
            "dtype": dtype,
            "device": device,
            "cache": cache,
            "dry_run": dry_run,
            "quiet": quiet,
        }
        found = collect(kind, model, data, **options)  # type: ignore[arg-type]  # it checks them
        if not quiet:
            typer.echo(str(found))
