"""Methods that a test defines are gone after it: others look at the table."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mergekern.methods import registry


@pytest.fixture(autouse=True)
def table() -> Iterator[None]:
    known = dict(registry._METHODS)
    yield
    registry._METHODS.clear()
    registry._METHODS.update(known)
