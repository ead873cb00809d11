"""Gram matrices along a merge: RegMean++ (arXiv:2508.03121), layer by layer over all models.

Of layer l, model k's matrices are of its own layer l, run on what the merged layers 0 to l - 1 make
of its data. Then layer l is merged by regmean, and all data go through that.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mergekern import ambient
from mergekern.backends.choose import place_of
from mergekern.checkpoint import Checkpoint
from mergekern.checkpoint.identity import identity_of
from mergekern.collect.blending import Blend, Grams, Parameters
from mergekern.collect.choices import Kind, check_choices, run_in, torch_dtype
from mergekern.collect.data import Sample, Texts, draw, read_texts
from mergekern.collect.gram import Linears, States, said_of, through
from mergekern.collect.layers import Layers
from mergekern.collect.network import Network, tokenizer_of
from mergekern.collect.run import Collection, gram_bytes, open_model, question_of
from mergekern.collect.showing import choose_showing
from mergekern.collect.store import Store
from mergekern.errors import CollectError, OutputError
from mergekern.lock import input_files
from mergekern.methods import get_method
from mergekern.spec import Rest, Singular
from mergekern.version import __version__

KIND: Kind = "regmean_plusplus"


@dataclass(frozen=True)
class Stream:
    """One expert, its data, and where its matrices go."""

    expert: Checkpoint
    texts: Texts
    samples: Sequence[Sample]
    store: Store
    told: Collection

    @cached_property
    def states(self) -> States:
        """Of the samples, on their way through merged layers; the store is open."""
        return States(self.store.parts, [len(sample.ids) for sample in self.samples])

    def see(self, layers: Layers, number: int, device: str) -> None:
        """Write the matrices of the expert's own layer, run on the samples as they stand."""
        network, name = layers.network, part_of(number)
        with (
            network.reading(self.expert),
            layers.held(number) as layer,
            Linears(network, layer) as linears,
        ):
            for _ in through(layers, number, self.samples, self.states, device):
                linears.next_sample()
            self.store.write(name, linears.matrices(), linears.notes())

    def advance(self, layers: Layers, number: int, device: str) -> None:
        """Send the samples through a layer, which is held."""
        for place, output in through(layers, number, self.samples, self.states, device):
            self.states.write(place, output)
        self.states.advance()

    def grams(self, number: int) -> Grams:
        name = part_of(number)
        return Grams(self.store.read(name), self.store.notes(name))

    def finish(self, depth: int) -> Collection:
        """Join its parts to the file."""
        names = [part_of(number) for number in range(depth)]
        self.expert.verify_unchanged()
        about = {"kind": KIND, "model": self.expert.label, "files": input_files(self.expert)}
        said = said_of(self.store, names)
        nbytes = self.store.finish(names, {**about, **said, "version": __version__})
        return replace(self.told, nbytes=nbytes)


def collect_along(
    models: Sequence[str | Path],
    data: Sequence[str | Path],
    *,
    base: str | Path | None = None,
    weight: float | Sequence[float] = 1.0,
    reduction: float = 0.9,
    singular: Singular = "error",
    rest: Rest = "vocabulary",
    samples: int = 1000,
    output: str | Path | None = None,
    max_length: int = 2048,
    seed: int = 0,
    split: str = "train",
    dtype: str | None = None,
    device: str = "auto",
    cache: str | Path | None = None,
    dry_run: bool = False,
    quiet: bool = True,
) -> list[Collection]:
    """Collect what regmean_plusplus needs of models that are to be merged: a file for each.

    models, data: as many; the order is that of the merge
    base, weight, reduction, singular, rest: of the merge, see regmean_plusplus
    output:  a folder, the working folder if not given, for MODEL.regmean_plusplus.safetensors
    The others are those of collect(). After a kill, layers that are finished are not run again.
    Raises CollectError, CheckpointError, OutputError, and what merges raise.
    """
    parameters = _parameters(models, data, weight, reduction, singular, rest)
    check_choices(KIND, "empirical", samples, max_length)
    began, where = time.monotonic(), place_of(device)
    with ExitStack() as stack, ambient.set_aside():

        def opened(model: str | Path) -> Checkpoint:
            return stack.enter_context(closing(open_model(model, cache)))

        experts = [opened(model) for model in models]
        donor = None if base is None else opened(base)
        texts = [read_texts(each, split) for each in data]
        drawn = [
            draw(given, tokenizer_of(expert), samples, max_length, seed)
            for given, expert in zip(texts, experts, strict=True)
        ]
        dtype = run_in(dtype, where)
        network = Network(donor or experts[0], where, torch_dtype(dtype))
        options = {"seed": seed, "max_length": max_length, "dtype": dtype}
        along: dict[str, Any] = {"base": None if donor is None else identity_of(donor)}
        along["merge"] = parameters.to_dict()
        streams = _streams(experts, texts, drawn, options, along, network, Path(output or ""))
        if dry_run or all(stream.told.found for stream in streams):
            return [stream.told for stream in streams]
        blend = Blend(network, experts, donor, parameters)
        found = _collect(streams, network, blend, where, quiet)
        seconds = time.monotonic() - began
        return [each if each.found else replace(each, seconds=seconds) for each in found]


def part_of(number: int) -> str:
    """What a layer's part of the store is called."""
    return f"{number:05d}"


def _parameters(
    models: Sequence[str | Path],
    data: Sequence[str | Path],
    weight: float | Sequence[float],
    reduction: float,
    singular: Singular,
    rest: Rest,
) -> Parameters:
    """Those of the merge, checked as its method checks them."""
    if not models or len(models) != len(data):
        raise CollectError(
            f"{KIND} is given {len(models)} models and {len(data)} data; want the data of each"
        )
    weights = tuple(weight) if isinstance(weight, Iterable) else (weight,) * len(models)
    if len(weights) != len(models):
        raise CollectError(f"weight has {len(weights)} values for {len(models)} models")
    method = get_method(KIND)
    given = {"reduction": reduction, "singular": singular, "rest": rest}
    parsed = {name: method.parameter(name).parse(value) for name, value in given.items()}
    weights = tuple(method.parameter("weight").parse(each) for each in weights)
    method.spec({"weight": weights, **parsed})
    return Parameters(weights, **parsed)


def _streams(
    experts: Sequence[Checkpoint],
    texts: Sequence[Texts],
    drawn: Sequence[Sequence[Sample]],
    options: dict[str, Any],
    along: dict[str, Any],
    network: Network,
    folder: Path,
) -> list[Stream]:
    """Of each expert. What the others are, and the merge, is part of each one's question."""
    questions = [
        question_of(KIND, expert, None, given, mine, options)
        for expert, given, mine in zip(experts, texts, drawn, strict=True)
    ]
    along["models"] = [question["identity"] for question in questions]
    along["data"] = [question["data"] for question in questions]
    names = [Path(expert.label).name for expert in experts]
    if len(set(names)) < len(names):
        raise CollectError(f"{KIND}: two models end in one name ({', '.join(names)}): rename one")
    nbytes, streams = gram_bytes(network), []
    for name, expert, given, mine, question in zip(
        names, experts, texts, drawn, questions, strict=True
    ):
        path = folder / f"{name}.{KIND}.safetensors"
        store = Store(path.expanduser(), {**question, "along": along})
        tokens = sum(len(sample.ids) for sample in mine)
        of = KIND, path, expert.label, len(mine), tokens, nbytes
        streams.append(Stream(expert, given, mine, store, Collection(*of, found=store.finished)))
    return streams


def _collect(
    streams: Sequence[Stream], network: Network, blend: Blend, device: str, quiet: bool
) -> list[Collection]:
    """Run what is not finished. Files are written when all parts are, so that where one is there,
    all parts of the others are, too."""
    layers = Layers(network)
    _check_parts(streams, len(layers))
    if not any(stream.told.found for stream in streams):
        for stream in streams:
            stream.store.open()
        with choose_showing(KIND, quiet) as showing:
            showing.start(2 * len(layers) * len(streams), "models through layers")
            _through_layers(streams, layers, blend, device, showing.advance)
    return [each.told if each.told.found else each.finish(len(layers)) for each in streams]


def _check_parts(streams: Sequence[Stream], depth: int) -> None:
    """Raise OutputError where a file is finished and others cannot be made without a run of all."""
    found = [str(stream.store.path) for stream in streams if stream.told.found]
    for stream in streams if found else ():
        if not (stream.told.found or stream.store.has(part_of(depth - 1))):
            raise OutputError(
                f"{stream.store.path}: is gone, and what is collected along a merge is collected "
                f"of all models at once: remove {', '.join(found)}, too"
            )


def _through_layers(
    streams: Sequence[Stream],
    layers: Layers,
    blend: Blend,
    device: str,
    show: Callable[[int], None],
) -> None:
    layers.open(blend.merged(layers.stem))
    first = min(stream.states.layer for stream in streams)
    show(2 * first * len(streams))
    for number in range(first, len(layers)):
        for stream in streams:
            if not stream.store.has(part_of(number)):
                stream.see(layers, number, device)
            show(1)
        if number + 1 == len(layers):
            return
        keys = layers.network.parameters_of([layers.layers[number]])
        merged = blend.merged(keys, [stream.grams(number) for stream in streams])
        with layers.network.reading(merged), layers.held(number):
            for stream in streams:
                if stream.states.layer == number:
                    stream.advance(layers, number, device)
                show(1)
