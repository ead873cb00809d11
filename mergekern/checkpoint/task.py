"""One task's model in a container, as a checkpoint: what is unified is computed when it is read.

x = base + lambda * mask * vector          in fp32, or in fp64 where a part of it is
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from mergekern.arrays import HOST, Array, to_host
from mergekern.checkpoint.base import Checkpoint, TensorInfo
from mergekern.checkpoint.container import (
    MANIFEST,
    TASKS,
    UNIFIED,
    Base,
    Task,
    check_files,
    read_manifest,
)
from mergekern.checkpoint.contents import Contents
from mergekern.checkpoint.files import FileState, WeightFile
from mergekern.checkpoint.identity import identity_of
from mergekern.checkpoint.local import open_folder
from mergekern.checkpoint.placed import Placed
from mergekern.dtypes import UINT8, DType, work_dtype
from mergekern.errors import CheckpointError
from mergekern.packed import add_marked, packed_shape, read_packed

STRETCH = 1 << 17  # elements at a time: what a reader takes besides the buffer it fills
GIVE_IT = "give the base that it was merged with to `mergekern materialise --base`"
OWN = "task/"  # what files of the task's folder are called; those of the others: by their part


class TaskCheckpoint:
    """The model of one task: base + rescaler * mask * vector where it is unified, its own tensors
    otherwise, under the names and with the side files of the model that it was.

    A vector's dtype is that of results; see TensorInfo.native. Raises CheckpointError, naming the
    tensor, for parts that do not fit together.
    """

    on_disk = True
    placed: Placed | None = None
    device = HOST
    notes: tuple[str, ...] = ()

    def __init__(
        self,
        label: str,
        base: Checkpoint,
        unified: Checkpoint,
        own: Checkpoint,
        manifest: WeightFile,
        task: Task,
        rescaler: float,
    ) -> None:
        self.label = label
        self._base, self._unified, self._own = base, unified, own
        self._manifest, self._rescaler = manifest, rescaler
        kept = frozenset(task.own)
        infos = {**unified.tensors, **own.tensors}
        self._masked = {
            task.names.get(n, n): n for n in infos if n in own.tensors and n not in kept
        }
        self._kept = {task.names.get(n, n): n for n in infos if n in kept}
        self.tensors = Contents((name, self._info(name)) for name in (*self._masked, *self._kept))
        self.shared: Mapping[str, str] = {}
        self.config: Mapping[str, Any] = own.config
        self.generation_config: Mapping[str, Any] = {}
        self.folder = own.folder
        self.files: Mapping[str, WeightFile] = {OWN + name: f for name, f in own.files.items()}
        data = manifest.read_bytes(0, manifest.size, "settings")
        known = bool(base.fingerprint)
        self.fingerprint: Mapping[str, str] = (
            {manifest.name: sha256(data).hexdigest(), **_prefixed(self._parts, "fingerprint")}
            if known
            else {}
        )
        self.states: Mapping[str, FileState] = {
            manifest.name: manifest.state,
            **_prefixed(self._parts, "states"),
        }

    @property
    def _parts(self) -> dict[str, Checkpoint]:
        return {"base/": self._base, f"{UNIFIED}/": self._unified, OWN: self._own}

    def read(self, name: str, start: int, stop: int, buffer: np.ndarray | None) -> Array:
        """Elements [start, stop) as a view of the buffer's head; see Checkpoint.read."""
        if name in self._kept:
            return self._own.read(self._kept[name], start, stop, buffer)
        dtype = self.tensors[name].dtype
        nbytes = (stop - start) * dtype.itemsize
        buffer = np.empty(nbytes, UINT8) if buffer is None else buffer[:nbytes]
        out = buffer.view(dtype)
        for first in range(start, stop, STRETCH):
            last = min(first + STRETCH, stop)
            self._compute(self._masked[name], first, last, out[first - start : last - start])
        return out

    def _compute(self, name: str, start: int, stop: int, out: np.ndarray) -> None:
        base = to_host(self._base.read(name, start, stop, None))
        vector = to_host(self._unified.read(name, start, stop, None))
        packed, first = read_packed(self._own, name, start, stop)
        add_marked(base, vector, packed, first, self._rescaler, out)

    def _info(self, name: str) -> TensorInfo:
        if name in self._kept:
            info = self._own.tensors[self._kept[name]]
            return replace(info, name=name, file=OWN + info.file)
        stored = self._masked[name]
        vector = self._unified.tensors.get(stored)
        base = self._base.tensors.get(stored)
        mask = self._own.tensors[stored]
        where = f"{self.label}: tensor {stored}"
        if vector is None:
            raise CheckpointError(f"{where}: has a mask and is not unified: merge again")
        if (mask.dtype, mask.shape) != (UINT8, packed_shape(vector.numel)):
            raise CheckpointError(
                f"{where}: its mask is no bit for each of {vector.numel} elements"
            )
        if base is None or base.shape != vector.shape:
            found = "lacks it" if base is None else f"has shape {list(base.shape)}"
            raise CheckpointError(
                f"{where}: the base {self._base.label} {found}, want {list(vector.shape)}: "
                f"{GIVE_IT}"
            )
        work: DType = work_dtype([base.dtype, vector.dtype])
        behind = sum(each.nbytes_read for each in (base, vector, mask))
        return TensorInfo(name, work, vector.shape, native=vector.dtype, behind=behind)

    def verify_unchanged(self) -> None:
        """Raise CheckpointError when a file of any part is not what it was when opened."""
        for part in self._parts.values():
            part.verify_unchanged()
        self._manifest.verify_unchanged()

    def close(self) -> None:
        """Close the files of all parts."""
        for part in self._parts.values():
            part.close()
        self._manifest.close()


def open_task(
    folder: Path,
    task: str | None,
    label: str,
    open_base: Callable[[Base], Checkpoint],
    base: Base | None = None,
) -> TaskCheckpoint:
    """The model of a task in a container.

    base: in place of the one that the container names
    Raises CheckpointError for a task that it has not, naming the nearest, and for another base.
    """
    manifest = read_manifest(folder)
    if task is None or task not in manifest.tasks:
        raise CheckpointError(f"{folder}: {_unknown(task, folder, list(manifest.tasks))}")
    found, named = manifest.tasks[task], base or manifest.base
    if named is None:
        raise CheckpointError(f"{folder}: was merged with a base in memory: {GIVE_IT}")
    with ExitStack() as stack:

        def opened(part: Checkpoint) -> Checkpoint:
            stack.callback(part.close)
            return part

        places = {name: folder / name for name in (UNIFIED, f"{TASKS}/{task}")}
        unified, own = (opened(open_folder(str(p), p)) for p in places.values())
        for part, place, wanted in zip(
            (unified, own), places.values(), (manifest.unified, found.files), strict=True
        ):
            check_files(part, place, wanted)
        model = opened(_base(folder, named, open_base))
        if identity_of(model) != manifest.identity:
            raise CheckpointError(
                f"{folder}: was merged with another base than {named} is now: {GIVE_IT}"
            )
        rescaler: float = getattr(found.rescalers, manifest.rescaler)
        file = WeightFile(folder / MANIFEST, MANIFEST)
        stack.callback(file.close)
        made = TaskCheckpoint(label, model, unified, own, file, found, rescaler)
        stack.pop_all()
        return made


def _base(folder: Path, named: Base, open_base: Callable[[Base], Checkpoint]) -> Checkpoint:
    try:
        return open_base(named)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: its base cannot be read ({error}): {GIVE_IT}") from error


def _unknown(task: str | None, folder: Path, known: list[str]) -> str:
    listed = ", ".join(known)
    if task is None:
        return f"is a container of several models ({listed}): name one, as {folder}@{known[0]}"
    close = difflib.get_close_matches(task, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"has no task {task!r}{hint} (tasks: {listed})"


def _prefixed(parts: Mapping[str, Checkpoint], what: str) -> dict[str, Any]:
    return {
        prefix + name: value
        for prefix, part in parts.items()
        for name, value in getattr(part, what).items()
    }
