"""A container of several tasks' models, as `emr` writes it: its parts, and what it says of them.

FOLDER/
  mergekern.emr.json          what it is: base, tasks, rescalers; written last
  mergekern.lock.json         what it was made from
  unified/                    the one task vector, tensor by tensor
  tasks/NAME/                 the packed masks of a task (U8, by the tensor's name), the tensors
                              that are its own, and its config and tokenizer
  sums/                       fp64 [chunks, 2 experts] by tensor: what rescalers are made of
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mergekern.checkpoint.base import Checkpoint
from mergekern.checkpoint.files import read_regular
from mergekern.errors import CheckpointError

MANIFEST = "mergekern.emr.json"
UNIFIED, TASKS, SUMS = PARTS = "unified", "tasks", "sums"


class _Plain(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Base(_Plain):
    """How the model is opened that all tasks' were fine-tuned from; see open_checkpoint()."""

    model: str
    revision: str | None = None
    lora: str | None = None
    lora_revision: str | None = None

    def __str__(self) -> str:
        model, lora = (
            name if revision is None else f"{name}@{revision}"
            for name, revision in ((self.model, self.revision), (self.lora, self.lora_revision))
        )
        return f"{model}" if lora is None else f"{model}+{lora}"


class Rescalers(_Plain):
    """Of one task, by every way to find them; see container.rescalers."""

    paper: float
    code: float


class Task(_Plain):
    """One of the models.

    model:     as the recipe named it
    names:     of its tensors, where they are not the base's: the base's name -> its own
    own:       tensors that are kept as they are; all others of its folder are masks
    files:     of its folder, name -> sha256 of the header
    """

    model: str
    rescalers: Rescalers
    names: dict[str, str]
    own: tuple[str, ...]
    files: dict[str, str]


class Manifest(_Plain):
    """What a container says of itself.

    base:     None for one in memory;  identity: of the base, see identity.identity_of()
    rescaler: which of the tasks' rescalers holds
    unified:  files of that folder, name -> sha256 of the header
    """

    format: Literal["mergekern.emr"]
    version: Literal[1]
    base: Base | None
    identity: str
    rescaler: Literal["paper", "code"]
    unified: dict[str, str]
    tasks: dict[str, Task] = Field(min_length=1)

    @property
    def text(self) -> str:
        return self.model_dump_json(indent=2) + "\n"


def is_container(folder: Path) -> bool:
    """Whether a folder is a container, finished or not."""
    return (folder / MANIFEST).exists() or (
        (folder / UNIFIED).is_dir() and (folder / TASKS).is_dir()
    )


def read_manifest(folder: Path) -> Manifest:
    """Raises CheckpointError for a container that is unfinished, damaged, or of another version."""
    path = folder / MANIFEST
    if not path.exists():
        raise CheckpointError(
            f"{folder}: has no {MANIFEST}, so it is not finished: run its merge again"
        )
    try:
        return Manifest.model_validate_json(read_regular(path), strict=True)
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(map(str, fault["loc"])) or "it"
        raise CheckpointError(
            f"{path}: {place}: {fault['msg']}; want what this version of mergekern writes: copy it "
            "again, or merge again"
        ) from error


def check_files(part: Checkpoint, folder: Path, wanted: Mapping[str, str]) -> None:
    """Raise CheckpointError unless the files of a part are those that were written."""
    for name in sorted({*wanted, *part.fingerprint}):
        if part.fingerprint.get(name) != wanted.get(name):
            raise CheckpointError(
                f"{folder / name}: is not the file that {MANIFEST} names (another header): copy "
                "the container again, or merge again"
            )
