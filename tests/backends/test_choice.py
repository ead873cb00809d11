"""Which backend a name gives, and what is said where it cannot run."""

from __future__ import annotations

import sys

import pytest

import mergekern
from mergekern.backends import get_backend
from mergekern.errors import RecipeError


def test_a_name_that_no_backend_has() -> None:
    with pytest.raises(RecipeError, match="'nope' is not one of"):
        get_backend("nope")


def test_triton_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(mergekern, "kernels", raising=False)
    for name in [name for name in sys.modules if name.startswith("mergekern.kernels")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(RecipeError, match=r'pip install "mergekern\[triton\]"'):
        get_backend("triton")


def test_triton_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    import torch

    from mergekern.backends.triton import is_available
    from mergekern.kernels import launch

    if torch.cuda.is_available():
        assert is_available() and get_backend("triton").name == "triton"
        return
    monkeypatch.setattr(launch, "interpreted", lambda: False)
    assert not is_available()
    with pytest.raises(RecipeError, match="needs a GPU"):
        get_backend("triton")
