"""All tensors of a model trimmed by common thresholds on a device, together: what the CPU makes of
them, where the guess holds and where it does not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from devices import PLAIN

import mergekern
from mergekern import MergeError, api
from mergekern.backends import brackets, ranked
from mergekern.backends.choose import get_backend

State = dict[str, torch.Tensor]
NUMELS = (30_001, 7, 40_003, 0, 1, 20_000)
CASES: list[tuple[str, dict[str, Any]]] = [
    ("ties", {"density": 0.3}),
    ("ties", {"density": [0.9, 0.01, 1.0], "ties": "keep"}),
    ("breadcrumbs", {"density": 0.8, "gamma": 0.05}),
]


def models(dtype: torch.dtype, numels: tuple[int, ...] = NUMELS) -> list[State]:
    g = torch.Generator().manual_seed(0)
    base = {f"w{i}": (0.02 * torch.randn(n, generator=g)).to(dtype) for i, n in enumerate(numels)}
    # Every tensor is tuned by as much as its place says: thresholds of their own would differ.
    spread = {name: 3e-4 * (1 + place) for place, name in enumerate(base)}
    experts = [
        {
            name: (x.float() + spread[name] * torch.randn(x.shape, generator=g)).to(dtype)
            for name, x in base.items()
        }
        for _ in range(3)
    ]
    return [base, *experts]


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Merges that name no backend run on a device; what is launched there."""
    found: list[Any] = []
    fuse = PLAIN._kernels.fuse
    monkeypatch.setattr(PLAIN._kernels, "fuse", lambda todo: (found.append(todo), fuse(todo))[1])
    monkeypatch.setattr(
        api, "get_backend", lambda name, *a, **o: PLAIN if name == "auto" else get_backend(name)
    )
    yield found


def check(method: str, states: list[State], **parameters: Any) -> None:
    base, *experts = states
    call = {"base": base, "models": experts, "scope": "model", **parameters}
    want = mergekern.merge(method, backend="cpu", **call)
    got = mergekern.merge(method, **call)
    assert all(torch.equal(got[name], x) for name, x in want.items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("method", "parameters"), CASES)
def test_as_the_cpu(method: str, parameters: dict[str, Any], dtype: torch.dtype, launches) -> None:
    check(method, models(dtype), **parameters)
    assert all(len(todo.segments) == len(NUMELS) - 1 for todo in launches)


@pytest.mark.parametrize("sigmas", [-3.0, 0.0])
def test_a_guess_that_fails(sigmas: float, launches, monkeypatch: pytest.MonkeyPatch) -> None:
    counted, real = [], ranked._by_counting
    monkeypatch.setattr(ranked, "_by_counting", lambda *a: (counted.append(a[2]), real(*a))[1])
    monkeypatch.setattr(brackets, "SIGMAS", sigmas)
    check("ties", models(torch.float32), density=0.3)
    assert [len(batch) for batch in counted] == [len(NUMELS) - 1]


def test_little_is_counted(launches) -> None:
    check("ties", models(torch.bfloat16, (300, 5, 1000)), density=0.2)


def test_a_grid_ranks_once(launches, monkeypatch: pytest.MonkeyPatch) -> None:
    guessed, real = [], ranked._guessed
    monkeypatch.setattr(ranked, "_guessed", lambda *a: (guessed.append(a[2]), real(*a))[1])
    base, *experts = models(torch.bfloat16)
    recipe = {
        "merge_method": "ties",
        "base_model": base,
        "models": [{"model": expert} for expert in experts],
        "parameters": {"density": 0.2, "scope": "model"},
        "grid": {"lambda": [0.5, 1.0]},
    }
    got = mergekern.merge_many(recipe)
    want = mergekern.merge_many(recipe, backend="cpu")
    for mine, theirs in zip(got, want, strict=True):
        assert all(torch.equal(mine[name], x) for name, x in theirs.items())
    assert len(guessed) == 1


def test_findings(launches) -> None:
    states = models(torch.bfloat16)
    states[2]["w2"][40_000] = torch.nan
    with pytest.raises(MergeError, match=r"w2: NaN or Inf in"):
        check("ties", states, density=0.3)
    states = models(torch.float32)
    states[1]["w5"][7] = 1e6
    base, *experts = states
    with pytest.raises(MergeError, match="w5: the result is too large for float16"):
        mergekern.merge(
            "ties", base=base, models=experts, density=0.3, scope="model", out_dtype="float16"
        )
