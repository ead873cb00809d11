"""Reading and writing weights and side files."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from mergekern.checkpoint import hub, local
from mergekern.checkpoint.adapter import CONFIG as ADAPTER_CONFIG
from mergekern.checkpoint.adapter import check_config, is_adapter, open_adapter
from mergekern.checkpoint.base import Checkpoint as Checkpoint
from mergekern.checkpoint.base import TensorInfo as TensorInfo
from mergekern.checkpoint.config import check_mergeable_config as check_mergeable_config
from mergekern.checkpoint.container import Base, is_container
from mergekern.checkpoint.jsonfile import read_object
from mergekern.checkpoint.lora import LoraCheckpoint
from mergekern.checkpoint.memory import MemoryCheckpoint, open_module
from mergekern.checkpoint.task import open_task
from mergekern.errors import CheckpointError
from mergekern.lazily import is_module, torch

Source: TypeAlias = "str | os.PathLike[str] | torch.nn.Module | Mapping[str, Any]"

# What PEFT puts into a module's names while its adapters are not merged.
PEFT_NAME = re.compile(r"(^|\.)(base_layer|lora_[AB]|lora_embedding_[AB]|original_module)(\.|$)")


def open_checkpoint(
    source: Source,
    *,
    revision: str | None = None,
    label: str | None = None,
    lora: str | os.PathLike[str] | None = None,
    lora_revision: str | None = None,
    cache: Path | None = None,
    base: Base | None = None,
) -> Checkpoint:
    """Open a model for reading: its headers are read and checked, its weights are not.

    source:    a folder, a .safetensors file, a Hub id ("org/name" or "org/name@revision"; a path
               of that name goes first), a module, or a state dict. A folder or Hub id that holds a
               LoRA adapter stands for it on the base that its config names
    revision:  branch, tag or commit of a Hub id; of a container, the task whose model is meant
    label:     what messages call it; by default the source as given, or the kind of object
    lora:      a folder or Hub id with a LoRA adapter, whose changes are read with the model's
               weights
    cache:     the folder that Hub models are downloaded to; huggingface_hub's own if not given
    base:      of a container, in place of the one that it names
    Raises CheckpointError, in one line that says what was looked for, found, and the mend.
    """
    if lora is not None:
        if not isinstance(lora, str | os.PathLike):
            kind = type(lora).__name__
            raise CheckpointError(
                f"cannot read an adapter from a {kind}; wanted a folder, a Hub id"
            )
        model = open_checkpoint(source, revision=revision, cache=cache, base=base)
        path = _locate(os.fspath(lora), lora_revision, cache, adapter=True)
        return _adapted(label or f"{model.label}+{os.fspath(lora)}", model, path, os.fspath(lora))
    if isinstance(source, str | os.PathLike):
        return _open_named(os.fspath(source), revision, label or os.fspath(source), cache, base)
    if revision is not None:
        raise CheckpointError(f"revision {revision!r} was given with a model that is in memory")
    if is_module(source):
        _check_merged(source.state_dict(), label or type(source).__name__)
        return open_module(label or type(source).__name__, source)
    if isinstance(source, Mapping):
        _check_merged(source, label or "state dict")
        return MemoryCheckpoint(label or "state dict", source)
    raise CheckpointError(
        f"cannot read a model from a {type(source).__name__}; wanted a folder, a .safetensors "
        f"file, a Hub id, a module or a state dict"
    )


def _open_named(
    name: str, revision: str | None, label: str, cache: Path | None, base: Base | None
) -> Checkpoint:
    folder = Path(os.path.expanduser(name))
    if is_container(folder):

        def open_base(named: Base) -> Checkpoint:
            return open_checkpoint(
                named.model,
                revision=named.revision,
                lora=named.lora,
                lora_revision=named.lora_revision,
                cache=cache,
            )

        return open_task(folder, revision, label, open_base, base)
    if base is not None:
        raise CheckpointError(
            f"{name}: is no container of several models, for which a base is given"
        )
    path = _locate(name, revision, cache, adapter=False)
    if (path / ADAPTER_CONFIG).exists() and is_adapter(os.listdir(path)):
        return _adapted(label, _base_of(path, name, cache), path, name)
    return local.open_local(label, path)


def _locate(name: str, revision: str | None, cache: Path | None, adapter: bool) -> Path:
    """The path itself, or the folder of the cache that a Hub id was fetched to."""
    path = Path(os.path.expanduser(name))
    if os.path.exists(path):  # where Path.exists would raise, as for a name too long, it is False
        if revision is not None:
            raise CheckpointError(f"{name}: is a local path, which has no revision {revision!r}")
        return path
    model = hub.parse_id(name, revision)
    if model is None:
        raise CheckpointError(
            f"{name}: no such file or folder (looked in {path.absolute().parent}), and a Hub id "
            f"would be org/name; check its spelling"
        )
    return hub.fetch(replace(model, cache=cache), adapter)


def _adapted(label: str, base: Checkpoint, folder: Path, name: str) -> Checkpoint:
    adapter = open_adapter(name, folder)
    try:
        return LoraCheckpoint(label, base, adapter)
    except CheckpointError:
        base.close()
        adapter.close()
        raise


def _base_of(folder: Path, name: str, cache: Path | None) -> Checkpoint:
    """The base that an adapter's config names, where it is to be had."""
    config = read_object(folder / ADAPTER_CONFIG, strict=False)
    check_config(config, folder / ADAPTER_CONFIG)
    given = config.get("base_model_name_or_path")
    mend = f"write the base before it: BASE+{name}"
    if not isinstance(given, str) or not given:
        raise CheckpointError(f"{name}: is a LoRA adapter and names no base; {mend}")
    try:
        return open_checkpoint(given, revision=config.get("revision"), cache=cache)
    except CheckpointError as error:
        raise CheckpointError(
            f"{name}: is a LoRA adapter, and its base_model_name_or_path cannot be read ({error}); "
            f"{mend}"
        ) from error


def _check_merged(state: Mapping[str, Any], label: str) -> None:
    """Raise CheckpointError for what PEFT has wrapped: its names are not the model's."""
    for name in state:
        if isinstance(name, str) and PEFT_NAME.search(name):
            raise CheckpointError(
                f"{label}: holds PEFT's layers ({name}): give what merge_and_unload() returns, or "
                f"the base with a folder of its save_pretrained() as BASE+ADAPTER"
            )
