"""One thread for torch: its threads spin against ours, and the tests' own arithmetic is small.
Without a GPU, Triton's kernels are interpreted, which it must know when it is imported.
Fixtures: small models on disk, and undisturbed merges of them to compare with; methods that a test
defines are gone after it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from folders import METHODS, merge, write_models

from mergekern.methods import registry

torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True)
def table_of_methods() -> Iterator[None]:
    known = dict(registry._METHODS)
    yield
    registry._METHODS.clear()
    registry._METHODS.update(known)


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
