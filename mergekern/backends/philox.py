"""The coins of the random drop in plain torch: Philox 4x32-10, a function of counters alone."""

from __future__ import annotations

from mergekern.lazily import torch

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF


def coins(seed: int, name_hash: int, expert: int, index: torch.Tensor) -> torch.Tensor:
    """The 32-bit number of each element: 16 high bits from block 2k, 16 low bits from 2k + 1."""
    blocks, lane = index // 8, index % 8
    halves = []
    for half in (0, 1):
        words = torch.stack(philox(blocks, 2 * expert + half, name_hash, seed), 1)
        word = words.gather(1, (lane // 2)[:, None])[:, 0]
        halves.append((word >> (16 * (lane % 2))) & 0xFFFF)
    return (halves[0] << 16) | halves[1]


def philox(blocks: torch.Tensor, c2: int, c3: int, seed: int) -> list[torch.Tensor]:
    """Philox 4x32-10 of the counters (blocks as 64 bits, c2, c3), as four int64 tensors."""
    c = [blocks & _WORD, blocks >> 32, torch.full_like(blocks, c2), torch.full_like(blocks, c3)]
    key = [seed & _WORD, seed >> 32 & _WORD]
    for _ in range(10):
        (high0, low0), (high1, low1) = (
            _multiply(m, x) for m, x in zip(_MULTIPLIERS, (c[0], c[2]), strict=True)
        )
        c = [high1 ^ c[1] ^ key[0], low1, high0 ^ c[3] ^ key[1], low0]
        key = [(k + w) & _WORD for k, w in zip(key, _WEYL, strict=True)]
    return c


def _multiply(a: int, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """High and low 32 bits of a 64-bit product, in halves that int64 can hold."""
    low = a * (b & 0xFFFF)
    high = a * (b >> 16) + (low >> 16)
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)
