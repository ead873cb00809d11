"""What is evaluated: a folder, a Hub id, a recipe that is merged in memory, or a state dict.

Every subject has an identity, by which its finished tasks are found again: a hash of all that its
answers depend on. Of files that is what the lock file of a merge records (headers, sizes, times of
change) and the content of config and tokenizer; of a recipe the resolved plan and its inputs; of
tensors in memory their bytes.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from mergekern import jobs, recipe
from mergekern.backends.choose import get_backend
from mergekern.checkpoint import Checkpoint, open_checkpoint
from mergekern.checkpoint.lora import LoraCheckpoint
from mergekern.checkpoint.sidefiles import wanted, write_side_files
from mergekern.checkpoint.task import TaskCheckpoint
from mergekern.errors import CheckpointError, EvaluationError
from mergekern.evaluate.loading import from_folder, from_tensors
from mergekern.lazily import is_module, is_tensor, torch
from mergekern.lock import LOCK, input_files
from mergekern.options import Options

Loaded = tuple[Any, Any]  # transformers' model and tokenizer


@dataclass(frozen=True)
class Subject:
    """A model to evaluate.

    label:    how the user named it
    identity: sha256, equal for models that answer alike
    origin:   what results record of where it came from, plain data
    folder:   where it lies as transformers loads it; None in memory
    load:     (dtype, device) -> model and tokenizer
    """

    label: str
    identity: str
    origin: Mapping[str, Any]
    folder: Path | None
    load: Callable[[str, str], Loaded]

    @property
    def name(self) -> str:
        """In results: two models that are called alike stay apart."""
        return f"{self.label}@{self.identity[:12]}"


def subject_of(model: Any, *, like: str | Path | None = None, cache: Path | None = None) -> Subject:
    """The subject that a call or command line means.

    model: a folder, "org/name", "base+adapter", "container@task", a recipe (a file, YAML text, a
           mapping with merge_method), a module or a state dict
    like:  for tensors in memory: a folder or Hub id with their config and tokenizer
    cache: the folder that Hub models are downloaded to
    Raises CheckpointError, RecipeError or EvaluationError, from headers alone.
    """
    in_memory = is_module(model) or _is_state(model)
    if in_memory != (like is not None):
        found = "tensors in memory" if in_memory else repr(str(model))
        mend = (
            "give like=, a folder or Hub id with" if in_memory else "leave out like=, which gives"
        )
        raise EvaluationError(f"model is {found}: {mend} config and tokenizer")
    if in_memory:
        assert like is not None
        return _of_state(model.state_dict() if is_module(model) else model, like, cache)
    if not _is_recipe(model):
        return _of_model(str(model), cache)
    label = Path(model).stem if isinstance(model, (str, Path)) and "\n" not in str(model) else ""
    return _of_recipe(model, label or "recipe", cache)


def _of_model(model: str, cache: Path | None) -> Subject:
    source = recipe.parse_source(model, "model")
    if source.lora is None:
        checkpoint = open_checkpoint(source.where, revision=source.revision, cache=cache)
        checkpoint.close()
        folder = checkpoint.folder
        if folder is not None and not _has_changes(checkpoint, source.where):
            return _of_folder(model, checkpoint, folder)
    # A base with an adapter, a container's task, or a single file: its tensors as they are.
    content = {"merge_method": "passthrough", "models": [{"model": model}]}
    return _of_recipe(content, model, cache)


def _has_changes(checkpoint: Checkpoint, where: str) -> bool:
    """Whether transformers would not find the same in the folder."""
    computed = isinstance(checkpoint, (LoraCheckpoint, TaskCheckpoint))
    return computed or Path(where).expanduser().is_file()


def _is_state(model: Any) -> bool:
    return isinstance(model, Mapping) and any(is_tensor(value) for value in model.values())


def _is_recipe(model: Any) -> bool:
    if isinstance(model, Mapping) or hasattr(model, "model_dump"):
        return True
    if not isinstance(model, (str, Path)):
        raise EvaluationError(
            f"model is a {type(model).__name__}; want a folder, a Hub id, a recipe, a module or a "
            "state dict"
        )
    return "\n" in str(model) or str(model).endswith((".yml", ".yaml"))


def _of_folder(label: str, checkpoint: Checkpoint, folder: Path) -> Subject:
    if not checkpoint.config:
        raise CheckpointError(f"{label}: has no config.json, which says what to load it as")
    origin: dict[str, Any] = {"kind": "folder", "files": input_files(checkpoint)}
    lock = folder / LOCK
    if lock.is_file():
        # Merges made together may be equal in sizes and, to a tick of the clock, in times.
        origin["lock"] = json.loads(lock.read_text(encoding="utf-8"))
    identity = digest({**origin, "side_files": _side_files(folder)})

    def load(dtype: str, device: str) -> Loaded:
        return from_folder(folder, dtype, device)

    return Subject(label, identity, origin, folder, load)


def _of_recipe(what: Any, label: str, cache: Path | None) -> Subject:
    if recipe.has_stages(what):
        raise EvaluationError(
            f"{label}: has stages, which are merged into folders: merge it first, and evaluate the "
            "folder"
        )
    if recipe.has_grid(what):
        raise EvaluationError(
            f"{label}: has a grid, so it is many models: merge it, and evaluate each folder"
        )
    asked = recipe.read(what)
    with _job(asked, cache) as job:
        models = [
            {"model": source.label, "files": input_files(checkpoint)}
            for source, checkpoint in zip(asked.sources, job.checkpoints, strict=True)
        ]
        origin = {
            "kind": "recipe",
            "recipe": asked.to_dict(),
            "plan": job.plan.digest,
            "models": models,
        }
        donor = job.checkpoints[job.plan.donor]
        side = {} if donor.folder is None else _side_files(donor.folder)
        made = {name: _sha256(data or b"") for name, data in job.side_files.items()}
        if not donor.config:
            raise CheckpointError(f"{label}: {donor.label} has no config.json: say base_model")
        identity = digest({**origin, "side_files": side | made})

    def load(dtype: str, device: str) -> Loaded:
        with _job(asked, cache) as job, tempfile.TemporaryDirectory() as scratch:
            [state] = jobs.run([job], get_backend(device="cpu"), None, None)
            donor = job.checkpoints[job.plan.donor]
            folder = Path(scratch)
            write_side_files(donor, folder, job.plan.out_dtype, job.plan.config, job.side_files)
            return from_tensors(state, folder, dtype, device)

    return Subject(label, identity, origin, None, load)


@contextmanager
def _job(asked: recipe.Recipe, cache: Path | None) -> Iterator[jobs.Job]:
    with jobs.ready([asked], [None], Options(cache=cache)) as ready:
        yield ready[0]


def _of_state(state: Mapping[str, Any], like: str | Path, cache: Path | None) -> Subject:
    pattern = open_checkpoint(like, cache=cache)
    pattern.close()
    folder = pattern.folder
    if folder is None or not pattern.config:
        raise EvaluationError(f"like is {str(like)!r}, which has no config.json and tokenizer")
    with closing(open_checkpoint(state)):  # which checks that these are tensors
        hashes = {name: _of_tensor(tensor) for name, tensor in state.items()}
    origin = {"kind": "state dict", "like": str(like), "tensors": digest(hashes)}
    identity = digest({**origin, "side_files": _side_files(folder)})

    def load(dtype: str, device: str) -> Loaded:
        return from_tensors(state, folder, dtype, device)

    return Subject("state-dict", identity, origin, None, load)


def _of_tensor(tensor: Any) -> str:
    """What it is, and a hash of its bytes."""
    held = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    hashed = xxhash.xxh3_128_hexdigest(held.numpy().data)
    return f"{tensor.dtype} {list(tensor.shape)} {hashed}"


def _side_files(folder: Path) -> dict[str, str]:
    """Config, tokenizer and templates of a folder, by the hash of their content."""
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_file())
    return {name: _sha256((folder / name).read_bytes()) for name in names if wanted(name)}


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def digest(content: Any) -> str:
    """Of plain data: equal where the content is."""
    return _sha256(json.dumps(content, sort_keys=True, default=str).encode())
