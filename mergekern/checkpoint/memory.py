"""Checkpoints in memory: state dicts and modules."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from operator import attrgetter
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from mergekern.arrays import Array, flat
from mergekern.checkpoint.base import TensorInfo, listing
from mergekern.checkpoint.contents import Contents
from mergekern.checkpoint.files import FileState, WeightFile
from mergekern.checkpoint.placed import Placed
from mergekern.dtypes import dtype_name, of_torch, only_in_torch
from mergekern.errors import CheckpointError
from mergekern.lazily import torch

DEVICES = ("cpu", "cuda")
KEPT = 8  # models in memory of which it is remembered what their tensors are


class MemoryCheckpoint:
    """Tensors that lie in memory already; read() hands out views of them.

    Those of files that were mapped say so: places is tensor -> file, files are the open ones.
    Raises CheckpointError naming the entries that are no plain tensors, and tensors that lie on
    another device than the rest.
    """

    on_disk = False
    notes: tuple[str, ...] = ()

    def __init__(
        self,
        label: str,
        state: Mapping[str, Any],
        *,
        config: Mapping[str, Any] | None = None,
        generation_config: Mapping[str, Any] | None = None,
        folder: Path | None = None,
        places: Mapping[str, str] = MappingProxyType({}),
        fingerprint: Mapping[str, str] = MappingProxyType({}),
        files: Sequence[WeightFile] = (),
    ) -> None:
        self.label = label
        self._tensors = plain_tensors(label, state)
        self.device = str(_device(label, self._tensors))
        self.config: Mapping[str, Any] = config or {}
        self.generation_config: Mapping[str, Any] = generation_config or {}
        self.folder = folder
        self.fingerprint = fingerprint
        self.states: Mapping[str, FileState] = {file.name: file.state for file in files}
        self.tensors = _contents(self._tensors, places)
        self.files: Mapping[str, WeightFile] = {}  # what is mapped is read as memory is
        self._files = files
        placed = Placed(self._tensors.values())
        self.placed: Placed | None = placed
        self.shared: Mapping[str, str] = _aliases(self._tensors, placed)

    def read(self, name: str, start: int, stop: int, buffer: np.ndarray | None) -> Array:
        """Elements [start, stop) as a view; a copy of just these rows where memory is strided."""
        tensor = self._tensors[name].detach()
        assert 0 <= start <= stop <= tensor.numel()
        if tensor.is_contiguous():
            whole = flat(tensor)
            return whole if stop - start == len(whole) else whole[start:stop]
        row = math.prod(tensor.shape[1:])
        first = start // row if row else 0
        last = -(-stop // row) if row else 0
        rows = tensor[first:last].reshape(-1)
        return flat(rows[start - first * row : stop - first * row].contiguous())

    def verify_unchanged(self) -> None:
        """Raise CheckpointError when a mapped file changed; memory itself is the caller's."""
        for file in self._files:
            file.verify_unchanged()

    def close(self) -> None:
        """Let go of the tensors and files."""
        self._tensors.clear()
        for file in self._files:
            file.close()


def open_module(label: str, module: torch.nn.Module) -> MemoryCheckpoint:
    """A module's state dict, and its configs where it has them as transformers' models do."""
    config = _settings(module, "config", "to_dict")
    if config:
        # Models that were never saved do not name their class yet; other loaders go by it.
        config["architectures"] = config.get("architectures") or [type(module).__name__]
    generation = _settings(module, "generation_config", "to_diff_dict")
    return MemoryCheckpoint(label, module.state_dict(), config=config, generation_config=generation)


def _settings(module: torch.nn.Module, name: str, method: str) -> dict[str, Any]:
    """A config object of a module as plain data, {} where it has none."""
    to_plain = getattr(getattr(module, name, None), method, None)
    return dict(to_plain()) if callable(to_plain) else {}


def plain_tensors(label: str, state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The state dict as detached dense tensors; CheckpointError names what is none."""
    if not state:
        raise CheckpointError(f"{label}: holds no tensors")
    if set(map(type, state)) == {str} and _all_plain(state.values()):
        return dict(state)
    names = [name for name in state if not isinstance(name, str)]
    if names:
        raise CheckpointError(f"{label}: key {names[0]!r:.80} is not a tensor's name")
    others = [name for name, value in state.items() if not isinstance(value, torch.Tensor)]
    if others:
        kind = type(state[sorted(others)[0]]).__name__
        raise CheckpointError(
            f"{label}: holds entries that are not tensors: {listing(others)} (the first of type "
            f"{kind}); take them out, or give the state dict inside"
        )
    return {name: _plain(label, name, value) for name, value in state.items()}


def _all_plain(tensors: Collection[Any]) -> bool:
    """Whether _plain() would find nothing to say or to do, found without a step for each tensor."""
    if not set(map(type, tensors)) <= set(_plain_types()):
        return False
    devices, dtypes = (set(map(attrgetter(what), tensors)) for what in ("device", "dtype"))
    return (
        {device.type for device in devices} <= set(DEVICES)
        and set(map(attrgetter("layout"), tensors)) == {torch.strided}
        and not any(dtype.is_complex or only_in_torch(dtype) for dtype in dtypes)
        and not any(map(attrgetter("is_quantized"), tensors))
        and not any(map(torch.Tensor.is_neg, tensors))
    )


def _plain_types() -> tuple[type, ...]:
    """Subclasses may keep their bytes elsewhere."""
    return torch.Tensor, torch.nn.Parameter


def _plain(label: str, name: str, tensor: torch.Tensor) -> torch.Tensor:
    where = f"{label}: tensor {name!r}"
    plain = type(tensor) in _plain_types()
    if not plain or tensor.layout != torch.strided:
        kind = "sparse tensor" if plain else type(tensor).__name__
        raise CheckpointError(f"{where}: is a {kind}, wanted a plain dense tensor: convert it")
    if tensor.is_meta:
        raise CheckpointError(f"{where}: is on the meta device, it has no values: load them first")
    if tensor.device.type not in DEVICES:
        raise CheckpointError(
            f"{where}: is on {tensor.device}: move it to the CPU or a GPU of torch.cuda's"
        )
    if tensor.is_quantized:
        raise CheckpointError(f"{where}: is quantised ({tensor.dtype}): dequantise it first")
    if only_in_torch(tensor.dtype):
        raise CheckpointError(
            f"{where}: has dtype {dtype_name(tensor.dtype)}, which cannot be read: convert it to "
            f"one that safetensors files hold"
        )
    # A view may say "negate me on reading", which its bytes do not show.
    return tensor.resolve_conj().resolve_neg()


def _device(label: str, tensors: Mapping[str, torch.Tensor]) -> torch.device:
    """Where all of them lie."""
    devices = list(map(attrgetter("device"), tensors.values()))
    device = devices[0]
    if len(set(devices)) > 1:
        names = list(tensors)
        other = next(place for place, its in enumerate(devices) if its != device)
        raise CheckpointError(
            f"{label}: tensor {names[0]!r} is on {device}, {names[other]!r} on {devices[other]}: "
            f"move them to one device"
        )
    return device


def _contents(tensors: Mapping[str, torch.Tensor], places: Mapping[str, str]) -> Contents:
    """What the tensors are, and of those that were mapped, in which file."""
    values = tensors.values()
    dtypes, shapes = (tuple(map(attrgetter(what), values)) for what in ("dtype", "shape"))
    if not places:
        return _contents_in_memory(tuple(tensors), dtypes, shapes)
    return Contents(
        (name, TensorInfo(name, of_torch(dtype), tuple(shape), places.get(name, "")))
        for name, dtype, shape in zip(tensors, dtypes, shapes, strict=True)
    )


@lru_cache(maxsize=KEPT)
def _contents_in_memory(
    names: tuple[str, ...], dtypes: tuple[torch.dtype, ...], shapes: tuple[torch.Size, ...]
) -> Contents:
    """One for all models that look alike, and when they are merged again."""
    columns = zip(names, dtypes, map(tuple, shapes), strict=True)
    return Contents(
        (name, TensorInfo(name, of_torch(dtype), shape)) for name, dtype, shape in columns
    )


def _aliases(tensors: Mapping[str, torch.Tensor], placed: Placed) -> dict[str, str]:
    """Name -> the first name with the very same storage, type and strides."""
    first: dict[tuple[Any, ...], str] = {}
    shared: dict[str, str] = {}
    if len(np.unique(placed.begin)) == len(placed.begin):
        return shared
    for name, tensor in tensors.items():
        if tensor.numel() == 0:
            continue  # empty tensors have no storage to share
        key = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        if key in first:
            shared[name] = first[key]
        else:
            first[key] = name
    return shared
