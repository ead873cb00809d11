"""Where statistics lie: parts as they are finished, in a folder beside the file, then the file.

math.fisher.safetensors.parts/   question.json: what is collected; part-*.safetensors, and what
                                 the next part begins with
math.fisher.safetensors          every tensor, and in the metadata what they were made from
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mergekern.checkpoint.base import TensorInfo
from mergekern.checkpoint.files import WeightFile, write_whole
from mergekern.checkpoint.header import Header, read_header
from mergekern.checkpoint.layout import FORMAT, one_file
from mergekern.checkpoint.provenance import KEY, provenance_in
from mergekern.dtypes import of_torch
from mergekern.errors import CollectError, OutputError
from mergekern.lazily import torch

QUESTION = "question.json"
KEEP_EVERY = 60.0  # seconds between writes of sums that grow
KEEP_SHARE = 0.05  # of the time that writing them may take


class Store:
    """The file that statistics go to, and its parts.

    question: plain data that the numbers depend on: parts of another question are not gone on with
    Raises OutputError for a place that is taken.
    """

    def __init__(self, path: Path, question: Mapping[str, Any]) -> None:
        if path.suffix != ".safetensors":
            raise OutputError(f"{path}: want a file named *.safetensors, as merges read them")
        self.path = path
        self.parts = path.with_name(path.name + ".parts")
        self._question = dict(question)
        self._due = time.monotonic() + KEEP_EVERY
        with _writing(path):
            there, folder_there = path.exists(), path.parent.is_dir()
        if there and not self.finished:
            raise OutputError(
                f"{path}: is there and holds something else: remove it, or give another --output"
            )
        if not folder_there:
            raise OutputError(f"{path}: its folder is not there: make it, or give another --output")
        known = self._known()
        if known is not None and known != self._question:
            raise OutputError(
                f"{self.parts}: holds what was begun with another model, other data or options: "
                "remove it, or give another --output"
            )

    @property
    def finished(self) -> bool:
        """True when the file is there and answers the question."""
        try:
            file = WeightFile(self.path, self.path.name)
            found = provenance_in(read_header(file).metadata)
            file.close()
        except Exception:  # of whatever kind the file is, it is not ours
            return False
        return found is not None and found.get("question") == self._question

    def open(self) -> None:
        """Make the folder of parts, unless it is there."""
        with _writing(self.parts):
            self.parts.mkdir(exist_ok=True)
            write_whole(self.parts / QUESTION, json.dumps(self._question).encode())

    def discard(self) -> None:
        """Remove parts that the finished file has no use for, left by a kill behind the last."""
        if self._known() == self._question:
            shutil.rmtree(self.parts)

    def part(self, name: str) -> Path:
        return self.parts / f"part-{name}.safetensors"

    def has(self, name: str) -> bool:
        return self.part(name).exists()

    def write(
        self, name: str, tensors: Mapping[str, torch.Tensor], notes: Mapping[str, Any]
    ) -> None:
        """A part, whole or not at all. Raises CollectError for NaN and Inf."""
        for tensor, values in tensors.items():
            if not bool(values.isfinite().all()):
                raise CollectError(
                    f"{tensor}: its statistics hold NaN or Inf: the model's own outputs do, or are "
                    f"too large for its dtype: remove {self.parts}, and give --dtype float32"
                )
        infos = [TensorInfo(n, of_torch(x.dtype), tuple(x.shape)) for n, x in tensors.items()]
        shard = one_file(infos, {**FORMAT, KEY: json.dumps(dict(notes))})
        path = self.part(name)
        unfinished = path.with_suffix(".tmp")
        with _writing(unfinished), open(unfinished, "wb") as out:
            out.write(shard.header)
            out.truncate(shard.size)
            for tensor, values in tensors.items():  # no second copy of all, as save_file makes it
                out.seek(shard.offsets[tensor])
                out.write(values.contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data)
        replace(unfinished, path)

    def keep(
        self, name: str, tensors: Mapping[str, torch.Tensor], notes: Mapping[str, Any]
    ) -> None:
        """write() of a part that goes on growing, unless it was written a short while ago."""
        began = time.monotonic()
        if began >= self._due:
            self.write(name, tensors, notes)
            now = time.monotonic()
            self._due = now + max(KEEP_EVERY, (now - began) / KEEP_SHARE)

    def notes(self, name: str) -> Mapping[str, Any]:
        """What was written with a part."""
        header = self._header(self.part(name))
        return provenance_in(header.metadata) or {}

    def read(self, name: str) -> dict[str, torch.Tensor]:
        from safetensors.torch import load_file

        return load_file(self.part(name))

    def finish(self, names: list[str], provenance: Mapping[str, Any]) -> int:
        """Join the parts into the file, a piece at a time, and remove them. Returns its bytes."""
        headers = {name: self._header(self.part(name)) for name in names}
        infos = [info for header in headers.values() for info in header.tensors.values()]
        if not infos:
            raise CollectError(f"{self.path}: there is nothing to collect of this model")
        said = json.dumps({**provenance, "question": self._question})
        shard = one_file(infos, {**FORMAT, KEY: said})
        unfinished = self.parts / "whole.tmp"
        with _writing(unfinished), open(unfinished, "wb") as out:
            out.write(shard.header)
            out.truncate(shard.size)
            for name, header in headers.items():
                with open(self.part(name), "rb") as part:
                    for info in header.tensors.values():
                        out.seek(shard.offsets[info.name])
                        _copy(part, out, info)
        replace(unfinished, self.path)
        shutil.rmtree(self.parts)
        return shard.size

    def _known(self) -> Any:
        try:
            return json.loads((self.parts / QUESTION).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def _header(self, path: Path) -> Header:
        file = WeightFile(path, path.name)
        try:
            return read_header(file)
        finally:
            file.close()


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Raise OutputError for what a place refuses."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written: {error.strerror}: make room, or give another --output"
        ) from error


def replace(unfinished: Path, path: Path) -> None:
    """Give a file its name once its bytes are on the disk."""
    with _writing(path):
        with open(unfinished, "rb") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)


def _copy(part: Any, out: Any, info: TensorInfo) -> None:
    part.seek(info.offset)
    left = info.nbytes
    while left:
        piece = part.read(min(left, 1 << 24))
        out.write(piece)
        left -= len(piece)
