"""Made checkpoints: a base, and experts that differ from it as light fine-tunes do."""

from __future__ import annotations

from itertools import cycle, islice

import torch

from mergekern import huge

SIGMA_BASE, SIGMA_DELTA = 0.02, 3e-4


def base_and_experts(
    numel: int,
    experts: int,
    *,
    dtype: torch.dtype = torch.bfloat16,
    sigmas: tuple[float, ...] = (SIGMA_DELTA,),
    seed: int = 0,
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """sigmas: of the experts' deltas, in turn."""
    g = torch.Generator().manual_seed(seed)
    base = (SIGMA_BASE * torch.randn(numel, generator=g)).to(dtype)
    scales = islice(cycle(sigmas), experts)
    deltas = (sigma * torch.randn(numel, generator=g) for sigma in scales)
    return base, [(base.float() + delta).to(dtype) for delta in deltas]


def on_huge_pages(tensor: torch.Tensor) -> torch.Tensor:
    """A copy whose pages the processor's address tables can hold; small ones slow every stream."""
    copy = torch.empty(tensor.numel(), dtype=tensor.dtype)
    huge.advise(copy.data_ptr(), copy.nbytes)
    return copy.copy_(tensor.flatten())


def model(
    tensors: int, shape: tuple[int, ...], experts: int, seed: int = 0
) -> list[dict[str, torch.Tensor]]:
    """State dicts: the base, then the experts."""
    models: list[dict[str, torch.Tensor]] = [{} for _ in range(experts + 1)]
    for number in range(tensors):
        numel = torch.Size(shape).numel()
        base, tuned = base_and_experts(numel, experts, seed=seed + number)
        for state, tensor in zip(models, (base, *tuned), strict=True):
            state[f"model.layers.{number}.weight"] = tensor.view(shape)
    return models
