"""Folders to write merges into: where they are, and that they spoil nothing."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

from mergekern.checkpoint import Checkpoint
from mergekern.errors import OutputError
from mergekern.recipe import Source


def output_path(output: str | os.PathLike[str]) -> Path:
    """The folder to write, ~ expanded as it is for models."""
    if not isinstance(output, str | os.PathLike) or not os.fspath(output):
        raise OutputError(f"output is {output!r}; want the path of a folder")
    path = Path(os.path.expanduser(output))
    try:
        path.stat()
    except FileNotFoundError:
        pass  # it is made later
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{output}: cannot be written: {reason}; choose another") from error
    return path


def check_output(inputs: Iterable[tuple[Source, Checkpoint]], output: Path) -> None:
    """Raise OutputError when the output is an input's folder, lies in one or holds one."""
    target = output.resolve()
    for source, checkpoint in inputs:
        for folder, whole in _folders(source, checkpoint):
            if target == folder or (
                whole and (folder in target.parents or target in folder.parents)
            ):
                raise OutputError(
                    f"output {output} is or overlaps the folder of input {source.label} "
                    f"({folder}); choose another folder"
                )


def _folders(source: Source, checkpoint: Checkpoint) -> Iterator[tuple[Path, bool]]:
    """Where a model and its adapter lie, and whether all that is there is theirs: a file's
    neighbours are no part of the model, and only the very same folder is in danger."""
    given = [x.where for x in (source, source.lora) if x is not None and not x.in_memory]
    places = [
        path for path in (Path(os.path.expanduser(where)) for where in given) if path.exists()
    ]
    for path in places:
        yield (path.parent if path.is_file() else path).resolve(), path.is_dir()
    if checkpoint.folder is not None and not any(path.is_file() for path in places):
        yield checkpoint.folder.resolve(), True  # of the cache, or of the base an adapter names


def _expanded(where: str) -> Path:
    return Path(os.path.expanduser(where))


def check_apart(outputs: Iterable[Path]) -> None:
    """Raise OutputError when two merges would write into one folder, or one inside another's."""
    folders = sorted((output.resolve() for output in outputs), key=lambda folder: folder.parts)
    for one, other in pairwise(folders):  # what lies in a folder is sorted right behind it
        if one == other:
            raise OutputError(f"two merges would be written to {one}; give each its own folder")
        if one in other.parents:
            raise OutputError(f"output {other} lies inside output {one}; give folders side by side")
