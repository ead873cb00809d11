"""Merges against each method's formula, written out plainly in float64."""

from __future__ import annotations

import zlib

import pytest
import torch
from torch import Tensor

import mergekern
from mergekern.backends.philox import coins

State = dict[str, Tensor]
WEIGHT, DENSITY = (0.7, 0.4, 1.1), (0.3, 0.6, 0.5)


def states(count: int = 4) -> list[State]:
    g = torch.Generator().manual_seed(0)

    def state(scale: float) -> State:
        shapes = {"a": (37, 11), "b": (5,), "c": (64, 33)}
        return {n: scale * torch.randn(s, generator=g).double() for n, s in shapes.items()}

    base = state(1.0)
    others = [state(0.1 * (k + 1)) for k in range(count - 1)]
    return [base, *({n: base[n] + d[n] for n in base} for d in others)]


def deltas(name: str) -> list[Tensor]:
    base, *experts = states()
    return [x[name] - base[name] for x in experts]


def top(d: Tensor, density: float) -> Tensor:
    keep = d.abs().flatten().topk(int(density * d.numel())).indices
    mask = torch.zeros(d.numel(), dtype=torch.bool)
    mask[keep] = True
    return d * mask.view(d.shape)


def crumbs(d: Tensor, density: float, gamma: float) -> Tensor:
    n = d.numel()
    target, outliers = int(density * n), int(gamma * n)
    bottom = max(0, n - target - outliers)
    order = d.abs().flatten().argsort()
    mask = torch.zeros(n, dtype=torch.bool)
    mask[order[bottom : bottom + target]] = True
    return d * mask.view(d.shape)


def elected(ballots: list[Tensor], count: bool = False) -> list[Tensor]:
    total = sum(b.sign() if count else b for b in ballots)
    majority = torch.where(torch.as_tensor(total) >= 0, 1.0, -1.0)
    return [b.sign() == majority for b in ballots]


def run(method: str, **options: object) -> State:
    base, *experts = states()
    merged = mergekern.merge(method, base=base, models=experts, weight=list(WEIGHT), **options)
    assert isinstance(merged, dict)
    return {name: merged[name] - base[name] for name in base}


def check(got: State, want: dict[str, Tensor]) -> None:
    for name, tensor in want.items():
        torch.testing.assert_close(got[name], tensor, rtol=1e-12, atol=1e-12)


def test_linear() -> None:
    _, *experts = states()
    merged = mergekern.merge("linear", models=experts, weight=list(WEIGHT))
    assert isinstance(merged, dict)
    for name, tensor in merged.items():
        want = sum(w * x[name] for w, x in zip(WEIGHT, experts, strict=True)) / sum(WEIGHT)
        torch.testing.assert_close(tensor, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("normalize", [False, True])
def test_task_arithmetic(normalize) -> None:
    total = sum(WEIGHT) if normalize else 1.0
    want = {
        n: 0.5 * sum(w * d for w, d in zip(WEIGHT, deltas(n), strict=True)) / total for n in "abc"
    }
    check(run("task_arithmetic", lambda_=0.5, normalize=normalize, density=0.1), want)


def test_ties_as_mergekit() -> None:
    def one(name: str) -> Tensor:
        trimmed = [top(d, k) for d, k in zip(deltas(name), DENSITY, strict=True)]
        values = [w * d for w, d in zip(WEIGHT, trimmed, strict=True)]
        agree = elected(values)
        shares = sum(w * a.double() for w, a in zip(WEIGHT, agree, strict=True))
        divisor = torch.where(torch.as_tensor(shares) == 0, 1.0, shares)
        return 0.9 * sum(v * a for v, a in zip(values, agree, strict=True)) / divisor

    check(run("ties", density=list(DENSITY), lambda_=0.9), {n: one(n) for n in "abc"})


@pytest.mark.parametrize("count", [False, True])
def test_ties_as_peft(count) -> None:
    def one(name: str) -> Tensor:
        trimmed = [top(d, k) for d, k in zip(deltas(name), DENSITY, strict=True)]
        agree = elected(trimmed, count)
        values = [w * d * a for w, d, a in zip(WEIGHT, trimmed, agree, strict=True)]
        return sum(values) / sum(a.double() for a in agree).clamp(min=1)

    options = {"elect": "count"} if count else {}
    got = run("ties", preset="peft", density=list(DENSITY), **options)
    check(got, {n: one(n) for n in "abc"})


def test_ties_as_its_paper() -> None:
    sizes = [deltas(n)[0].numel() for n in "abc"]
    whole = [torch.cat([deltas(n)[k].flatten() for n in "abc"]) for k in range(3)]
    trimmed = [top(d, 0.2) for d in whole]
    agree = elected(trimmed)
    values = [w * d * a for w, d, a in zip(WEIGHT, trimmed, agree, strict=True)]
    merged = sum(values) / sum(a.double() for a in agree).clamp(min=1)
    want = dict(zip("abc", merged.split(sizes), strict=True))
    check(run("ties", preset="paper"), {n: want[n].view(deltas(n)[0].shape) for n in "abc"})


def test_disjoint_max_takes_the_largest_that_agrees() -> None:
    def one(name: str) -> Tensor:
        values = [w * d for w, d in zip(WEIGHT, deltas(name), strict=True)]
        agreeing = torch.stack([v * a for v, a in zip(values, elected(values), strict=True)])
        return agreeing.gather(0, agreeing.abs().argmax(0, keepdim=True))[0]

    check(run("ties", disjoint="max"), {n: one(n) for n in "abc"})


@pytest.mark.parametrize("elect", [False, True])
def test_breadcrumbs(elect) -> None:
    def one(name: str) -> Tensor:
        kept = [crumbs(d, k, 0.05) for d, k in zip(deltas(name), DENSITY, strict=True)]
        values = [w * d for w, d in zip(WEIGHT, kept, strict=True)]
        agree = elected(values) if elect else [torch.ones(())] * 3
        return torch.as_tensor(sum(v * a for v, a in zip(values, agree, strict=True)))

    got = run("breadcrumbs_ties" if elect else "breadcrumbs", density=list(DENSITY), gamma=0.05)
    check(got, {n: one(n) for n in "abc"})


@pytest.mark.parametrize("rescale", ["none", "drop_rate", "l1"])
def test_dare_drops_by_chance_and_rescales(rescale) -> None:
    base, expert, *_ = states()
    merged = mergekern.merge(
        "dare_linear", base=base, models=[expert], density=0.3, rescale=rescale
    )
    assert isinstance(merged, dict)
    delta, got = expert["c"] - base["c"], merged["c"] - base["c"]
    kept = got != 0
    assert 0.25 < kept.double().mean() < 0.35
    left = delta.abs()[kept].sum()
    factor = {"none": 1.0, "drop_rate": 1 / 0.3, "l1": float(delta.abs().sum() / left)}[rescale]
    torch.testing.assert_close(got[kept], factor * delta[kept], rtol=1e-9, atol=1e-12)


def test_dare_ties_elects_what_is_left() -> None:
    alone = []
    base, *experts = states()
    for place in range(3):  # a zero weight leaves the coins of the others as they are
        weight = [float(k == place) for k in range(3)]
        merged = mergekern.merge(
            "dare_linear", base=base, models=experts, weight=weight, density=0.5, seed=3
        )
        assert isinstance(merged, dict)
        alone.append({n: merged[n] - base[n] for n in base})
    got = run("dare_ties", density=0.5, seed=3)
    for name in base:
        values = [w * d[name] for w, d in zip(WEIGHT, alone, strict=True)]
        # Base plus delta was rounded, and a delta that was dropped is exactly zero.
        want = sum(v * a for v, a in zip(values, elected(values), strict=True))
        torch.testing.assert_close(got[name], want, rtol=1e-9, atol=1e-12)


def test_seeds_give_other_coins() -> None:
    base, expert, *_ = states()
    first, same, other = (
        mergekern.merge("dare_linear", base=base, models=[expert], density=0.5, seed=seed)
        for seed in (1, 1, 2)
    )
    assert torch.equal(first["c"], same["c"])
    assert not torch.equal(first["c"], other["c"])


@pytest.mark.parametrize(
    "method", ["ties", "breadcrumbs", "breadcrumbs_ties", "dare_linear", "della"]
)
@pytest.mark.parametrize("rescale", ["none", "l1", "drop_rate"])
def test_a_density_of_0_leaves_a_model_out(method, rescale) -> None:
    base, *_ = states()
    nothing = run(method, density=0, rescale=rescale)
    check(nothing, {name: torch.zeros_like(base[name]) for name in "abc"})
    first = {n: WEIGHT[0] * d for n, d in ((n, deltas(n)[0]) for n in "abc")}
    if method in ("ties", "della"):  # divided by the weight that agrees
        first = {n: d / WEIGHT[0] for n, d in first.items()}
    check(run(method, density=[1, 0, 0], rescale=rescale), first)


@pytest.mark.parametrize("method", ["della", "della_linear"])
def test_della(method: str) -> None:
    epsilon = (0.1, 0.2, 0.15)

    def one(name: str) -> Tensor:
        values = []
        for k, delta in enumerate(deltas(name)):
            rows = delta if delta.dim() > 1 else delta[None]
            rank = rows.abs().argsort(1).argsort(1).double()
            odds = DENSITY[k] - epsilon[k] + 2 * epsilon[k] * rank / (rows.shape[1] - 1)
            thrown = coins(3, zlib.crc32(name.encode()), k, torch.arange(delta.numel()))
            kept = delta * (thrown.view(rows.shape) < odds * 2**32).view(delta.shape)
            values.append(WEIGHT[k] * kept * delta.abs().sum() / kept.abs().sum())
        if method == "della_linear":
            return torch.as_tensor(sum(values))
        agree = elected(values)
        shares = torch.as_tensor(sum(w * a.double() for w, a in zip(WEIGHT, agree, strict=True)))
        mixed = sum(v * a for v, a in zip(values, agree, strict=True))
        return mixed / torch.where(shares == 0, 1.0, shares)

    got = run(method, density=list(DENSITY), epsilon=list(epsilon), seed=3)
    check(got, {n: one(n) for n in "abc"})


@pytest.mark.parametrize("topk", [1.0, 0.5, 0.1, 0.0])
@pytest.mark.parametrize("size", [1.0, 1e-4, 1e-9])
def test_sce(topk: float, size: float) -> None:
    """size: of the last delta; with all of them 1e-4, weights are equal."""
    base, *experts = states()
    scale = (1.0, 1.0, size) if size != 1e-4 else (1e-4,) * 3
    experts = [
        {n: base[n] + s * (x[n] - base[n]) for n in base}
        for s, x in zip(scale, experts, strict=True)
    ]
    merged = mergekern.merge("sce", base=base, models=experts, select_topk=topk)
    assert isinstance(merged, dict)
    for name in base:
        d = torch.stack([x[name] - base[name] for x in experts])
        if topk < 1:
            spread = d.var(0, unbiased=False).flatten()
            chosen = spread.topk(int(int((spread != 0).sum()) * topk)).indices
            mask = torch.zeros_like(spread)
            mask[chosen] = 1
            d = d * mask.view(d.shape[1:])
        energy = d.square().flatten(1).mean(1)
        weight = energy / energy.sum() if energy.sum() >= 1e-6 else torch.full_like(energy, 1 / 3)
        weight = weight.view(-1, *[1] * (d.dim() - 1))
        agree = (d.sign() == torch.where(d.sum(0) >= 0, 1.0, -1.0)).double()
        want = (d * weight * agree).sum(0) / (weight * agree).sum(0).clamp(min=1e-6)
        got = merged[name] - base[name]
        torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-14 if size == 1 else 1e-12)
