"""The index of a checkpoint in several files: which tensor lies in which shard."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath

from mergekern.checkpoint.base import listing
from mergekern.checkpoint.jsonfile import read_object
from mergekern.errors import CheckpointError


def read_index(path: Path) -> dict[str, str]:
    """The weight_map of an index: tensor -> shard, a path below the index's folder.

    Raises CheckpointError when it is no such map or leads out of the folder.
    """
    weight_map = read_object(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path}: wanted a weight_map from tensors to shards, found none")
    inside: set[str] = set()
    for name, shard in weight_map.items():
        if isinstance(shard, str) and (shard in inside or _stays_inside(shard)):
            inside.add(shard)
        else:
            raise CheckpointError(
                f"{path}: tensor {name!r} is said to be in {shard!r}; wanted a file of this folder"
            )
    return weight_map


def shard_names(path: Path, weight_map: Mapping[str, str]) -> list[str]:
    """The shards that an index names, in order. Raises CheckpointError when some are missing."""
    shards = sorted(set(weight_map.values()))
    missing = [shard for shard in shards if not os.path.exists(path.parent / shard)]
    if missing:
        raise CheckpointError(
            f"{path}: {len(missing)} of {len(shards)} shards are missing: {listing(missing)}; "
            f"download or copy them"
        )
    return shards


def check_index(
    path: Path, weight_map: Mapping[str, str], found: Mapping[str, Collection[str]]
) -> None:
    """Index and shards must name the same tensors. found: shard -> the tensors in it.

    Raises CheckpointError naming what the one has and the other has not: a tensor that only the
    shard knows would be lost in silence.
    """
    placed: dict[str, set[str]] = {shard: set() for shard in found}
    for name, shard in weight_map.items():
        placed[shard].add(name)
    for shard, names in found.items():
        absent = placed[shard].difference(names)
        if absent:
            raise CheckpointError(f"{path}: {shard} does not hold {listing(absent)}")
        unnamed = set(names) - placed[shard]
        if unnamed:
            raise CheckpointError(
                f"{path}: {shard} holds tensors that the index does not place there: "
                f"{listing(unnamed)}; write the index anew or take them out of the shard"
            )


def _stays_inside(shard: str) -> bool:
    parts = PurePosixPath(shard)
    plain = bool(shard) and "\0" not in shard and "\\" not in shard
    return plain and not parts.is_absolute() and ".." not in parts.parts
