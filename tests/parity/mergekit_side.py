"""mergekit's half of the comparison: many recipes in one process, in mergekit's own environment.

    .venv-parity/bin/python tests/parity/mergekit_side.py jobs.json results.json

jobs: [{recipe: YAML text, output: folder}]; results: per job the seconds it took and its error, ""
when it went well. A recipe of several documents goes through mergekit-multi's functions.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from mergekit.config import MergeConfiguration
from mergekit.io.tasks import LoaderCache
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from mergekit.plan import MergePlanner

SEED = 7
OPTIONS = MergeOptions(random_seed=SEED, quiet=True, write_model_card=False)


class Aliases(tuple[str, ...]):
    """A tuple that may stand to the right of `list +`."""

    def __radd__(self, names: list[str]) -> list[str]:
        return [*names, *self]


def mend_aliases() -> None:
    """0.1.5 adds a tuple to a list for optional weights with other names, and no BERT merges."""
    plan_tensor = MergePlanner.plan_tensor

    def mended(
        self: MergePlanner, weight: Any, weights_in: Any, models: Any, cfg_reader: Any
    ) -> None:
        for each in weights_in:
            if each.aliases:
                each.__dict__["aliases"] = Aliases(each.aliases)
        plan_tensor(self, weight, weights_in, models, cfg_reader)

    MergePlanner.plan_tensor = mended


def merge(recipe: str, output: str) -> None:
    documents = list(yaml.safe_load_all(recipe))
    if len(documents) == 1:
        run_merge(MergeConfiguration.model_validate(documents[0]), output, OPTIONS)
        return
    from mergekit.scripts import multimerge

    with tempfile.TemporaryDirectory() as folder:
        multi = Path(folder) / "recipe.yml"
        multi.write_text(recipe)
        stages = Path(folder) / "stages"
        arguments = [str(multi), "-I", str(stages), "--out-path", output]
        more = ["--random-seed", str(SEED), "--quiet", "--no-write-model-card"]
        multimerge.main.main(arguments + more, standalone_mode=False)


def main(jobs: Path, results: Path) -> None:
    torch.set_num_threads(1)
    logging.getLogger().setLevel(logging.ERROR)
    mend_aliases()
    found = []
    for job in json.loads(jobs.read_text()):
        started, error = time.perf_counter(), ""
        try:
            merge(job["recipe"], job["output"])
        except Exception as fault:
            error = f"{type(fault).__name__}: {' '.join(str(fault).split())}"
        found.append({"seconds": time.perf_counter() - started, "error": error})
        LoaderCache().loaders.clear()  # or every model of the run stays open
    results.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
