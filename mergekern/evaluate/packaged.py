"""The tasks that come with the package: lm-eval's YAML in tasks/, their items in items/.

A task asks the items that are reported, items/NAME.jsonl. Where items/NAME-validation.jsonl is
there too, the same task exists a second time as NAME_validation, which asks those: they are
disjoint from the others, and there to choose hyper-parameters by.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TASKS, ITEMS = HERE / "tasks", HERE / "items"
PREFIX, VALIDATION = "mergekern_", "_validation"


@dataclass(frozen=True)
class Packaged:
    """A task: its definition, and the items of one split of it."""

    file: Path
    items: Path
    split: str

    def config(self, name: str) -> dict[str, Any]:
        """As lm-eval takes it; it wants the paths of data to be absolute."""
        import yaml

        config: dict[str, Any] = yaml.safe_load(self.file.read_text(encoding="utf-8"))
        del config["test_split"]
        config |= {"task": name, f"{self.split}_split": self.split}
        config["dataset_kwargs"]["data_files"] = {self.split: str(self.items)}
        return config

    @property
    def digest(self) -> str:
        """Of its definition and items."""
        content = self.file.read_bytes() + self.items.read_bytes()
        return hashlib.sha256(content).hexdigest()


@functools.cache
def packaged() -> dict[str, Packaged]:
    """The tasks by lm-eval's name for them."""
    found = {}
    for file in sorted(TASKS.glob("*.yaml")):
        name = f"{PREFIX}{file.stem}"
        found[name] = Packaged(file, ITEMS / f"{file.stem}.jsonl", "test")
        validation = ITEMS / f"{file.stem}-validation.jsonl"
        if validation.is_file():
            found[name + VALIDATION] = Packaged(file, validation, "validation")
    return found
