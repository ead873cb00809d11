"""Containers against the paper's formula, in float64 and of whole models at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from folders import load, write_model

import mergekern
from mergekern.checkpoint.container import MANIFEST

SHAPES = {"a": (1,), "b": (7,), "c": (8,), "d": (9,), "e": (997,), "f": (70, 1001), "g": (0, 3)}
State = dict[str, torch.Tensor]


def exact(seed: int, most: int, dtype: torch.dtype) -> State:
    """Eighths of whole numbers, which differ exactly in every dtype."""
    g = torch.Generator().manual_seed(seed)
    return {
        name: (torch.randint(-most, most + 1, shape, generator=g).double() / 8).to(dtype)
        for name, shape in SHAPES.items()
    }


def flat(state: State) -> torch.Tensor:
    return torch.cat([state[name].double().reshape(-1) for name in SHAPES])


def papers(base: State, experts: list[State]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Equations 1 to 4 of arXiv:2405.17461, of all parameters in one vector: the unified task
    vector, masks and rescalers."""
    tau = torch.stack([flat(expert) - flat(base) for expert in experts])
    gamma = tau.sum(0).sign()
    epsilon = torch.where(tau.sign() == gamma, tau.abs(), 0.0).amax(0)
    unified = gamma * epsilon
    masks = (tau * unified > 0).double()
    rescalers = tau.abs().sum(1) / (masks * unified).abs().sum(1)
    return unified, masks, rescalers


def codes(base: State, experts: list[State]) -> torch.Tensor:
    """Rescalers as the released code sums them: means over each tensor, these over tensors."""
    unified, masks, _ = papers(base, experts)
    sizes = [base[name].numel() for name in SHAPES]
    found = []
    for expert, mask in zip(experts, masks, strict=True):
        tau = (flat(expert) - flat(base)).abs().split(sizes)
        kept = (mask * unified).abs().split(sizes)
        pairs = [(t.mean(), k.mean()) for t, k in zip(tau, kept, strict=True) if t.numel()]
        found.append(sum(t for t, _ in pairs) / sum(k for _, k in pairs))
    return torch.stack(found)


def merged(
    tmp_path: Path, base: State, experts: list[State], **options: object
) -> tuple[dict[str, object], list[State]]:
    """The manifest, and the model of every task."""
    models = [write_model(tmp_path / f"t{k}", state) for k, state in enumerate(experts)]
    like = write_model(tmp_path / "base", base)
    mergekern.merge("emr", base=like, models=models, output=tmp_path / "c", threads=2, **options)
    states = []
    for k in range(len(experts)):
        mergekern.materialise(tmp_path / "c", tmp_path / f"m{k}", task=f"t{k}")
        states.append(load(tmp_path / f"m{k}"))
    return json.loads((tmp_path / "c" / MANIFEST).read_text()), states


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("rescaler", ["paper", "code"])
@pytest.mark.parametrize("count", [2, 5])
def test_models_of_tasks(tmp_path: Path, dtype: torch.dtype, rescaler: str, count: int) -> None:
    base = exact(0, 100, dtype)
    deltas = [exact(1 + k, 3, dtype) for k in range(count)]
    experts = [{n: base[n] + d[n] for n in SHAPES} for d in deltas]
    manifest, states = merged(tmp_path, base, experts, rescaler=rescaler)
    unified, masks, of_paper = papers(base, experts)
    factors = of_paper if rescaler == "paper" else codes(base, experts)
    told = [manifest["tasks"][f"t{k}"]["rescalers"][rescaler] for k in range(count)]
    torch.testing.assert_close(torch.tensor(told, dtype=torch.float64), factors, rtol=1e-14, atol=0)
    for state, mask, factor in zip(states, masks, factors, strict=True):
        want = flat(base) + factor * mask * unified
        # fp32 twice and the output's dtype once, each within half a unit in the last place
        error = torch.finfo(dtype).eps / 2 + 2 * torch.finfo(torch.float32).eps
        assert ((flat(state) - want).abs() <= error * want.abs().clamp(min=1)).all()
        assert {n: (x.dtype, x.shape) for n, x in state.items()} == {
            n: (x.dtype, x.shape) for n, x in base.items()
        }


def test_the_dtype_asked_for_is_that_of_vector_and_models(tmp_path: Path) -> None:
    base = exact(0, 100, torch.bfloat16)
    experts = [{n: base[n] + d for n, d in exact(1, 3, torch.bfloat16).items()}]
    _, (state,) = merged(tmp_path, base, experts, dtype="float32")
    assert {x.dtype for x in load(tmp_path / "c/unified").values()} == {torch.float32}
    assert {x.dtype for x in state.values()} == {torch.float32}
    assert torch.equal(flat(state), flat(experts[0]))
    again = tmp_path / "again"
    mergekern.materialise(tmp_path / "c", again, task="t0", dtype="bfloat16")
    assert all(torch.equal(x, experts[0][n]) for n, x in load(again).items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_one_model_alone_is_itself(tmp_path: Path, dtype: torch.dtype) -> None:
    base = exact(0, 100, dtype)
    tuned = {n: base[n] + d for n, d in exact(1, 3, dtype).items()}
    manifest, (state,) = merged(tmp_path, base, [tuned])
    assert manifest["tasks"]["t0"]["rescalers"] == {"paper": 1.0, "code": 1.0}
    assert all(torch.equal(state[n], tuned[n]) for n in SHAPES)


def test_one_model_alone_is_itself_up_to_rounding(tmp_path: Path) -> None:
    """Its delta is rounded to bf16, and the sum of base and delta once more."""
    g = torch.Generator().manual_seed(3)
    base = {"w": torch.randn(40_000, generator=g).bfloat16()}
    tuned = {"w": (base["w"].float() + 1e-2 * torch.randn(40_000, generator=g)).bfloat16()}
    like = write_model(tmp_path / "base", base)
    model = write_model(tmp_path / "t0", tuned)
    mergekern.merge("emr", base=like, models=[model], output=tmp_path / "c")
    mergekern.materialise(tmp_path / "c", tmp_path / "m", task="t0")
    found, eps = load(tmp_path / "m")["w"].double(), torch.finfo(torch.bfloat16).eps
    w = tuned["w"].double()
    delta = (w - base["w"].double()).abs()
    assert ((found - w).abs() <= eps / 2 * (w.abs() + 2 * delta)).all()


def test_models_that_are_alike_are_themselves(tmp_path: Path) -> None:
    base = exact(0, 100, torch.bfloat16)
    tuned = {n: base[n] + d for n, d in exact(1, 3, torch.bfloat16).items()}
    manifest, states = merged(tmp_path, base, [tuned, tuned, tuned])
    for k, state in enumerate(states):
        assert manifest["tasks"][f"t{k}"]["rescalers"]["paper"] == 1.0
        assert all(torch.equal(state[n], tuned[n]) for n in SHAPES)


def test_models_that_changed_other_elements_are_themselves(tmp_path: Path) -> None:
    base = exact(0, 100, torch.float32)
    delta = exact(1, 3, torch.float32)
    place = {n: torch.arange(d.numel()).view(d.shape) % 3 for n, d in delta.items()}
    experts = [
        {n: base[n] + torch.where(place[n] == k, delta[n], 0.0) for n in SHAPES} for k in range(3)
    ]
    manifest, states = merged(tmp_path, base, experts)
    for k, (state, expert) in enumerate(zip(states, experts, strict=True)):
        assert manifest["tasks"][f"t{k}"]["rescalers"]["paper"] == 1.0
        assert all(torch.equal(state[n], expert[n]) for n in SHAPES)


def test_models_that_changed_nothing_are_the_base(tmp_path: Path) -> None:
    """0 / 0 is a rescaler of 1, and so is what wins nowhere."""
    base = exact(0, 100, torch.bfloat16)
    up, up_more = ({n: x + s for n, x in base.items()} for s in (0.5, 1.0))
    down = {n: x - 0.25 for n, x in base.items()}
    manifest, states = merged(tmp_path, base, [base, down, up, up_more])
    for k in (0, 1):
        assert manifest["tasks"][f"t{k}"]["rescalers"] == {"paper": 1.0, "code": 1.0}
        assert all(torch.equal(states[k][n], base[n]) for n in SHAPES)
    assert manifest["tasks"]["t2"]["rescalers"]["paper"] == 0.5
    assert all(torch.equal(states[2][n], up[n]) for n in SHAPES)
