"""Planning a model of very many tensors: a base and four experts, from opening their folders to a
plan with its digest and the layout of its files. `python bench/planning.py`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from headers import write_headers
from timing import measure

import mergekern
from mergekern.card import model_card
from mergekern.checkpoint import open_checkpoint
from mergekern.checkpoint.layout import index_json
from mergekern.lock import lock
from mergekern.recipe import read

EXPERTS = 4
TENSORS_PER_SHARD = 125  # 160 shards of 20,000 tensors
MISMATCHED = "ties, one expert of another width left out"


def write_models(root: Path, tensors: int) -> list[str]:
    """The base, its experts, and last an expert whose projections have another width."""
    shards = max(1, tensors // TENSORS_PER_SHARD)
    names = ["base", *(f"expert{number}" for number in range(EXPERTS))]
    folders = [write_headers(root / name, tensors, shards) for name in names]
    return [*map(str, folders), str(write_headers(root / "wide", tensors, shards, width=1024))]


def cases(models: list[str]) -> dict[str, dict[str, Any]]:
    """Merges by name, as arguments of plan()."""
    base, *experts, wide = models
    ties = {"recipe_or_method": "ties", "base": base, "density": 0.2}
    recipe = {
        "merge_method": "dare_ties",
        "base_model": base,
        "models": [
            {"model": expert, "parameters": {"weight": 0.1 * place, "density": 0.2 * place}}
            for place, expert in enumerate(experts, 1)
        ],
    }
    mismatched = {"models": [*experts[:-1], wide], "mismatch": "skip-model"}
    return {
        "linear": {"recipe_or_method": "linear", "models": [base, *experts]},
        "ties": ties | {"models": experts},
        "ties, scope model": ties | {"models": experts, "scope": "model"},
        "recipe, weights and densities": {"recipe_or_method": yaml.safe_dump(recipe)},
        MISMATCHED: ties | mismatched,
    }


def planning(arguments: dict[str, Any], repetitions: int) -> dict[str, float]:
    """Seconds of planning, the least of several repetitions: by the clock, and of the processor."""
    times = measure(lambda: mergekern.plan(**arguments).digest, repetitions)
    return {"wall_s": times.best, "cpu_s": times.best_cpu}


def texts(models: list[str], repetitions: int) -> dict[str, float]:
    """Seconds that each text about a TIES merge takes, plan and opened models being there."""
    base, *experts, _ = models
    plan = mergekern.plan("ties", base=base, models=experts)
    recipe = read("ties", base=base, models=experts)
    opened = [open_checkpoint(folder) for folder in (base, *experts)]
    makers: dict[str, Callable[[], object]] = {
        "plan as a table": lambda: str(plan),
        "index": lambda: index_json(plan.shards),
        "model card": lambda: model_card(recipe, plan),
        "lock file": lambda: json.dumps(lock(recipe, plan, opened, "error"), indent=2),
    }
    assert len(plan.digest) == 64  # kept from here on, so that the lock file does not pay for it
    return {name: measure(make, repetitions).best for name, make in makers.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tensors", type=int, nargs="+", default=(5_000, 10_000, 20_000))
    parser.add_argument("--repetitions", type=int, default=5)
    arguments = parser.parse_args()
    for tensors in arguments.tensors:
        with tempfile.TemporaryDirectory(dir=Path.cwd()) as scratch:
            models = write_models(Path(scratch), tensors)
            for name, case in cases(models).items():
                found = planning(case, arguments.repetitions)
                each = 1e6 * found["cpu_s"] / tensors
                print(
                    f"{tensors:6d} tensors  {name:44s} {found['wall_s']:6.2f} s  "
                    f"cpu {found['cpu_s']:5.2f} s  {each:5.1f} us/tensor"
                )
            for name, seconds in texts(models, arguments.repetitions).items():
                print(f"{tensors:6d} tensors  {name:44s} {seconds:6.3f} s")


if __name__ == "__main__":
    main()
