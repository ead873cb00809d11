"""collect(): from a model and data to a file of statistics."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from mergekern import ambient
from mergekern.checkpoint import Checkpoint, open_checkpoint
from mergekern.checkpoint.identity import identity_of
from mergekern.collect.data import Sample, Texts, draw, read_texts
from mergekern.collect.fisher import LABELS, Labels, collect_fisher, fisher_keys
from mergekern.collect.gram import collect_gram, linear_layers
from mergekern.collect.network import Network, tokenizer_of
from mergekern.collect.showing import choose_showing
from mergekern.collect.store import Store
from mergekern.dtypes import parse_dtype, to_torch
from mergekern.errors import CollectError
from mergekern.lazily import torch
from mergekern.lock import input_files
from mergekern.recipe import parse_source
from mergekern.sizes import format_size
from mergekern.version import __version__

Kind = Literal["fisher", "gram", "regmean_plusplus"]
KINDS: tuple[Kind, ...] = ("fisher", "gram", "regmean_plusplus")


@dataclass(frozen=True)
class Collection:
    """What was collected, or with dry_run would be; str() tells it.

    nbytes:  of the tensors; of Gram matrices before they are made, what they are at the most: those
             that see the same input share one
    seconds: None where nothing was run
    found:   the file was there already
    """

    kind: Kind
    path: Path
    model: str
    samples: int
    tokens: int
    nbytes: int
    seconds: float | None = None
    found: bool = False

    def __str__(self) -> str:
        over = f"{self.samples} samples, {self.tokens} tokens"
        of = f"{self.path}: {self.kind} of {self.model}, {over}"
        if self.found:
            return f"{of}; already collected, nothing to do"
        if self.seconds is None:
            most = "" if self.kind == "fisher" else "at the most "
            return f"{of}; it would hold {most}{format_size(self.nbytes)}"
        return f"{of}; {format_size(self.nbytes)} in {self.seconds:.1f} s"


def collect(
    kind: Kind,
    model: str | Path,
    data: str | Path,
    *,
    samples: int = 1000,
    output: str | Path | None = None,
    labels: Labels = "empirical",
    embeddings: bool = False,
    max_length: int = 2048,
    seed: int = 0,
    split: str = "train",
    dtype: str | None = None,
    device: str = "auto",
    cache: str | Path | None = None,
    dry_run: bool = False,
    quiet: bool = True,
) -> Collection:
    """Collect what merges may need to know of one model, into a safetensors file.

    kind:       fisher: a diagonal for every parameter, see fisher.py for its two formulas;
                gram: a matrix for what every linear layer sees, see gram.py
    model:      a folder, a Hub id, or base+adapter
    data:       a .jsonl, .json or text file, or a dataset of the Hub; see data.py
    samples:    how many are drawn, by the seed alone; each is cut to max_length tokens
    output:     the file; MODEL.KIND.safetensors in the working folder if not given
    labels:     of fisher: empirical (the tokens of the data), hard (the model's own last one)
    embeddings: of fisher: the input embeddings as well
    split:      of a dataset
    dtype:      the model is run in; as it is stored if not given
    device:     auto (a GPU if there is one), cpu, cuda or cuda:1
    dry_run:    say what would be collected, and how large it is
    What is finished is not done again after a kill: layers of gram, tenths of fisher's samples.
    Raises CollectError, CheckpointError or OutputError, naming what was found and the mend.
    """
    check_choices(kind, labels, samples, max_length)
    if kind == "regmean_plusplus":
        raise CollectError(
            f"{kind} is collected of all models at once: mergekern.collect.collect_along()"
        )
    began = time.monotonic()
    with closing(open_model(model, cache)) as checkpoint, ambient.set_aside():
        texts = read_texts(data, split)
        drawn = draw(texts, tokenizer_of(checkpoint), samples, max_length, seed)
        network = Network(checkpoint, device_of(device), torch_dtype(dtype))
        options: dict[str, Any] = {"seed": seed, "max_length": max_length, "dtype": dtype}
        if kind == "fisher":
            options |= {"labels": labels, "embeddings": embeddings}
        path = Path(
            f"{Path(checkpoint.label).name}.{kind}.safetensors" if output is None else output
        )
        store = Store(path.expanduser(), question_of(kind, checkpoint, texts, drawn, options))
        nbytes = nbytes_of(kind, network, checkpoint, embeddings)
        tokens = sum(len(sample.ids) for sample in drawn)
        told = Collection(kind, path, str(model), samples, tokens, nbytes, found=store.finished)
        if dry_run or told.found:
            return told
        nbytes = _collect(
            kind, network, drawn, store, device_of(device), quiet, options, checkpoint
        )
        return replace(told, nbytes=nbytes, seconds=time.monotonic() - began)


def _collect(
    kind: Kind,
    network: Network,
    samples: Sequence[Sample],
    store: Store,
    device: str,
    quiet: bool,
    options: dict[str, Any],
    checkpoint: Checkpoint,
) -> int:
    """Run it, and write the file. Returns its bytes."""
    store.open()
    with choose_showing(kind, quiet) as showing:
        if kind == "gram":
            layers = network.model.config.get_text_config().num_hidden_layers
            showing.start(layers * len(samples), "samples through layers")
            parts, said = collect_gram(network, samples, store, device, showing.advance)
        else:
            showing.start(len(samples), "samples")
            asked = options["labels"], options["embeddings"]
            parts, said = collect_fisher(network, samples, store, device, showing.advance, *asked)
    checkpoint.verify_unchanged()
    about = {"kind": kind, "model": checkpoint.label, "files": input_files(checkpoint)}
    return store.finish(parts, {**about, **said, "version": __version__})


def question_of(
    kind: Kind,
    checkpoint: Checkpoint,
    texts: Texts,
    samples: Sequence[Sample],
    options: dict[str, Any],
) -> dict[str, Any]:
    """All that the numbers depend on, but for the machine."""
    tokens = sum(len(sample.ids) for sample in samples)
    data = {**texts.origin, "samples": len(samples), "tokens": tokens}
    identity = identity_of(checkpoint)
    return {"kind": kind, "identity": identity, "data": data, "options": options}


def nbytes_of(kind: Kind, network: Network, checkpoint: Checkpoint, embeddings: bool) -> int:
    if kind == "fisher":
        keys = fisher_keys(network, embeddings)
        return sum(4 * checkpoint.tensors[network.stored(key)].numel for key in keys)
    return sum(4 * width**2 for width in map(inputs_of, linear_layers(network)))


def inputs_of(linear: Any) -> int:
    """Of a Linear, or of a Conv1D, which has no name for it."""
    return int(getattr(linear, "in_features", 0) or linear.weight.shape[0])


def open_model(model: str | Path, cache: str | Path | None) -> Checkpoint:
    source = parse_source(model, "model")
    lora = source.lora
    return open_checkpoint(
        source.where,
        revision=source.revision,
        label=source.label,
        lora=None if lora is None else lora.where,
        lora_revision=None if lora is None else lora.revision,
        cache=None if cache is None else Path(cache).expanduser(),
    )


def check_choices(kind: str, labels: str, samples: int, max_length: int) -> None:
    for name, value, choices in (("kind", kind, KINDS), ("labels", labels, LABELS)):
        if value not in choices:
            raise CollectError(f"{name} is {value!r}; want one of {', '.join(choices)}")
    for name, number, least in (("samples", samples, 1), ("max_length", max_length, 2)):
        if number < least:
            raise CollectError(f"{name} is {number}; want {least} or more")


def torch_dtype(name: str | None) -> torch.dtype | None:
    return None if name is None else to_torch(parse_dtype(name))


def device_of(asked: str) -> str:
    """`auto` is a GPU where torch sees one. Raises CollectError for a GPU that is not here."""
    here = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if asked == "auto":
        return "cuda" if here else "cpu"
    kind, _, number = asked.partition(":")
    if asked != "cpu" and (kind != "cuda" or not (number or "0").isdecimal()):
        raise CollectError(f"device is {asked!r}; want auto, cpu, cuda or cuda:1")
    if asked != "cpu" and int(number or 0) >= here:
        raise CollectError(f"device is {asked!r}; torch sees {here} GPUs on this machine")
    return asked
