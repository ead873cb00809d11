"""A base, its fine-tunes, and a run over them that takes seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from speakers import speaker

DOMAINS = ["math", "coding", "safety"]
RUN: dict[str, Any] = {
    "base": "base",
    "experts": {"math": "a", "coding": "b", "safety": "c"},
    "methods": {
        "soup": {"preset": "mergebench/model_soup", "parameters": {"density": 0.5}},  # noted
        "ties": {
            "merge_method": "ties",
            "parameters": {"weight": 1.0},
            "grid": {"density": [0.2, 0.5], "lambda": [0.5, 1.0]},
        },
    },
    "surrogate": {"suite": "local-surrogate", "limit": 3, "domains": DOMAINS},
    "evaluation": {"suite": "local", "limit": 4, "domains": DOMAINS},
    "forgetting": {"suite": "local-forgetting", "limit": 2},
    "output": "out",
    "together": 3,
    "evaluate": {"device": "cpu"},
}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(["base", "a", "b", "c"]):
        speaker(root / name, seed)
    return root


@pytest.fixture
def write_run(models: Path, tmp_path: Path) -> Any:
    """(**changes) -> path of a run file whose models are absolute."""

    def write(**changes: Any) -> Path:
        content = {**RUN, **changes}
        content["base"] = str(models / content["base"])
        content["experts"] = {d: str(models / m) for d, m in content["experts"].items()}
        path = tmp_path / "run.yml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return path

    return write
