"""Masks of Localize-and-Stitch (arXiv:2408.13656): which elements of a delta make a model good.

    w = base + sigmoid(S) delta                           delta = model - base
    S = S - (rate g delta + l1) sigmoid'(S)               once per epoch; g = mean_n d loss_n / d w
    mask = sigmoid(S) > 1/2                               at the end, one bit for each element

S is +bias where |delta| is among the largest `sparsity` of all that take part (or equals the least
of these) and -bias elsewhere; an element that did not change is in no mask. loss_n is the mean over
the labels of sample n of -log p(x_t | x_<t). As in the code released with the paper, l1 is not
multiplied by the rate; as in the paper and unlike that code, whose l1 drives logits away from 0, it
makes masks sparser.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mergekern.arrays import as_tensor
from mergekern.backends.masks import packed
from mergekern.checkpoint.base import Checkpoint
from mergekern.checkpoint.bits import SHAPES
from mergekern.collect.data import Sample
from mergekern.collect.fisher import SUMS, log_likelihood
from mergekern.collect.network import Network
from mergekern.collect.store import Store
from mergekern.dtypes import MERGEABLE, dtype_name
from mergekern.errors import CollectError
from mergekern.lazily import torch
from mergekern.packed import packed_shape

LOGITS = "logits"  # the part that holds them after an epoch
LOW = 15  # bits of a magnitude that the first of two counts leaves out


@dataclass(frozen=True)
class Training:
    """How logits begin and how far they go. Defaults are MergeBench's, whose base and experts are
    language models; the paper's for RoBERTa are 1e-5, 5, 1e7, 10 and 10.

    Raises CollectError for numbers out of range.
    """

    sparsity: float = 0.1
    bias: float = 3.0
    rate: float = 1e8
    l1: float = 0.0
    epochs: int = 1

    def __post_init__(self) -> None:
        wanted = {
            "sparsity": (0 < self.sparsity <= 1, "above 0 and at most 1"),
            "bias": (0 < self.bias < float("inf"), "above 0"),
            "rate": (0 <= self.rate < float("inf"), "0 or more"),
            "l1": (0 <= self.l1 < float("inf"), "0 or more"),
            "epochs": (self.epochs in range(1 << 31), "a whole number, 0 or more"),
        }
        for name, (fits, want) in wanted.items():
            if not fits:
                raise CollectError(f"{name} is {getattr(self, name)}; want {want}")

    def begun(self, delta: torch.Tensor, threshold: float) -> torch.Tensor:
        """The logits before the first epoch."""
        marked = (delta.abs() >= threshold) & (delta != 0)
        return torch.where(marked, self.bias, -self.bias)

    def stepped(
        self, logits: torch.Tensor, delta: torch.Tensor, gradient: torch.Tensor
    ) -> torch.Tensor:
        """The logits behind an epoch whose mean gradient, of the weights, is given."""
        s = torch.sigmoid(logits)
        return logits - (self.rate * gradient * delta + self.l1) * (s * (1 - s))


@dataclass(frozen=True)
class Deltas:
    """What takes part of a model's difference from its base, one tensor at a time, in fp32.

    Raises CollectError for tensors that do not fit.
    """

    model: Checkpoint
    base: Checkpoint
    names: Sequence[str]
    device: str

    def __post_init__(self) -> None:
        for name in self.names:
            info, want = self.model.tensors.get(name), self.base.tensors[name]
            if info is None or info.shape != want.shape or info.dtype not in MERGEABLE:
                found = "lacks it"
                if info is not None:
                    found = f"has it as {dtype_name(info.dtype)} {list(info.shape)}"
                raise CollectError(
                    f"tensor {name}: {self.base.label} has it as {list(want.shape)} and "
                    f"{self.model.label} {found}: no delta can be taken: name the base that it was "
                    "fine-tuned from, and leave --embeddings out where vocabularies differ"
                )

    @property
    def numel(self) -> int:
        return sum(self.base.tensors[name].numel for name in self.names)

    @property
    def nbytes(self) -> int:
        """Of their masks."""
        return sum(packed_shape(self.base.tensors[name].numel)[0] for name in self.names)

    def read(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The base's weights, and the delta."""
        base, model = (self._whole(each, name) for each in (self.base, self.model))
        return base, model - base

    def threshold(self, count: int) -> float:
        """The magnitude that `count` elements reach, and fewer would with any larger one.

        Magnitudes are counted by their bits, first by the high ones, then where the high ones are
        those of the threshold by the low ones.
        """
        high, above = _where(sum(self._counts(lambda bits: bits >> LOW, 1 << 31 - LOW)), count)
        among = sum(
            self._counts(lambda bits: bits[bits >> LOW == high] & ((1 << LOW) - 1), 1 << LOW)
        )
        low, _ = _where(among, count - above)
        found = torch.tensor(high << LOW | low, dtype=torch.int32)
        return float(found.view(torch.float32))

    def _counts(self, of: Callable[[torch.Tensor], torch.Tensor], values: int) -> Any:
        for name in self.names:
            bits = self.read(name)[1].abs().view(-1).view(torch.int32)
            yield torch.bincount(of(bits), minlength=values)

    def _whole(self, checkpoint: Checkpoint, name: str) -> torch.Tensor:
        info = checkpoint.tensors[name]
        held = as_tensor(checkpoint.read(name, 0, info.numel, None)).reshape(info.shape)
        return held.to(self.device).float()


def collect_masks(
    network: Network,
    deltas: Deltas,
    samples: Sequence[Sample],
    store: Store,
    device: str,
    show: Callable[[int], None],
    training: Training,
) -> tuple[list[str], dict[str, Any]]:
    """Collect into one part of the store, going on from the samples of an epoch that it has.

    network: of the base: what takes no part in masks stays the base's, as in the merge
    Held are the weights, beside one sample's gradient of one parameter the sum of all in fp32, and
    in host memory the logits in fp32; deltas are read again when they are needed.
    """
    _check_tokens(network, samples)
    parameters = network.load(network.keys)
    weights = {name: parameters[name] for name in deltas.names}
    logits, done = _begin(deltas, store, training)
    show(done * len(samples))
    for epoch in range(done, training.epochs):
        _blend(weights, deltas, logits)
        sums = _gradients(network, weights, samples, store, device, show, epoch)
        for name, total in sums.items():
            _, delta = deltas.read(name)
            gradient = total / len(samples)
            logits[name] = training.stepped(logits[name].to(device), delta, gradient).cpu()
            if gradient.isfinite().all() and not logits[name].isfinite().all():
                raise CollectError(
                    f"tensor {name}: its logits leave fp32 in epoch {epoch + 1}: --rate "
                    f"{training.rate:g} is too large: remove {store.parts}, and give a smaller one"
                )
        del sums
        store.write(LOGITS, logits, {"epochs": epoch + 1})
    return ["masks"], _finish({name: logits[name] for name in deltas.names}, store)


def masked_keys(network: Network, embeddings: bool) -> list[int]:
    """The parameters that get a mask: all but embeddings and head, unless they are asked for."""
    model = network.model
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    apart = set(network.parameters_of(end for end in ends if end is not None and not embeddings))
    return [key for key in network.keys if key not in apart]


def _check_tokens(network: Network, samples: Sequence[Sample]) -> None:
    rows = len(network.model.get_input_embeddings().weight)
    most = max(max(sample.ids) for sample in samples)
    if most >= rows:
        raise CollectError(
            f"the model's tokenizer makes token {most} of a sample, and the base has embeddings of "
            f"{rows}, which the merge keeps: give data without tokens that were added to the model"
        )


def _begin(deltas: Deltas, store: Store, training: Training) -> tuple[dict[str, torch.Tensor], int]:
    """The logits, in host memory, and how many epochs they have behind them."""
    if store.has(LOGITS):
        return store.read(LOGITS), int(store.notes(LOGITS)["epochs"])
    threshold = deltas.threshold(max(1, int(training.sparsity * deltas.numel)))
    begun = {name: training.begun(deltas.read(name)[1], threshold).cpu() for name in deltas.names}
    return begun, 0


def _finish(logits: Mapping[str, torch.Tensor], store: Store) -> dict[str, Any]:
    """Write the masks. Returns what the file says of them."""
    bits = {n: torch.from_numpy(packed((s > 0).reshape(-1))) for n, s in logits.items()}
    store.write("masks", bits, {})
    return {
        SHAPES: {name: list(held.shape) for name, held in logits.items()},
        "marked": sum(int((held > 0).sum()) for held in logits.values()),
        "of": sum(held.numel() for held in logits.values()),
    }


def _blend(
    weights: Mapping[str, torch.nn.Parameter], deltas: Deltas, logits: Mapping[str, torch.Tensor]
) -> None:
    """Give parameters the weights that logits stand for."""
    for name, weight in weights.items():
        base, delta = deltas.read(name)
        share = torch.sigmoid(logits[name].to(delta.device))
        weight.data.copy_(base + share * delta)


def _gradients(
    network: Network,
    weights: Mapping[str, torch.nn.Parameter],
    samples: Sequence[Sample],
    store: Store,
    device: str,
    show: Callable[[int], None],
    epoch: int,
) -> dict[str, torch.Tensor]:
    """The sums over samples of the loss's gradients, going on from those that the store has."""
    first, sums = 0, {}
    if store.has(SUMS) and store.notes(SUMS)["epochs"] == epoch:
        first = int(store.notes(SUMS)["samples"])
        sums = {name: total.to(device) for name, total in store.read(SUMS).items()}
    show(first)
    hooks = [_add_into(sums, name, weight) for name, weight in weights.items()]
    for place in range(first, len(samples)):
        sample = samples[place]
        labels = len(sample.ids) - sample.label
        (log_likelihood(network.model, sample, device, "empirical") / -labels).backward()
        store.keep(SUMS, sums, {"epochs": epoch, "samples": place + 1})
        show(1)
    for hook in hooks:
        hook.remove()
    return sums


def _add_into(
    sums: dict[str, torch.Tensor], name: str, weight: torch.nn.Parameter
) -> torch.utils.hooks.RemovableHandle:
    """Gradients are added and let go of as soon as they are there."""
    weight.requires_grad_(True)

    def add(seen: torch.Tensor) -> None:
        assert seen.grad is not None
        sums[name] = sums[name].add_(seen.grad) if name in sums else seen.grad.float()
        seen.grad = None

    return weight.register_post_accumulate_grad_hook(add)


def _where(counts: torch.Tensor, count: int) -> tuple[int, int]:
    """The largest value that `count` are no smaller than, and how many are larger than it."""
    larger = counts.flip(0).cumsum(0)
    place = int(torch.searchsorted(larger, count))
    return len(counts) - 1 - place, int(larger[place] - counts[len(counts) - 1 - place])
