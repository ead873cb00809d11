"""A model of transformers whose weights come and go, read from a checkpoint part by part."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mergekern.arrays import as_tensor
from mergekern.checkpoint import Checkpoint
from mergekern.dtypes import to_torch
from mergekern.errors import CheckpointError, CollectError
from mergekern.lazily import torch


class Network:
    """The model of a checkpoint's config. Nothing of it has weights until they are asked for.

    model:  of transformers, in inference mode: no dropout
    dtype:  weights are loaded as; None: as they are stored
    Raises CollectError for a config that transformers makes no causal language model of.
    """

    def __init__(self, checkpoint: Checkpoint, device: str, dtype: torch.dtype | None) -> None:
        self._checkpoint = checkpoint
        self._device = device
        self._dtype = dtype
        self.model = _skeleton(_folder(checkpoint))
        self.model.eval().requires_grad_(False)
        for module in self.model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                module._buffers[name] = buffer.to(device)
        self._names: dict[int, list[str]] = {}
        self._owners: dict[int, list[tuple[torch.nn.Module, str]]] = {}
        for prefix, module in self.model.named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                full = f"{prefix}.{name}" if prefix else name
                self._names.setdefault(id(parameter), []).append(full)
                self._owners.setdefault(id(parameter), []).append((module, name))
        self._empty = {
            key: module._parameters[name] for key, ((module, name), *_) in self._owners.items()
        }
        prefix = str(getattr(self.model, "base_model_prefix", "")) + "."
        self._prefix = prefix if len(prefix) > 1 else ""

    def parameters_of(self, modules: Iterable[torch.nn.Module]) -> list[int]:
        """Keys of the parameters below some modules, each once."""
        held = {id(module) for each in modules for module in each.modules()}
        return [
            key
            for key, owners in self._owners.items()
            if any(id(module) in held for module, _ in owners)
        ]

    @contextmanager
    def reading(self, checkpoint: Checkpoint) -> Iterator[None]:
        """Meanwhile weights come from another checkpoint, and are called what it calls them."""
        before, self._checkpoint = self._checkpoint, checkpoint
        try:
            yield
        finally:
            self._checkpoint = before

    @property
    def keys(self) -> list[int]:
        return list(self._owners)

    def weight_of(self, module: torch.nn.Module) -> str:
        """What the checkpoint calls a module's weight."""
        owned = (key for key, owners in self._owners.items() if (module, "weight") in owners)
        return self.stored(next(owned))

    def stored(self, key: int) -> str:
        """What the checkpoint calls a parameter; CollectError where it has none of that name."""
        tensors = self._checkpoint.tensors
        for name in self._names[key]:
            for known in (name, name.removeprefix(self._prefix)):
                if known in tensors:
                    return known
        raise CollectError(
            f"{self._checkpoint.label}: {type(self.model).__name__} has a parameter "
            f"{self._names[key][0]}, and the checkpoint stores no tensor of that name: models "
            "whose layers are stored otherwise than transformers has them cannot be walked"
        )

    def load(self, keys: Iterable[int]) -> dict[str, torch.nn.Parameter]:
        """Read some parameters and put them in their places. Returns them by their stored names."""
        found = {}
        for key in keys:
            name = self.stored(key)
            info = self._checkpoint.tensors[name]
            empty = self._empty[key]
            assert empty is not None
            if tuple(empty.shape) != info.shape:
                raise CollectError(
                    f"{self._checkpoint.label}: tensor {name} has shape {list(info.shape)}, "
                    f"{type(self.model).__name__} wants {list(empty.shape)}"
                )
            held = as_tensor(self._checkpoint.read(name, 0, info.numel, None)).reshape(info.shape)
            wanted = self._dtype or (held.dtype if info.native is None else to_torch(info.native))
            found[name] = self._put(key, held.to(self._device, wanted))
        return found

    def unload(self, keys: Iterable[int]) -> None:
        """Let go of some parameters."""
        for key in keys:
            for module, name in self._owners[key]:
                module._parameters[name] = self._empty[key]

    def _put(self, key: int, tensor: torch.Tensor) -> torch.nn.Parameter:
        parameter = torch.nn.Parameter(tensor, requires_grad=False)
        for module, name in self._owners[key]:
            module._parameters[name] = parameter
        return parameter


def tokenizer_of(checkpoint: Checkpoint) -> Any:
    """Raises CheckpointError for a model without one that transformers can load."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(_folder(checkpoint))
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{checkpoint.label}: its tokenizer cannot be loaded by transformers: {reason:.300}"
        ) from error


def _folder(checkpoint: Checkpoint) -> Path:
    if checkpoint.folder is None or not checkpoint.config:
        raise CheckpointError(
            f"{checkpoint.label}: has no folder with a config.json and a tokenizer, by which its "
            "layers could be run"
        )
    return checkpoint.folder


def _skeleton(folder: Path) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(folder)
        with _weightless():
            return AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise CollectError(
            f"{folder}: transformers makes no causal language model of it: {reason:.300}"
        ) from error


@contextmanager
def _weightless() -> Iterator[None]:
    """Modules that are made meanwhile have parameters without memory, and buffers as they are."""
    module: Any = torch.nn.Module
    register = module.register_parameter

    def on_meta(self: Any, name: str, parameter: torch.nn.Parameter | None) -> None:
        if parameter is not None and parameter.device.type != "meta":
            parameter = torch.nn.Parameter(parameter.to("meta"), parameter.requires_grad)
        register(self, name, parameter)

    module.register_parameter = on_meta
    try:
        yield
    finally:
        module.register_parameter = register
