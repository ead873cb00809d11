"""Methods that merge by lengths and angles, against their formulas written out on whole vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from folders import load, write_model

import mergekern
from mergekern.backends.reference import ReferenceBackend
from mergekern.errors import MergeError, NonFiniteError

State = dict[str, torch.Tensor]
Vectors = list[np.ndarray]
SHAPES = {"a": (37, 11), "b": (5,), "one": (1,), "c": (130, 1033), "empty": (0, 3), "scalar": ()}
SPREADS = (0.01, 0.3, 30.0)  # of models around the base: next to collinear, apart, unrelated


def states(spread: float, count: int = 4, dtype: torch.dtype = torch.float64) -> list[State]:
    g = torch.Generator().manual_seed(0)
    found = [{n: torch.randn(s, generator=g).to(dtype) for n, s in SHAPES.items()}]
    for _ in range(count - 1):
        noise = {n: spread * torch.randn(s, generator=g) for n, s in SHAPES.items()}
        found.append({n: (x + noise[n]).to(dtype) for n, x in found[0].items()})
    return found


def arc(v: Vectors, t: float, straight: float) -> np.ndarray:
    a, b = v
    c = float(np.clip(a @ b / np.linalg.norm(a) / np.linalg.norm(b), -1, 1))
    if abs(c) > straight:
        return (1 - t) * a + t * b
    theta = np.arccos(c)
    return (np.sin((1 - t) * theta) * a + np.sin(t * theta) * b) / np.sin(theta)


def slerp(v: Vectors) -> np.ndarray:
    return arc(v[:2], 0.3, 0.9995)


def nuslerp(v: Vectors) -> np.ndarray:
    return arc(v[:2], 2.0 / 2.5, 1 - 1e-15)


def multislerp(v: Vectors) -> np.ndarray:
    """With the tangent plane that mergekit goes by, and a sum where it finds no direction."""
    w, eps = np.array([0.5, 2.0, 1.5][: len(v)]), 0.05
    w = w / w.sum()
    r = np.array([np.linalg.norm(x) for x in v])
    units = [x / (n + eps) for x, n in zip(v, r, strict=True)]
    m = sum(p * u for p, u in zip(w, units, strict=True))
    if np.linalg.norm(m) < eps:
        return sum(p * x for p, x in zip(w, v, strict=True))
    m = m / np.linalg.norm(m)
    tangents = [u - (u @ m) * m for u in units]
    tau = sum(p * u for p, u in zip(w, tangents, strict=True))
    s = np.linalg.norm(tau) + eps
    return (m * np.cos(s) + tau * np.sin(s) / s) * (w @ r)


def karcher(v: Vectors, max_iter: int = 10, tol: float = 1e-5) -> np.ndarray:
    r = [np.linalg.norm(x) for x in v]
    units = [x / n for x, n in zip(v, r, strict=True) if n > tol]
    mean = sum(units) / len(units)
    mean = mean / np.linalg.norm(mean)
    for _ in range(max_iter):
        step = np.zeros_like(mean)
        for u in units:
            c = float(np.clip(u @ mean, -1, 1))
            theta = np.arccos(c)
            if theta >= tol:
                step += theta / np.sin(theta) * (u - c * mean) / len(units)
        size = np.linalg.norm(step)
        if size < tol:
            break
        mean = np.cos(size) * mean + np.sin(size) * step / size
        mean = mean / np.linalg.norm(mean)
    return mean * np.mean(r)


def model_stock(v: Vectors) -> np.ndarray:
    n = len(v)
    cosines = [
        a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-6)
        for i, a in enumerate(v)
        for b in v[:i]
    ]
    c = float(np.mean(cosines))
    return n * c / (1 + (n - 1) * c) * sum(v) / n


CASES: dict[str, tuple[Any, str, str, dict[str, Any]]] = {
    # formula; of weights or deltas; numbers of the models; parameters
    "slerp": (slerp, "base first", "01", {"t": 0.3}),
    "nuslerp": (nuslerp, "weights", "12", {"weight": [0.5, 2.0]}),
    "nuslerp of deltas": (nuslerp, "deltas", "12", {"weight": [0.5, 2.0]}),
    "multislerp": (multislerp, "weights", "123", {"weight": [0.5, 2, 1.5], "eps": 0.05}),
    "multislerp of deltas": (multislerp, "deltas", "123", {"weight": [0.5, 2, 1.5], "eps": 0.05}),
    "karcher": (karcher, "weights", "123", {}),
    "model_stock": (model_stock, "deltas", "123", {}),
}


def call(name: str, models: list[State] | list[Path]) -> dict[str, Any]:
    _, of, numbers, parameters = CASES[name]
    base = None if of == "weights" else models[0]
    given = [models[int(number)] for number in numbers if of != "base first" or number != "0"]
    return {"recipe_or_method": name.split()[0], "base": base, "models": given, **parameters}


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("name", CASES)
def test_a_merge_is_its_formula(name, spread) -> None:
    formula, of, numbers, _ = CASES[name]
    models = states(spread)
    got = mergekern.merge(**call(name, models))
    assert isinstance(got, dict)
    for tensor, shape in SHAPES.items():
        vectors = [models[int(number)][tensor].numpy().ravel() for number in numbers]
        base = models[0][tensor].numpy().ravel() if of == "deltas" else 0.0
        if not vectors[0].size:
            continue
        want = base + formula([x - base for x in vectors])
        found = got[tensor].numpy().ravel()
        np.testing.assert_allclose(found, want, rtol=1e-9, atol=1e-9, err_msg=f"{tensor} {shape}")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", CASES)
def test_backends_and_threads_agree_to_the_bit(name, dtype) -> None:
    models = states(0.3, dtype=dtype)
    want = mergekern.merge(**call(name, models), backend="reference")
    for threads in (1, 3):
        got = mergekern.merge(**call(name, models), backend="cpu", threads=threads)
        assert isinstance(got, dict) and isinstance(want, dict)
        assert all(torch.equal(got[tensor], x) for tensor, x in want.items())


def test_a_grid_has_one_gram_matrix(monkeypatch) -> None:
    models, calls = states(0.3), []
    honest = ReferenceBackend.gram
    monkeypatch.setattr(
        ReferenceBackend, "gram", lambda *args: calls.append(args[1].tensor) or honest(*args)
    )
    ts = [0.1, 0.5, 0.9]
    recipe = {
        "merge_method": "slerp",
        "models": [{"model": models[1]}],
        "base_model": models[0],
        "grid": {"t": ts},
    }
    found = mergekern.merge_many(recipe, backend="reference")
    assert len(calls) == len(set(calls)) == len(SHAPES) - 1  # nothing is asked of what is empty
    for t, state in zip(ts, found, strict=True):
        alone = mergekern.merge("slerp", base=models[0], models=[models[1]], t=t)
        assert all(torch.equal(alone[tensor], x) for tensor, x in state.items())


def test_listing_order_does_not_turn_slerp_round() -> None:
    base, other, *_ = states(30.0)
    want = mergekern.merge("slerp", base=base, models=[other], t=0.2)
    for models in ([base, other], [other, base]):
        got = mergekern.merge("slerp", base=base, models=models, t=0.2)
        assert all(torch.equal(got[tensor], x) for tensor, x in want.items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_equal_models_come_out_as_they_are(dtype) -> None:
    base, *_ = states(0.3, dtype=dtype)
    for name in CASES:
        given = call(name, [dict(base) for _ in range(4)])
        given |= {"eps": 1e-8} if "eps" in given else {}
        got = mergekern.merge(**given)
        assert isinstance(got, dict)
        for tensor, x in base.items():
            torch.testing.assert_close(got[tensor], x, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", CASES)
def test_nan_is_reported(name) -> None:
    models = states(0.3, dtype=torch.bfloat16)
    models[1]["c"][7, 7] = torch.nan
    with pytest.raises(NonFiniteError, match="c: NaN or Inf in"):
        mergekern.merge(**call(name, models))


def test_sums_beyond_fp64_are_reported() -> None:
    models = [{"w": torch.full((9,), x, dtype=torch.float64)} for x in (1e200, 2e200)]
    with pytest.raises(NonFiniteError, match="w: the result is too large"):
        mergekern.merge("karcher", models=models)


def test_directions_that_cancel_are_named() -> None:
    angles = 2 * np.pi * np.arange(3) / 3
    models = [{"w": torch.tensor([np.cos(a), np.sin(a)])} for a in angles]
    with pytest.raises(MergeError, match="w: the directions of the models cancel"):
        mergekern.merge("multislerp", models=models)


def test_one_model_alone_stays_as_it_is() -> None:
    base, model, *_ = states(0.3, dtype=torch.float32)
    for given in ({"base": base}, {}):
        got = mergekern.merge("multislerp", models=[model], weight=0.3, **given)
        assert all(torch.equal(got[tensor], x) for tensor, x in model.items())
    model["own"] = torch.ones(3)
    got = mergekern.merge("slerp", base=base, models=[model], t=0.3, mismatch="skip-model")
    assert torch.equal(got["own"], model["own"])


def layered(seed: int) -> State:
    g = torch.Generator().manual_seed(seed)
    names = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
    names += [f"model.layers.{layer}.mlp.weight" for layer in range(4)]
    return {name: torch.randn(6, 7, generator=g) for name in names}


def test_a_slice_of_one_model_alone_is_that_model(tmp_path) -> None:
    """As recipes choose whose last norm and head to take: by a last slice without layers."""
    states = [layered(0), layered(1)]
    base, other = (str(write_model(tmp_path / str(n), state)) for n, state in enumerate(states))

    def sources(first: int, stop: int, *models: str) -> dict[str, Any]:
        return {"sources": [{"model": m, "layer_range": [first, stop]} for m in models]}

    recipe = {
        "merge_method": "slerp",
        "base_model": base,
        "parameters": {"t": 0.25},
        "slices": [sources(0, 3, other, base), sources(3, 4, other), sources(4, 4, other)],
    }
    mergekern.merge(recipe, output=tmp_path / "out")
    got = load(tmp_path / "out")
    whole = mergekern.merge("slerp", base=states[0], models=[states[1]], t=0.25)
    assert isinstance(whole, dict)
    alone = ("model.norm.weight", "lm_head.weight", "model.layers.3.mlp.weight")
    for tensor, x in whole.items():
        assert torch.equal(got[tensor], states[1][tensor] if tensor in alone else x), tensor


def test_passthrough() -> None:
    model = states(0.3, dtype=torch.bfloat16)[1]
    model |= {"zero": torch.tensor([-0.0]), "ids": torch.arange(3)}
    got = mergekern.merge("passthrough", models=[model])
    assert mergekern.plan("passthrough", models=[model]).steps[0].action == "copy"
    for tensor, x in model.items():
        assert torch.equal(got[tensor], x)
    assert got["zero"].signbit().all()
    half = mergekern.merge("passthrough", models=[model], scale=0.5)
    assert torch.equal(half["c"], (model["c"].float() * 0.5).bfloat16())
    assert torch.equal(half["ids"], model["ids"])
    wide = mergekern.merge("passthrough", models=[model], out_dtype="float32")
    assert wide["c"].dtype == torch.float32 and torch.equal(wide["c"], model["c"].float())


def test_complex_numbers_are_copied(tmp_path) -> None:
    """As some models keep the rotations of positions."""
    model = {"freqs": torch.polar(torch.ones(3, 4), torch.rand(3, 4)), "w": torch.ones(3)}
    folder = write_model(tmp_path / "model", model)
    mergekern.merge("passthrough", models=[folder], output=tmp_path / "out")
    got = mergekern.merge("passthrough", models=[model])
    assert isinstance(got, dict) and torch.equal(got["freqs"], model["freqs"])
    assert torch.equal(load(tmp_path / "out")["freqs"], model["freqs"])
    model["freqs"][2, 1] = complex(0, np.inf)
    with pytest.raises(NonFiniteError, match="freqs: NaN or Inf in"):
        mergekern.merge("passthrough", models=[model])


@pytest.mark.parametrize("name", CASES)
def test_folders_hold_what_memory_gives(name, tmp_path) -> None:
    models = states(0.3, dtype=torch.bfloat16)
    folders = [write_model(tmp_path / str(n), state) for n, state in enumerate(models)]
    mergekern.merge(**call(name, folders), output=tmp_path / "out")
    want, got = mergekern.merge(**call(name, models)), load(tmp_path / "out")
    assert isinstance(want, dict) and got.keys() == want.keys()
    assert all(torch.equal(got[tensor], x) for tensor, x in want.items())
