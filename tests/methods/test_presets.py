"""MergeBench's presets against its formulas in float64, over a model with embeddings and a head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mergekern
from mergekern.backends.philox import coins
from mergekern.errors import RecipeError
from mergekern.fused import name_hash
from mergekern.methods import all_methods, method_of

State = dict[str, Tensor]
EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"
LAYERS = {"model.layers.0.mlp.up_proj.weight": (30, 20), "model.norm.weight": (20,)}
SHAPES = {EMBEDDINGS: (50, 20), **LAYERS, HEAD: (50, 20)}
FIVE = 5


def states(tied: bool = False) -> list[State]:
    """The base, then five experts whose embeddings have changed far more than their layers."""
    g = torch.Generator().manual_seed(6)
    names = [name for name in SHAPES if not (tied and name == HEAD)]
    base = {n: torch.randn(SHAPES[n], generator=g).double() for n in names}
    found = [base]
    for _ in range(FIVE):
        size = {EMBEDDINGS: 10.0, HEAD: 0.3}
        found.append(
            {n: b + size.get(n, 0.1) * torch.randn(b.shape, generator=g) for n, b in base.items()}
        )
    return found


def run(preset: str, models: list[State], **options: Any) -> State:
    got = mergekern.merge(preset=preset, base=models[0], models=models[1:], **options)
    assert isinstance(got, dict)
    return got


def vectors(models: list[State]) -> list[Tensor]:
    """The flat task vectors: all but embeddings."""
    base, *experts = models
    names = [name for name in base if name != EMBEDDINGS]
    return [torch.cat([(x[n] - base[n]).flatten() for n in names]) for x in experts]


def check(got: State, base: State, merged: Tensor) -> None:
    """merged: what is added to all but embeddings, of which the head's part is not."""
    names = [name for name in base if name != EMBEDDINGS]
    parts = merged.split([base[name].numel() for name in names])
    for name, part in zip(names, parts, strict=True):
        want = base[name] if name == HEAD else base[name] + part.view(base[name].shape)
        torch.testing.assert_close(got[name], want, rtol=1e-12, atol=1e-12)
    assert torch.equal(got[EMBEDDINGS], base[EMBEDDINGS])


def largest(tau: Tensor, share: float) -> Tensor:
    k = int(share * tau.numel())
    return torch.where(tau.abs() >= tau.abs().topk(k).values[-1], tau, 0.0)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("preset", "scale"), [("model_soup", 0.2), ("task_arithmetic", 0.4)])
def test_sums(preset: str, scale: float, tied: bool) -> None:
    models = states(tied)
    want = scale * torch.stack(vectors(models)).sum(0)
    check(run(f"mergebench/{preset}", models), models[0], want)


@pytest.mark.parametrize("tied", [False, True])
def test_ties(tied: bool) -> None:
    models = states(tied)
    trimmed = torch.stack([largest(tau, 0.3) for tau in vectors(models)])
    sign = torch.where(trimmed.sum(0) >= 0, 1.0, -1.0)
    want = 0.4 * torch.where(trimmed.sign() == sign, trimmed, 0.0).sum(0)
    check(run("mergebench/ties", models), models[0], want)


def test_dare() -> None:
    """The coins are ours."""
    base, *experts = states()
    got = run("mergebench/dare", [base, *experts], seed=3)
    for name in LAYERS:
        total = torch.zeros_like(base[name])
        for k, x in enumerate(experts):
            index = torch.arange(base[name].numel())
            kept = coins(3, name_hash(name), k, index) < int(0.1 * 2**32)
            total += (x[name] - base[name]) * kept.view(base[name].shape) / 0.1
        torch.testing.assert_close(got[name], base[name] + 0.4 * total, rtol=1e-12, atol=1e-12)
    assert all(torch.equal(got[name], base[name]) for name in (EMBEDDINGS, HEAD))


def test_consensus() -> None:
    models = states()
    taus = torch.stack(vectors(models))
    total = taus.sum(0)
    masks = taus.abs() > 0.2 * (total - taus).abs()
    want = 0.4 * torch.where(masks.sum(0) >= 2, total, 0.0)
    check(run("mergebench/consensus", models), models[0], want)


@pytest.mark.parametrize("tied", [False, True])
def test_localize_and_stitch(tied: bool) -> None:
    models = states(tied)
    kept = torch.stack([largest(tau, 0.1) for tau in vectors(models)])
    want = kept.sum(0) / (kept != 0).sum(0).clamp(min=1)
    check(run("mergebench/localize_and_stitch", models), models[0], want)


def test_fisher() -> None:
    """Embeddings have no statistics and stay the base's; a head of its own has some."""
    models = states()
    g = torch.Generator().manual_seed(8)
    fishers = [
        {n: torch.rand(x.shape, generator=g).double() for n, x in models[0].items()}
        for _ in range(FIVE)
    ]
    for fisher in fishers:
        del fisher[EMBEDDINGS]
    base, *experts = models
    got = mergekern.merge(preset="mergebench/fisher", base=base, models=experts, statistics=fishers)
    assert isinstance(got, dict)
    assert torch.equal(got[EMBEDDINGS], base[EMBEDDINGS])
    for name in (*LAYERS, HEAD):
        importance = torch.stack([fisher[name] + 1e-10 for fisher in fishers])
        weighted = importance * torch.stack([expert[name] for expert in experts])
        torch.testing.assert_close(got[name], weighted.sum(0) / importance.sum(0))


@pytest.mark.parametrize(("method", "share"), [("regmean", 0.5), ("regmean_plusplus", 0.1)])
def test_regmean(method: str, share: float) -> None:
    """Layers by least squares; embeddings and the head have no matrices and stay the base's."""
    models = states()
    matrices = [name for name in LAYERS if models[0][name].dim() == 2]
    g = torch.Generator().manual_seed(8)
    grams = [
        {
            n: (x := torch.randn(99, models[0][n].shape[1], generator=g).double()).T @ x
            for n in matrices
        }
        for _ in range(FIVE)
    ]
    base, *experts = models
    got = mergekern.merge(
        preset=f"mergebench/{method}", base=base, models=experts, statistics=grams
    )
    assert isinstance(got, dict)
    assert torch.equal(got[EMBEDDINGS], base[EMBEDDINGS]) and torch.equal(got[HEAD], base[HEAD])
    for name in LAYERS:
        wanted = torch.stack([expert[name] for expert in experts]).mean(0)
        if name in matrices:
            reduced = [share * m[name] + (1 - share) * m[name].diagonal().diag() for m in grams]
            sums = sum(m @ x[name].T for m, x in zip(reduced, experts, strict=True))
            wanted = torch.linalg.solve(sum(reduced), sums).T
        torch.testing.assert_close(got[name], wanted)


def test_every_method_of_mergebench_has_one() -> None:
    names = {name for method in all_methods() for name in method.presets if "/" in name}
    without_data = ("model_soup", "task_arithmetic", "ties", "dare", "consensus")
    methods = (*without_data, "localize_and_stitch", "fisher", "regmean", "regmean_plusplus")
    assert names == {f"mergebench/{method}" for method in methods}


def test_a_preset_may_say_the_method_and_what_is_given_wins() -> None:
    models = states()
    alone = run("mergebench/task_arithmetic", models, lambda_=0.7)
    named = mergekern.merge("task_arithmetic", base=models[0], models=models[1:], lambda_=0.7)
    assert isinstance(named, dict)
    for name in SHAPES:
        kept = models[0][name] if name in (EMBEDDINGS, HEAD) else named[name]
        assert torch.equal(alone[name], kept)
    plan = mergekern.plan(preset="mergebench/dare", base=models[0], models=models[1:])
    assert "dare_linear" in str(plan)


def test_in_a_recipe(tmp_path: Path) -> None:
    models = states()
    entries = [{"model": state} for state in models]
    recipe = {"base_model": models[0], "models": entries, "preset": "mergebench/ties"}
    got, want = mergekern.merge(recipe), run("mergebench/ties", models)
    assert isinstance(got, dict)
    assert all(torch.equal(got[name], want[name]) for name in SHAPES)
    (tmp_path / "r.yml").write_text("models: [{model: a}]\nbase_model: b\npreset: paper\n")
    with pytest.raises(RecipeError, match=r"r.yml:3: .* have a preset 'paper': name the method"):
        mergekern.plan(tmp_path / "r.yml")


@pytest.mark.parametrize(
    ("preset", "message"),
    [
        ("peft", "ties, dare_linear, dare_ties have a preset 'peft': name the method too"),
        ("mergebench/tie", "no method has a preset 'mergebench/tie'; did you mean 'mergebench/tie"),
        (None, "nothing to merge by: give a recipe, a method's name or a preset"),
    ],
)
def test_presets_that_say_no_method(preset: str | None, message: str) -> None:
    base, *experts = states()
    with pytest.raises(RecipeError, match=message):
        mergekern.merge(preset=preset, base=base, models=experts)
    assert method_of("mergebench/ties").name == "ties"
