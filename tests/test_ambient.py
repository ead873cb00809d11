"""Settings of torch's that hold where a merge is called, and are not to change or stop it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch

import mergekern

SETTINGS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "default device": lambda: torch.device("meta"),
    "inference mode": torch.inference_mode,
    "gradients": torch.enable_grad,
}
METHODS: dict[str, dict[str, Any]] = {
    "arcee_fusion": {},
    "ramplus_tl": {"epsilon": 1e-2},
    "nuslerp": {"nuslerp_flatten": False, "nuslerp_row_wise": True},
    "ties": {"density": 0.3},
}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("setting", SETTINGS)
def test_the_callers_settings_change_nothing(setting: str, method: str, threads: int) -> None:
    count = {"arcee_fusion": 1}.get(method, 2)
    models = [
        {"w": torch.randn(70, 1001, dtype=torch.float64).requires_grad_()} for _ in range(1 + count)
    ]
    given: dict[str, Any] = {"base": models[0], "models": models[1:], **METHODS[method]}
    want = mergekern.merge(method, **given, threads=threads)
    with SETTINGS[setting]():
        got = mergekern.merge(method, **given, threads=threads)
    assert isinstance(want, dict) and isinstance(got, dict)
    assert torch.equal(got["w"], want["w"]) and not got["w"].requires_grad


def test_functions_see_none_of_them() -> None:
    """With one thread they run in the caller's, with more in others."""
    seen = set()

    def where(base: torch.Tensor, experts: list[torch.Tensor]) -> torch.Tensor:
        seen.add((torch.get_default_device(), torch.is_autocast_enabled("cpu")))
        return base

    mergekern.method("where_it_runs")(where)
    models = [{"w": torch.randn(70, 1001)} for _ in range(2)]
    for threads in (1, 2):
        with torch.device("meta"), torch.autocast("cpu"):
            mergekern.merge("where_it_runs", base=models[0], models=models[1:], threads=threads)
    assert seen == {(torch.device("cpu"), False)}
