"""Whole merges by the formulas of the methods, in numpy and element by element; shares no code."""

from __future__ import annotations

import zlib

import numpy as np
import torch

WORD = 0xFFFFFFFF


def philox(counter: tuple[int, ...], seed: int) -> list[int]:
    c, key = list(counter), [seed & WORD, seed >> 32]
    for _ in range(10):
        p, q = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(q >> 32) ^ c[1] ^ key[0], q & WORD, (p >> 32) ^ c[3] ^ key[1], p & WORD]
        key = [(key[0] + 0x9E3779B9) & WORD, (key[1] + 0xBB67AE85) & WORD]
    return c


def coins(seed: int, name: str, expert: int, n: int) -> np.ndarray:
    name_hash, numbers = zlib.crc32(name.encode()), []
    for block in range(-(-n // 8)):
        high, low = (philox((block, 0, 2 * expert + h, name_hash), seed) for h in (0, 1))
        for lane in range(8):
            word, shift = lane // 2, 16 * (lane % 2)
            numbers.append((high[word] >> shift & 0xFFFF) << 16 | (low[word] >> shift & 0xFFFF))
    return np.array(numbers[:n], np.int64)


def trimmed(d: np.ndarray, density: float, gamma: float, ties: str) -> np.ndarray:
    if density >= 1:
        return d
    n, size = d.size, np.abs(d)
    keep = max(1, int(density * n))
    top = min(int(gamma * n), n - keep)
    order = np.argsort(-size, kind="stable")
    mask = np.zeros(n, bool)
    mask[order[top : top + keep]] = True
    if ties == "keep":
        mask = (size >= size[order[top + keep - 1]]) & (size <= size[order[top]])
    return np.where(mask, d, d.dtype.type(0))


def rounded(x: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """Once, to nearest even, by scaling to whole numbers in fp64."""
    digits, least = {torch.float16: (11, -14), torch.bfloat16: (8, -126)}.get(dtype, (0, 0))
    if not digits:
        with np.errstate(over="ignore"):
            return torch.from_numpy(x).to(dtype)
    exponent = np.maximum(np.frexp(x.astype(np.float64))[1] - 1, least) - (digits - 1)
    whole = np.rint(np.ldexp(x.astype(np.float64), -exponent))
    return torch.from_numpy(np.ldexp(whole, exponent)).to(dtype)


def mixed(v: list, u: list, share: list[float], method: dict) -> np.ndarray:
    """Elect, combine, divide."""
    work, zero = v[0].dtype.type, np.zeros_like(v[0])
    agree = [np.ones(x.shape, bool) for x in v]
    if method["elect"] != "none":
        total = zero
        for ballot in u:
            total = total + (ballot if method["elect"] == "mass" else np.sign(ballot))
        agree = [np.sign(ballot) == np.where(total >= 0, 1, -1) for ballot in u]
    num, den = zero, zero
    for value, a, s in zip(v, agree, share, strict=True):
        kept = np.where(a, value, work(0))
        largest = np.where(np.abs(kept) > np.abs(num), kept, num)
        num = largest if method["disjoint"] == "max" else num + kept
        den = den + np.where(a, work(s), work(0))
    if method["normalize"] and method["elect"] == "none":
        return num / work(sum(share))
    if method["normalize"] or method["disjoint"] == "mean":
        return num / np.where(den == 0, work(1), den)
    return num


@np.errstate(over="ignore")
def merged(base: torch.Tensor, experts: list[torch.Tensor], name: str, method: dict, dtype):
    """One tensor. method: weight, density, gamma, sparsify, rescale, elect … lambda, seed."""
    wide = torch.float64 in (base.dtype, *(x.dtype for x in experts))
    work = np.float64 if wide else np.float32
    b = base.double().numpy().astype(work)
    v, u = [], []
    for k, x in enumerate(experts):
        density, d = method["density"][k], x.double().numpy().astype(work) - b
        if method["sparsify"] == "trim":
            d = trimmed(d, density, method["gamma"], method["ties"])
        elif density < 1:
            thrown = coins(method["seed"], name, k, b.size)
            d = np.where(thrown < int(density * 2**32), d, work(0))
        scale = 1 / density if method["rescale"] == "drop_rate" else 1.0
        v.append(d * work(method["weight"][k] * scale))
        u.append(v[k] if method["ballot"] == "weighted" else d * work(scale))
    share = method["weight"] if method["normalize"] else [1.0] * len(v)
    return rounded(b + work(method["lambda_"]) * mixed(v, u, share, method), dtype)
