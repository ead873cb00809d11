"""Which backend is chosen, and what is said where it cannot run."""

from __future__ import annotations

import pytest
import torch

from mergekern.backends import cuda
from mergekern.backends.choose import get_backend, place_of
from mergekern.errors import RecipeError

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@without_gpu
def test_the_cpu_where_there_is_nothing_else() -> None:
    assert get_backend().name == get_backend(device="cpu").name == "cpu"


@without_gpu
def test_a_gpu_that_is_not_there() -> None:
    with pytest.raises(RecipeError, match="device is 'cuda:1'; torch sees 0 GPUs"):
        get_backend(device="cuda:1")
    with pytest.raises(RecipeError, match="nothing merges on cuda:0 here: cuda: "):
        get_backend("cuda")


@without_gpu
def test_where_models_run() -> None:
    assert place_of("auto") == place_of("cpu") == "cpu"
    with pytest.raises(RecipeError, match="device is 'cuda:1'; torch sees 0 GPUs"):
        place_of("cuda:1")
    with pytest.raises(RecipeError, match="device is 'cudda'; did you mean 'cuda'"):
        place_of("cudda")


def test_kernels_that_were_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "is_built", lambda: False)
    with pytest.raises(RecipeError, match="cuda: mergekern was built without nvcc"):
        get_backend("cuda")


@pytest.mark.parametrize("name", ["auto", "cpu", "reference"])
def test_models_elsewhere(name: str) -> None:
    there = "cuda:0"
    with pytest.raises(RecipeError, match="the models lie on cuda:0 and were to be merged on cpu"):
        get_backend(name, device="cpu", held=there)


def test_triton_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mergekern.backends.triton.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r'pip install "mergekern\[triton\]"'):
        get_backend("triton")


@without_gpu
def test_triton_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from mergekern.kernels import launch

    assert get_backend("triton").name == "triton"  # interpreted
    monkeypatch.setattr(launch, "interpreted", lambda: False)
    with pytest.raises(RecipeError, match="triton: torch sees no GPU"):
        get_backend("triton")
