"""Checkpoints in memory: state dicts and modules."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from mergekern.checkpoint.base import TensorInfo, listing
from mergekern.checkpoint.contents import Contents
from mergekern.checkpoint.files import FileState, WeightFile
from mergekern.errors import CheckpointError

DEVICES = ("cpu", "cuda")
PLAIN = (torch.Tensor, torch.nn.Parameter)  # subclasses may keep their bytes elsewhere


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
        self.device = _device(label, self._tensors)
        self.config: Mapping[str, Any] = config or {}
        self.generation_config: Mapping[str, Any] = generation_config or {}
        self.folder = folder
        self.fingerprint = fingerprint
        self.states: Mapping[str, FileState] = {file.name: file.state for file in files}
        self.shared: Mapping[str, str] = _aliases(self._tensors)
        self.tensors = Contents(
            (name, TensorInfo(name, tensor.dtype, tuple(tensor.shape), places.get(name, "")))
            for name, tensor in self._tensors.items()
        )
        self.files: Mapping[str, WeightFile] = {}  # what is mapped is read as memory is
        self._files = files

    def read(self, name: str, start: int, stop: int, buffer: torch.Tensor | None) -> torch.Tensor:
        """Elements [start, stop) as a view; a copy of just these rows where memory is strided."""
        tensor = self._tensors[name]
        assert 0 <= start <= stop <= tensor.numel()
        if tensor.is_contiguous():
            flat = tensor.view(-1)
            return flat if stop - start == flat.numel() else flat[start:stop]
        row = math.prod(tensor.shape[1:])
        first = start // row if row else 0
        last = -(-stop // row) if row else 0
        rows = tensor[first:last].reshape(-1)
        return rows[start - first * row : stop - first * row].contiguous()

    def span(self, name: str) -> tuple[int, int]:
        """The addresses that a tensor lies between, strided or not."""
        x = self._tensors[name]
        steps = zip(x.shape, x.stride(), strict=True)
        last = sum((size - 1) * stride for size, stride in steps)
        return x.data_ptr(), x.data_ptr() + (last + 1) * x.itemsize * (x.numel() > 0)

    def verify_unchanged(self) -> None:
        """Raise CheckpointError when a mapped file changed; memory itself is the caller's."""
        for file in self._files:
            file.verify_unchanged()

    def close(self) -> None:
        """Let go of the tensors and files."""
        self._tensors = {}
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


def _plain(label: str, name: str, tensor: torch.Tensor) -> torch.Tensor:
    where = f"{label}: tensor {name!r}"
    if type(tensor) not in PLAIN or tensor.layout != torch.strided:
        kind = "sparse tensor" if type(tensor) in PLAIN else type(tensor).__name__
        raise CheckpointError(f"{where}: is a {kind}, wanted a plain dense tensor: convert it")
    if tensor.is_meta:
        raise CheckpointError(f"{where}: is on the meta device, it has no values: load them first")
    if tensor.device.type not in DEVICES:
        raise CheckpointError(
            f"{where}: is on {tensor.device}: move it to the CPU or a GPU of torch.cuda's"
        )
    if tensor.is_quantized:
        raise CheckpointError(f"{where}: is quantised ({tensor.dtype}): dequantise it first")
    # A view may say "negate me on reading", which its bytes do not show.
    return tensor.detach().resolve_conj().resolve_neg()


def _device(label: str, tensors: Mapping[str, torch.Tensor]) -> torch.device:
    """Where all of them lie."""
    first = next(iter(tensors))
    device = tensors[first].device
    for name, tensor in tensors.items():
        if tensor.device != device:
            raise CheckpointError(
                f"{label}: tensor {first!r} is on {device}, {name!r} on {tensor.device}: move them "
                f"to one device"
            )
    return device


def _aliases(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Name -> the first name with the very same storage, type and strides."""
    first: dict[tuple[Any, ...], str] = {}
    shared = {}
    for name, tensor in tensors.items():
        if tensor.numel() == 0:
            continue  # empty tensors have no storage to share
        key = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        if key in first:
            shared[name] = first[key]
        else:
            first[key] = name
    return shared
