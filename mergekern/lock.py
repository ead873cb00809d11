"""mergekern.lock.json: what the bytes of a merge were made from, to make or to trust them again."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mergekern.checkpoint import Checkpoint
from mergekern.errors import OutputError
from mergekern.plan import Plan
from mergekern.recipe import Recipe
from mergekern.version import __version__

LOCK = "mergekern.lock.json"


def lock(
    recipe: Recipe, plan: Plan, checkpoints: Sequence[Checkpoint], mismatch: str
) -> dict[str, Any]:
    """The lock file's content: recipe, inputs, counts, versions."""
    merged = sum(step.action == "merge" for step in plan.steps)
    return {
        "plan": plan.digest,
        "recipe": recipe.to_dict(),
        "mismatch": mismatch,
        "seed": plan.seed,
        "models": [
            {"model": source.label, "revision": source.revision, "files": input_files(checkpoint)}
            for source, checkpoint in zip(recipe.sources, checkpoints, strict=True)
        ],
        "tensors": {
            "merged": merged,
            "copied": len(plan.steps) - merged,
            "left_out": len(plan.dropped),
        },
        "versions": {
            "mergekern": __version__,
            "torch": version("torch"),
            "python": platform.python_version(),
        },
    }


def input_files(checkpoint: Checkpoint) -> dict[str, dict[str, Any]]:
    """Every weight file: the sha256 of its header, its size and time of change; {} in memory.

    Fine-tunes of one base have equal headers, so a header alone does not tell them apart. The state
    is that of the files that are read, which others may have taken the place of since.
    """
    return {
        name: {"header_sha256": checkpoint.fingerprint[name], **state._asdict()}
        for name, state in checkpoint.states.items()
    }


def check_unchanged(output: Path, plan: Plan, checkpoints: Sequence[Checkpoint]) -> None:
    """Raise OutputError when a finished merge of this plan was made from files changed since.

    A finished merge of the same plan is otherwise taken as done, and its weights would be stale.
    """
    try:
        found = json.loads((output / LOCK).read_text(encoding="utf-8"))
        same_plan = found["plan"] == plan.digest
        recorded = [model["files"] for model in found["models"]]
    except (OSError, ValueError, KeyError, TypeError):
        return  # not a finished merge; the engine decides what such a folder is
    if not same_plan:
        return
    for label, checkpoint, files in zip(plan.models, checkpoints, recorded, strict=False):
        if files != input_files(checkpoint):
            raise OutputError(
                f"{output}: holds a finished merge of this recipe, but the files of {label} have "
                "changed since; remove the folder to merge again, or choose another"
            )
