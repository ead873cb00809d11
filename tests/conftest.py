"""One thread for torch: its threads spin against ours, and the tests' own arithmetic is small.
Without a GPU, Triton's kernels are interpreted, which it must know when it is imported.
Fixtures: small models on disk, and undisturbed merges of them to compare with."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from folders import METHODS, merge, write_models

torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def wanted(tmp_path_factory: pytest.TempPathFactory, models: list[Path]) -> dict[str, Path]:
    """Undisturbed merges, by the name of METHODS."""
    root = tmp_path_factory.mktemp("wanted")
    for name in METHODS:
        merge(models, root / name, name)
    return {name: root / name for name in METHODS}
