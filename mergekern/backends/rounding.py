"""Rounding to what is stored, once, in plain torch."""

from __future__ import annotations

from mergekern.lazily import torch


def round_to(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Rounded once, to nearest even. torch rounds fp64 twice on its way to bf16 and fp16, hence the
    search among the neighbours of what it gives."""
    twice = x.to(dtype)
    if x.dtype != torch.float64 or dtype not in (torch.float16, torch.bfloat16):
        return twice
    bits = twice.view(torch.int16).long() & 0xFFFF
    best, best_error = twice, (_value(twice) - x).abs()
    for step in (-1, 1):
        other = ((bits & 0x7FFF) + step).clamp(min=0) | (bits & 0x8000)
        other = other.to(torch.int16).view(dtype)
        error = (_value(other) - x).abs()
        closer = (error < best_error) | ((error == best_error) & (bits % 2 == 1))
        closer &= ~other.isnan()
        best, best_error = torch.where(closer, other, best), torch.where(closer, error, best_error)
    return best


def _value(x: torch.Tensor) -> torch.Tensor:
    """In fp64, infinity as the number that would follow the largest finite one."""
    beyond = 2.0 ** (16 if x.dtype == torch.float16 else 128)
    return torch.where(x.isinf(), x.double().sign() * beyond, x.double())
