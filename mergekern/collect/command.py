"""The command `mergekern collect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mergekern.errors import CollectError
from mergekern.flags import Cache, Debug, Quiet
from mergekern.terminal import one_line_errors

# What collects is imported when it does: other commands start without it.

KindName = Annotated[
    str, typer.Argument(metavar="KIND", help="fisher, gram, masks or regmean_plusplus.")
]
Model = Annotated[
    list[str], typer.Option("--model", "-m", help="A folder, a Hub id, or base+adapter.")
]
Data = Annotated[
    list[str], typer.Option(help="A .jsonl, .json or text file, or a dataset of the Hub.")
]
Samples = Annotated[int, typer.Option(help="How many are drawn at random.")]
File = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        help="Default: MODEL.KIND.safetensors, here. Of regmean_plusplus: the folder of these.",
    ),
]
LabelsOf = Annotated[
    str, typer.Option("--labels", help="Of fisher: empirical (the data's), hard (the model's own).")
]
Embeddings = Annotated[
    bool,
    typer.Option("--embeddings", help="Of fisher: embeddings as well; of masks: the head too."),
]
Base = Annotated[
    str | None,
    typer.Option("--base", "-b", help="Of masks and regmean_plusplus: what was fine-tuned."),
]
Sparsity = Annotated[float, typer.Option(help="Of masks: the fraction that they begin with.")]
Bias = Annotated[float, typer.Option(help="Of masks: their first logits are plus and minus this.")]
Rate = Annotated[float, typer.Option(help="Of masks: what gradients are multiplied by.")]
L1 = Annotated[float, typer.Option(help="Of masks: the push towards fewer elements.")]
Epochs = Annotated[int, typer.Option(help="Of masks: how often all samples are gone through.")]
Length = Annotated[int, typer.Option(help="Tokens that a sample is cut to.")]
Drawn = Annotated[int, typer.Option(min=0, help="Of the samples that are drawn.")]
Split = Annotated[str, typer.Option(help="Of a dataset.")]
RunDtype = Annotated[
    str | None, typer.Option(help="Run in; default: float32 on a CPU, else as it is stored.")
]
Place = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:1.")]
Weight = Annotated[
    list[float] | None, typer.Option(help="Of regmean_plusplus: of each model, or one for all.")
]
Reduction = Annotated[float, typer.Option(help="Of regmean_plusplus: that of the merge.")]
SingularOf = Annotated[str, typer.Option("--singular", help="Of regmean_plusplus: error or mean.")]
RestOf = Annotated[
    str, typer.Option("--rest", help="Of regmean_plusplus: vocabulary, base or mean.")
]
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
    weight: Weight = None,
    reduction: Reduction = 0.9,
    singular: SingularOf = "error",
    rest: RestOf = "vocabulary",
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
    """Collect statistics of a model over data: fisher, gram and masks, for the methods fisher,
    regmean and stitch; or of several models, each with its data, along their merge:
    regmean_plusplus."""
    options: dict[str, Any] = {
        "base": base,
        "samples": samples,
        "output": output,
        "max_length": max_length,
        "seed": seed,
        "split": split,
        "dtype": dtype,
        "device": device,
        "cache": cache,
        "dry_run": dry_run,
        "quiet": quiet,
    }
    with one_line_errors(debug):
        _check(kind, locals())
        if kind == "regmean_plusplus":
            weights: Any = 1.0 if not weight else weight[0] if len(weight) == 1 else weight
            options |= {"weight": weights, "reduction": reduction}
            found = _along(model, data, options | {"singular": singular, "rest": rest})
        else:
            options |= {"labels": labels, "embeddings": embeddings, "sparsity": sparsity}
            options |= {"bias": bias, "rate": rate, "l1": l1, "epochs": epochs}
            found = [_alone(kind, model, data, options)]
        for each in found if not quiet else ():
            typer.echo(str(each))


def _check(kind: str, given: dict[str, Any]) -> None:
    from mergekern.collect.choices import KINDS, check_meant

    if kind in KINDS:
        check_meant(kind, given, collect_command)


def _alone(kind: str, models: list[str], data: list[str], options: dict[str, Any]) -> Any:
    from mergekern.collect.run import collect

    if len(models) != 1 or len(data) != 1:
        raise CollectError(
            f"{kind} is of one model and its data; {len(models)} models and {len(data)} data are "
            "given: collect them one by one"
        )
    return collect(kind, models[0], data[0], **options)  # type: ignore[arg-type]  # it checks them


def _along(models: list[str], data: list[str], options: dict[str, Any]) -> list[Any]:
    from mergekern.collect.along import collect_along

    return list(collect_along(models, data, **options))
