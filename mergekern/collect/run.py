"""collect(): from a model and data to a file of statistics."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mergekern import ambient
from mergekern.backends.choose import place_of
from mergekern.checkpoint import Checkpoint, open_checkpoint
from mergekern.checkpoint.identity import identity_of
from mergekern.collect.choices import (
    Kind,
    check_choices,
    check_meant,
    run_in,
    torch_dtype,
)
from mergekern.collect.data import Sample, Texts, draw, read_texts
from mergekern.collect.fisher import Labels, collect_fisher, fisher_keys
from mergekern.collect.gram import collect_gram, linear_layers
from mergekern.collect.masks import Deltas, Training, collect_masks, masked_keys
from mergekern.collect.network import Network, tokenizer_of
from mergekern.collect.showing import Showing, choose_showing
from mergekern.collect.store import Store
from mergekern.errors import CollectError
from mergekern.lock import input_files
from mergekern.recipe import parse_source
from mergekern.sizes import format_size
from mergekern.version import __version__


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


@dataclass(frozen=True)
class _Task:
    """What is to be done, and with which models.

    network: of the base, where there is one
    options: all that the numbers depend on besides models and data
    """

    kind: Kind
    model: Checkpoint
    base: Checkpoint | None
    network: Network
    samples: Sequence[Sample]
    device: str
    options: Mapping[str, Any]

    @property
    def tokens(self) -> int:
        return sum(len(sample.ids) for sample in self.samples)

    @cached_property
    def names(self) -> list[str]:
        """Of the tensors that get numbers of their own, as the checkpoint calls them."""
        keys = masked_keys if self.kind == "masks" else fisher_keys
        asked = keys(self.network, self.options["embeddings"])
        return [self.network.stored(key) for key in asked]

    @cached_property
    def deltas(self) -> Deltas:
        assert self.base is not None, "masks without a base"
        return Deltas(self.model, self.base, self.names, self.device)

    @cached_property
    def training(self) -> Training:
        return Training(**{each.name: self.options[each.name] for each in fields(Training)})

    @property
    def nbytes(self) -> int:
        if self.kind == "gram":
            return gram_bytes(self.network)
        if self.kind == "masks":
            return self.deltas.nbytes
        return sum(4 * self.model.tensors[name].numel for name in self.names)

    def run(self, store: Store, showing: Showing) -> tuple[list[str], dict[str, Any]]:
        """The names of the parts that it is in, and what the file says of them."""
        network, samples, device, show = self.network, self.samples, self.device, showing.advance
        if self.kind == "gram":
            layers = network.model.config.get_text_config().num_hidden_layers
            showing.start(layers * len(samples), "samples through layers")
            return collect_gram(network, samples, store, device, show)
        if self.kind == "fisher":
            showing.start(len(samples), "samples")
            asked = self.options["labels"], self.options["embeddings"]
            return collect_fisher(network, samples, store, device, show, *asked)
        showing.start(self.training.epochs * len(samples), "samples")
        return collect_masks(network, self.deltas, samples, store, device, show, self.training)


def collect(
    kind: Kind,
    model: str | Path,
    data: str | Path,
    *,
    samples: int = 1000,
    output: str | Path | None = None,
    labels: Labels = "empirical",
    embeddings: bool = False,
    base: str | Path | None = None,
    sparsity: float = 0.1,
    bias: float = 3.0,
    rate: float = 1e8,
    l1: float = 0.0,
    epochs: int = 1,
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
                gram: a matrix for what every linear layer sees, see gram.py;
                masks: a bit for every parameter, see masks.py for how they are trained
    model:      a folder, a Hub id, or base+adapter
    data:       a .jsonl, .json or text file, or a dataset of the Hub; see data.py
    samples:    how many are drawn, by the seed alone; each is cut to max_length tokens
    output:     the file; MODEL.KIND.safetensors in the working folder if not given
    labels:     of fisher: empirical (the tokens of the data), hard (the model's own last one)
    embeddings: of fisher: the input embeddings as well; of masks: these and the head
    base:       of masks: the model that this one was fine-tuned from
    sparsity, bias, rate, l1, epochs: of masks: the fraction that they begin with, their first
                logits, what gradients are multiplied by, the push towards fewer, how often all
                samples are gone through; 0 epochs leave them as they begin
    split:      of a dataset
    dtype:      the model is run in; if not given float32 on a CPU, and on a GPU as it is stored
    device:     auto (a GPU if there is one), cpu, cuda or cuda:1
    dry_run:    say what would be collected, and how large it is
    What is finished is not done again after a kill: layers of gram, and of fisher and masks the
    samples up to the last minute, or more where writing the sums takes long.
    Raises CollectError, CheckpointError or OutputError, naming what was found and the mend.
    """
    check_meant(kind, locals(), collect)
    check_choices(kind, labels, samples, max_length, base)
    if kind == "regmean_plusplus":
        raise CollectError(
            f"{kind} is collected of all models at once: mergekern.collect.collect_along()"
        )
    where = place_of(device)
    dtype = run_in(dtype, where)
    options: dict[str, Any] = {"seed": seed, "max_length": max_length, "dtype": dtype}
    if kind == "fisher":
        options |= {"labels": labels, "embeddings": embeddings}
    if kind == "masks":
        training = Training(sparsity, bias, rate, l1, epochs)
        options |= {"embeddings": embeddings, **asdict(training)}
    began = time.monotonic()
    with ExitStack() as stack:
        checkpoint = stack.enter_context(closing(open_model(model, cache)))
        origin = None
        if base is not None:
            origin = stack.enter_context(closing(open_model(base, cache, "base")))
        stack.enter_context(ambient.set_aside())
        texts = read_texts(data, split)
        drawn = draw(texts, tokenizer_of(checkpoint), samples, max_length, seed)
        network = Network(origin or checkpoint, where, torch_dtype(dtype))
        task = _Task(kind, checkpoint, origin, network, drawn, where, options)
        path = Path(
            f"{Path(checkpoint.label).name}.{kind}.safetensors" if output is None else output
        )
        question = question_of(kind, checkpoint, origin, texts, drawn, options)
        store = Store(path.expanduser(), question)
        size = samples, task.tokens, task.nbytes
        told = Collection(kind, path, str(model), *size, found=store.finished)
        if told.found:
            store.discard()
        if dry_run or told.found:
            return told
        nbytes = _collect(task, store, quiet)
        return replace(told, nbytes=nbytes, seconds=time.monotonic() - began)


def _collect(task: _Task, store: Store, quiet: bool) -> int:
    """Run it, and write the file. Returns its bytes."""
    store.open()
    with choose_showing(task.kind, quiet) as showing:
        parts, said = task.run(store, showing)
    about = {"kind": task.kind, "model": task.model.label, "files": input_files(task.model)}
    if task.base is not None:
        about |= {"base": task.base.label, "base_files": input_files(task.base)}
        task.base.verify_unchanged()
    task.model.verify_unchanged()
    return store.finish(parts, {**about, **said, "version": __version__})


def question_of(
    kind: Kind,
    model: Checkpoint,
    base: Checkpoint | None,
    texts: Texts,
    samples: Sequence[Sample],
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """All that the numbers depend on, but for the machine."""
    tokens = sum(len(sample.ids) for sample in samples)
    data = {**texts.origin, "samples": len(samples), "tokens": tokens}
    based = {} if base is None else {"base": identity_of(base)}
    made_from = {"identity": identity_of(model), **based}
    return {"kind": kind, **made_from, "data": data, "options": dict(options)}


def gram_bytes(network: Network) -> int:
    """Of all matrices, as if no two layers shared one."""
    return sum(4 * width**2 for width in map(inputs_of, linear_layers(network)))


def inputs_of(linear: Any) -> int:
    """Of a Linear, or of a Conv1D, which has no name for it."""
    return int(getattr(linear, "in_features", 0) or linear.weight.shape[0])


def open_model(model: str | Path, cache: str | Path | None, what: str = "model") -> Checkpoint:
    source = parse_source(model, what)
    lora = source.lora
    return open_checkpoint(
        source.where,
        revision=source.revision,
        label=source.label,
        lora=None if lora is None else lora.where,
        lora_revision=None if lora is None else lora.revision,
        cache=None if cache is None else Path(cache).expanduser(),
    )
