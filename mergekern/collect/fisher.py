"""Diagonals of the Fisher information: how much a model's predictions hang on each weight.

    F_i = (1 / N) sum_n (d log p_n / d theta_i)^2

over N samples, one at a time. What p_n is of is the option `labels`:

    empirical   the tokens of the sample that are labels: log p_n = sum_t log p(x_t | x_<t), the
                empirical Fisher information, with the log-likelihood of a whole sample
    hard        the most likely token behind the last one: log p_n = max_v log p(v | x), as
                MergeBench (arXiv:2505.10833) takes it, with the sample's last token as the last
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from mergekern.collect.data import Sample
from mergekern.collect.network import Network
from mergekern.collect.store import Store
from mergekern.lazily import torch

Labels = Literal["empirical", "hard"]
LABELS: tuple[Labels, ...] = ("empirical", "hard")
SUMS = "sums"  # the part that samples are added to


def collect_fisher(
    network: Network,
    samples: Sequence[Sample],
    store: Store,
    device: str,
    show: Callable[[int], None],
    labels: Labels = "empirical",
    embeddings: bool = False,
) -> tuple[list[str], dict[str, Any]]:
    """Collect into one part of the store, going on from the samples that it has already.

    embeddings: of the input embeddings as well (and of the head, where it is tied to them)
    Held are the weights, a sum in fp32 for each, and one sample's gradient of one parameter.
    """
    wanted = fisher_keys(network, embeddings)
    parameters = network.load(network.keys)
    names = {network.stored(key) for key in wanted}
    done, sums = 0, {}
    if store.has(SUMS):
        done = int(store.notes(SUMS)["samples"])
        sums = {name: total.to(device) for name, total in store.read(SUMS).items()}
    show(done)
    hooks = [
        _square_into(sums, name, parameter)
        for name, parameter in parameters.items()
        if name in names
    ]
    for place in range(done, len(samples)):
        log_likelihood(network.model, samples[place], device, labels).backward()
        store.keep(SUMS, sums, {"samples": place + 1})
        show(1)
    for hook in hooks:
        hook.remove()
    means = {name: sums[name].div_(len(samples)) for name in parameters if name in sums}
    store.write("means", means, {})
    return ["means"], {}


def fisher_keys(network: Network, embeddings: bool) -> list[int]:
    """The parameters that are asked for."""
    inputs = [] if embeddings else [network.model.get_input_embeddings()]
    apart = set(network.parameters_of(inputs))
    return [key for key in network.keys if key not in apart]


def log_likelihood(
    model: torch.nn.Module, sample: Sample, device: str, labels: Labels
) -> torch.Tensor:
    """log p of one sample, in fp32."""
    ids = torch.tensor([sample.ids], device=device)
    logits = model(input_ids=ids, use_cache=False).logits[0]
    if labels == "hard":
        return torch.log_softmax(logits[-1].float(), -1).max()
    predicted = torch.log_softmax(logits[sample.label - 1 : -1].float(), -1)
    return predicted.gather(-1, ids[0, sample.label :, None]).sum()


def _square_into(
    sums: dict[str, torch.Tensor], name: str, parameter: torch.nn.Parameter
) -> torch.utils.hooks.RemovableHandle:
    """Gradients are squared, added and let go of as soon as they are there."""
    parameter.requires_grad_(True)

    def square(seen: torch.Tensor) -> None:
        assert seen.grad is not None
        squares = seen.grad.float().square_()
        sums[name] = sums[name].add_(squares) if name in sums else squares
        seen.grad = None

    return parameter.register_post_accumulate_grad_hook(square)
