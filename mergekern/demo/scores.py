"""Evaluate the demo's models; the scores of the cached ones are kept beside them."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mergekern.demo import data
from mergekern.demo.lab import Lab, write_text
from mergekern.evaluate import harness
from mergekern.evaluate.harness import Score, Scores, Tasks

PACKAGES = ("lm_eval", "torch", "transformers")


class Judge:
    """Scores models on a lab's test items; builds the tasks at the first model that needs them."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self._tasks: Tasks | None = None

    def score(self, model: Path) -> Scores:
        """Evaluate a model now. One thread: the models are so small that two would only wait."""
        with single_thread():
            if self._tasks is None:
                arrow = self.lab.folder / "arrow"
                self._tasks = harness.load_tasks(self.lab.data, data.DOMAINS, arrow)
            return harness.evaluate_model(model, self._tasks)

    def score_once(self, model: Path) -> Scores:
        """A lab model's scores, read from a file if the very same was evaluated before."""
        kept = self.lab.folder / "scores" / f"{self._digest(model)}.json"
        if kept.is_file():
            return {name: Score(**score) for name, score in json.loads(kept.read_text()).items()}
        scores = self.score(model)
        kept.parent.mkdir(exist_ok=True)
        write_text(kept, json.dumps({n: dataclasses.asdict(s) for n, s in scores.items()}))
        return scores

    def _digest(self, model: Path) -> str:
        """Of all that a score depends on: the model, the items, the tasks and who evaluates."""
        files = [
            *sorted(model.iterdir()),
            *sorted(self.lab.data.iterdir()),
            *harness.task_files().values(),
            Path(harness.__file__),
        ]
        digest = hashlib.sha256()
        for file in files:
            digest.update(hashlib.sha256(file.read_bytes()).digest())
        for package in PACKAGES:
            digest.update(importlib.metadata.version(package).encode())
        return digest.hexdigest()[:16]


@contextmanager
def single_thread() -> Iterator[None]:
    """Let torch use one thread, and give the caller's number back."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
