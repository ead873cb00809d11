"""Gram matrices of what linear layers see, decoder layer by decoder layer.

    G = (1 / tokens) sum x^T x        x: [1, in], the input of a linear layer at one token

is what RegMean (arXiv:2212.09849) needs of a model. At any time there are the weights of one layer,
its matrices, and the hidden states of all samples, which lie on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mergekern.collect.data import Sample
from mergekern.collect.layers import Layers
from mergekern.collect.network import Network
from mergekern.collect.store import Store, replace
from mergekern.dtypes import dtype_name
from mergekern.errors import CollectError
from mergekern.lazily import torch


def collect_gram(
    network: Network,
    samples: Sequence[Sample],
    store: Store,
    device: str,
    show: Callable[[int], None],
) -> tuple[list[str], dict[str, Any]]:
    """Collect into parts of the store, one for each layer; those that are there are not made again.

    show: told of every sample that went through a layer
    Returns the parts' names, and what the file says of the matrices:
        shares:       weight -> the one whose input is the same, which has the matrix of both
        untransposed: weights that are [in, out]
        tokens:       by matrix, how many it is the mean of
    """
    layers = Layers(network)
    layers.open()
    names = [f"{number:05d}" for number in range(len(layers))]
    states = States(store.parts, [len(sample.ids) for sample in samples])
    first = states.layer
    show(first * len(samples))
    for number in range(first, len(layers)):
        with layers.held(number) as layer, Linears(network, layer) as linears:
            for place, output in through(layers, number, samples, states, device):
                linears.next_sample()
                states.write(place, output)
                show(1)
            store.write(names[number], linears.matrices(), linears.notes())
        states.advance()
    return names, said_of(store, names)


def through(
    layers: Layers, number: int, samples: Sequence[Sample], states: States, device: str
) -> Iterator[tuple[int, torch.Tensor]]:
    """What a layer, which is held, makes of the hidden states of each sample, and its number."""
    for place, sample in enumerate(samples):
        ids = torch.tensor([sample.ids], device=device)
        yield place, layers.run(number, ids, states.read(place, device))


def said_of(store: Store, names: Sequence[str]) -> dict[str, Any]:
    """What the parts of these names say of their matrices, together."""
    said: dict[str, Any] = {"shares": {}, "untransposed": [], "tokens": {}}
    for name in names:
        notes = store.notes(name)
        said["shares"] |= notes["shares"]
        said["untransposed"] += notes["untransposed"]
        said["tokens"] |= notes["tokens"]
    return said


def linear_layers(network: Network) -> list[torch.nn.Module]:
    """Those in the decoder layers."""
    return [m for layer in Layers(network).layers for m in layer.modules() if _is_linear(m)]


def _is_linear(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.Linear) or _is_untransposed(module)


def _is_untransposed(module: torch.nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)


class Linears:
    """Sums over what the linear layers of one decoder layer see: fp32 products, summed in fp64."""

    def __init__(self, network: Network, layer: torch.nn.Module) -> None:
        linears = [module for module in layer.modules() if _is_linear(module)]
        self._untransposed = []
        self._hooks = []
        for module in linears:
            name = network.weight_of(module)
            self._untransposed += [name] if _is_untransposed(module) else []
            self._hooks.append(module.register_forward_pre_hook(self._hook(name)))
        self._sums: dict[str, torch.Tensor] = {}
        self._tokens: dict[str, int] = {}
        self._leader: dict[str, str] = {}  # of those that see the same: the first
        self._seen: list[tuple[str, torch.Tensor]] = []  # in this sample

    def __enter__(self) -> Linears:
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._seen = []

    def next_sample(self) -> None:
        self._seen = []

    def matrices(self) -> Mapping[str, torch.Tensor]:
        return {name: (total / self._tokens[name]).float() for name, total in self._sums.items()}

    def notes(self) -> Mapping[str, Any]:
        shares = {name: leader for name, leader in self._leader.items() if name != leader}
        return {"shares": shares, "untransposed": self._untransposed, "tokens": self._tokens}

    def _hook(self, name: str) -> Callable[[torch.nn.Module, Any], None]:
        def see(_: torch.nn.Module, args: Any) -> None:
            (x,) = args
            leader = next((known for known, seen in self._seen if seen is x), name)
            if self._leader.setdefault(name, leader) != leader:
                raise CollectError(
                    f"{name}: sees the input of {leader} in one sample and that of "
                    f"{self._leader[name]} in another, so that they have no matrix in common"
                )
            if leader == name:
                self._seen.append((name, x))
                self._add(name, x.detach().reshape(-1, x.shape[-1]).float())

        return see

    def _add(self, name: str, x: torch.Tensor) -> None:
        product = x.T @ x
        if name not in self._sums:
            self._sums[name] = torch.zeros_like(product, dtype=torch.float64)
            self._tokens[name] = 0
        self._sums[name] += product
        self._tokens[name] += len(x)


class States:
    """The hidden states of all samples before one layer, in a file that is renamed when whole.

    layer: the first one whose output is not known
    """

    def __init__(self, folder: Path, lengths: Sequence[int]) -> None:
        self._folder = folder
        self._begins = np.cumsum([0, *lengths])
        there = sorted(folder.glob("hidden-*-*.npy"))
        for older in there[:-1]:
            older.unlink()
        self._path = there[-1] if there else None
        self.layer = int(self._path.stem.split("-")[1]) if self._path else 0
        self._given = np.load(self._path, mmap_mode="r") if self._path else None
        self._made: np.memmap[Any, Any] | None = None
        self._dtype = ""

    def read(self, place: int, device: str) -> torch.Tensor | None:
        """[1, tokens, width]; None before the first layer."""
        if self._given is None or self._path is None:
            return None
        rows = np.array(self._given[self._begins[place] : self._begins[place + 1]])
        dtype = getattr(torch, self._path.stem.split("-")[2])
        return torch.from_numpy(rows).view(dtype).unsqueeze(0).to(device)

    def write(self, place: int, hidden: torch.Tensor) -> None:
        held = hidden.detach()[0].cpu().contiguous()
        rows = held.view(torch.uint8).numpy()
        if self._made is None:
            shape = (int(self._begins[-1]), rows.shape[1])
            self._made = np.lib.format.open_memmap(
                self._folder / "hidden.tmp", "w+", np.dtype(np.uint8), shape
            )
            self._dtype = dtype_name(held.dtype)
        self._made[self._begins[place] : self._begins[place + 1]] = rows

    def advance(self) -> None:
        """What was written is what the next layer is given."""
        assert self._made is not None, "a layer without samples"
        self._made.flush()
        self.layer += 1
        path = self._folder / f"hidden-{self.layer:05d}-{self._dtype}.npy"
        replace(self._folder / "hidden.tmp", path)
        if self._path is not None:
            self._path.unlink()
        self._path, self._given, self._made = path, self._made, None
