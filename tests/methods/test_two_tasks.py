"""Methods that know the data merge two tasks better than a mean does: a two-layer network that was
fine-tuned on each, its statistics taken by plain torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import mergekern
from mergekern.collect.masks import Training
from mergekern.methods import all_methods

INPUTS, HIDDEN, CLASSES = 16, 32, 4
TASKS = (0, 1)
TRAINED = Training(sparsity=0.05, bias=3.0, rate=1e4, l1=10.0, epochs=20)
State = dict[str, Tensor]
Data = tuple[Tensor, Tensor]
Make: TypeAlias = "Callable[[nn.Sequential, State, Data], State]"


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums in one order, whatever the machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def data(task: int, count: int, seed: int) -> Data:
    """Each task's classes hang on its own half of the inputs, and the other half is faint."""
    mix = torch.randn(INPUTS, CLASSES, generator=torch.Generator().manual_seed(task))
    loud = torch.full((INPUTS,), 0.1)
    loud[task * INPUTS // 2 : (task + 1) * INPUTS // 2] = 1.1
    x = loud * torch.randn(count, INPUTS, generator=torch.Generator().manual_seed(seed))
    return x, (x @ mix).argmax(1)


def trained(network: nn.Sequential, sets: list[Data], steps: int) -> nn.Sequential:
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.stack([cross_entropy(network(x), y) for x, y in sets]).sum().backward()
        optimizer.step()
    return network


def network_of(state: State | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(INPUTS, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, CLASSES))
    if state is not None:
        network.load_state_dict(state)
    return network


def joint_loss(state: State) -> float:
    """On data that nothing was trained on, the mean over tasks."""
    network = network_of(state)
    with torch.no_grad():
        losses = [cross_entropy(network(x), y) for x, y in (data(t, 2000, 9) for t in TASKS)]
    return float(torch.stack(losses).mean())


def diagonals(network: nn.Sequential, base: State, given: Data) -> State:
    """The mean over samples of squared gradients, as in collect fisher."""
    sums = {n: torch.zeros_like(w) for n, w in network.named_parameters()}
    for x, y in zip(*(each[:200, None] for each in given), strict=True):
        network.zero_grad()
        cross_entropy(network(x), y).backward()
        for n, w in network.named_parameters():
            assert w.grad is not None
            sums[n] += w.grad**2 / 200
    return sums


def grams(network: nn.Sequential, base: State, given: Data) -> State:
    """The mean of x^T x of each linear layer, as in collect gram."""
    x, _ = given
    hidden = network[:2](x).detach()
    return {"0.weight": x.T @ x / len(x), "2.weight": hidden.T @ hidden / len(x)}


def masks(network: nn.Sequential, base: State, given: Data) -> State:
    """Logits that are trained on the data as one batch, as in collect masks."""
    x, y = given
    deltas = {n: w.detach() - base[n] for n, w in network.named_parameters()}
    flat = torch.cat([d.abs().flatten() for d in deltas.values()]).sort(descending=True).values
    least = float(flat[int(TRAINED.sparsity * len(flat)) - 1])
    logits = {n: TRAINED.begun(d, least) for n, d in deltas.items()}
    for _ in range(TRAINED.epochs):
        weights = {
            n: (base[n] + s.sigmoid() * deltas[n]).requires_grad_() for n, s in logits.items()
        }
        loss = cross_entropy(torch.func.functional_call(network, weights, (x,)), y)
        gradients = torch.autograd.grad(loss, list(weights.values()))
        logits = {
            n: TRAINED.stepped(logits[n], deltas[n], g)
            for n, g in zip(weights, gradients, strict=True)
        }
    return {n: (s > 0).float() for n, s in logits.items()}


STATISTICS: dict[str, Make] = {"fisher": diagonals, "regmean": grams, "stitch": masks}
KNOWN = [method.name for method in all_methods() if method.name in STATISTICS]


@pytest.fixture(scope="module")
def merges() -> dict[str, float]:
    """The joint loss of every merge, of the base, and of the experts."""
    with one_thread():
        base = trained(network_of(), [data(t, 512, 1) for t in TASKS], 10).state_dict()
        own = [data(t, 512, 2) for t in TASKS]
        experts = [trained(network_of(base), [each], 60) for each in own]
        states = [expert.state_dict() for expert in experts]
        losses = {f"expert {t}": joint_loss(state) for t, state in enumerate(states)}
        options: dict[str, Any] = {"base": base, "models": states}
        losses["base"] = joint_loss(base)
        losses["mean"] = joint_loss(merged("linear", models=states))
        for name in KNOWN:
            pairs = zip(experts, own, strict=True)
            files = [STATISTICS[name](expert, base, each) for expert, each in pairs]
            losses[name] = joint_loss(merged(name, statistics=files, **options))
    return losses


def merged(method: str, **options: Any) -> State:
    found = mergekern.merge(method, **options)
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("method", KNOWN)
def test_data_beat_the_mean(method: str, merges: dict[str, float]) -> None:
    """By a margin: at most half its loss, and less than without any merge."""
    assert merges[method] < merges["mean"] / 2, merges
    assert merges[method] < min(merges["base"], merges["expert 0"], merges["expert 1"]), merges


def test_the_mean_forgets(merges: dict[str, float]) -> None:
    """Or there would be nothing to win."""
    assert merges["mean"] > merges["base"]
