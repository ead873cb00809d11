"""The decoder layers of a model one by one: what comes out of one layer goes into the next.

What else a layer is given (masks, positions) the model's own forward pass says, in which all other
layers hand on what they are given.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from mergekern.checkpoint import Checkpoint
from mergekern.collect.network import Network
from mergekern.errors import CollectError
from mergekern.lazily import torch


class _Done(Exception):
    """The layer that was to be run has been."""

    def __init__(self, output: Any) -> None:
        self.output = output


class Layers:
    """Opened, the model has all weights but those of its layers and its head.

    Raises CollectError for a model whose layers are not one list, which it runs through once.
    """

    def __init__(self, network: Network) -> None:
        self.network = network
        self.label = type(network.model).__name__
        self.layers = _decoder_layers(network.model)
        inside = {key for layer in self.layers for key in network.parameters_of([layer])}
        head = network.model.get_output_embeddings()
        apart = set() if head is None else set(network.parameters_of([head]))
        apart -= set(network.parameters_of([network.model.get_input_embeddings()]))
        self._body = network.model.base_model
        self.stem = [key for key in network.keys if key not in inside | apart]
        self._rest: tuple[Any, ...] | None = None  # what layers return beside hidden states

    def __len__(self) -> int:
        return len(self.layers)

    def open(self, stem: Checkpoint | None = None) -> None:
        """Load what lies outside the layers, and find out what a layer returns.

        stem: where it comes from, if not from where the layers do
        """
        with nullcontext() if stem is None else self.network.reading(stem):
            self.network.load(self.stem)
        with self.held(0):
            output = self._output(0, torch.zeros(1, 2, dtype=torch.int64), None)
        self._rest = output[1:] if isinstance(output, tuple) else None

    @contextmanager
    def held(self, number: int) -> Iterator[torch.nn.Module]:
        """One layer with its weights."""
        keys = self.network.parameters_of([self.layers[number]])
        self.network.load(keys)
        try:
            yield self.layers[number]
        finally:
            self.network.unload(keys)

    def run(self, number: int, ids: torch.Tensor, hidden: torch.Tensor | None) -> torch.Tensor:
        """What a layer, which is held, makes of hidden states [1, tokens, width].

        ids: [1, tokens];  hidden: None for the first layer, which is given the embeddings
        """
        output = self._output(number, ids, hidden)
        found = output[0] if isinstance(output, tuple) else output
        assert isinstance(found, torch.Tensor), f"{self.label}: a layer returns {type(output)}"
        return found

    def _output(self, number: int, ids: torch.Tensor, hidden: torch.Tensor | None) -> Any:
        layer = self.layers[number]

        def given(_: Any, args: Any, named: Any) -> tuple[Any, Any]:
            if hidden is None:
                return args, named
            if args:
                return (hidden, *args[1:]), named
            return args, {**named, "hidden_states": hidden}

        def done(_: Any, args: Any, output: Any) -> None:
            raise _Done(output)

        hooks = [
            layer.register_forward_pre_hook(given, with_kwargs=True),
            layer.register_forward_hook(done),
        ]
        try:
            with self._handing_on(number), torch.no_grad():
                self._body(input_ids=ids, use_cache=False)
        except _Done as found:
            return found.output
        finally:
            for hook in hooks:
                hook.remove()
        raise CollectError(f"{self.label}: its forward pass does not run through layer {number}")

    @contextmanager
    def _handing_on(self, number: int) -> Iterator[None]:
        """The layers before one return what they are given."""
        rest = self._rest

        def forward(*args: Any, **named: Any) -> Any:
            hidden = args[0] if args else named["hidden_states"]
            return hidden if rest is None else (hidden, *rest)

        before: list[Any] = list(self.layers[:number])
        for layer in before:
            layer.forward = forward
        try:
            yield
        finally:
            for layer in before:
                del layer.forward


def _decoder_layers(model: Any) -> Any:
    """The one list of as many modules as the config says that there are layers."""
    depth = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == depth
    }
    outer = {
        name: module
        for name, module in found.items()
        if not any(name.startswith(f"{other}.") for other in found)
    }
    if len(outer) != 1 or getattr(model.config, "is_encoder_decoder", False):
        lists = ", ".join(outer) or "none"
        raise CollectError(
            f"{type(model).__name__}: cannot be walked layer by layer: want one list of {depth} "
            f"decoder layers, as Llama's model.layers; found {lists}"
        )
    return next(iter(outer.values()))
