"""Philox 4x32-10 (Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC11), and the coin
that random drop throws with it, as csrc/philox.h has them."""

import triton
import triton.language as tl


@triton.jit
def philox4x32_10(c0, c1, c2, c3, seed):
    k0 = seed.to(tl.uint32)
    k1 = (seed >> 32).to(tl.uint32)
    for _ in tl.static_range(10):
        a = c0
        b = c2
        c0 = tl.umulhi(b, tl.full([], 0xCD9E8D57, tl.uint32)) ^ c1 ^ k0
        c1 = b * 0xCD9E8D57
        c2 = tl.umulhi(a, tl.full([], 0xD2511F53, tl.uint32)) ^ c3 ^ k1
        c3 = a * 0xD2511F53
        k0 += 0x9E3779B9
        k1 += 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def coin_half(blocks, expert, half, name_hash, seed):
    """Half of the coins of elements 8 * block … 8 * block + 7: 16 bits each, [blocks * 8].

    half = 0 gives the high 16 bits of the numbers, 1 the low ones.
    """
    c0 = blocks.to(tl.uint32)
    c1 = (blocks >> 32).to(tl.uint32)
    c2 = tl.zeros_like(c0) + (2 * expert + half)
    c3 = tl.zeros_like(c0) + name_hash
    w0, w1, w2, w3 = philox4x32_10(c0, c1, c2, c3, seed)
    words = tl.join(tl.join(w0, w2), tl.join(w1, w3))
    return tl.join(words & 0xFFFF, words >> 16).reshape(8 * blocks.shape[0])


@triton.jit
def coin_half_each(index, expert, half, name_hash, seed):
    """The same of elements in any order."""
    blocks = index // 8
    c2 = tl.zeros(index.shape, tl.uint32) + (2 * expert + half)
    c3 = tl.zeros(index.shape, tl.uint32) + name_hash
    w0, w1, w2, w3 = philox4x32_10(blocks.to(tl.uint32), (blocks >> 32).to(tl.uint32), c2, c3, seed)
    lane = (index % 8).to(tl.uint32)
    early = tl.where(lane < 2, w0, w1)
    word = tl.where(lane < 4, early, tl.where(lane < 6, w2, w3))
    return (word >> (16 * (lane % 2))) & 0xFFFF


@triton.jit
def decided(high, keep_below):
    """Which elements are kept, and which of them only their low halves can tell."""
    bound = (keep_below >> 16).to(tl.uint32)
    return high < bound, high == bound


@triton.jit
def drop(d, blocks, expert, keep_below, name_hash, seed):
    """d where its coin is below keep_below, else 0; blocks: numbers of its runs of 8 elements."""
    kept, undecided = decided(coin_half(blocks, expert, 0, name_hash, seed), keep_below)
    undecided &= d != 0.0
    of_eight = tl.max(undecided.to(tl.int32).reshape(blocks.shape[0], 8), 1)
    if tl.max(of_eight, 0) > 0:  # once in 65,536 elements
        low = coin_half(blocks, expert, 1, name_hash, seed)
        kept = kept | (undecided & (low < (keep_below & 0xFFFF).to(tl.uint32)))
    return tl.where(kept, d, 0.0)


@triton.jit
def drop_each(d, index, expert, keep_below, name_hash, seed):
    """drop() of elements in any order."""
    kept, undecided = decided(coin_half_each(index, expert, 0, name_hash, seed), keep_below)
    if tl.max(undecided.to(tl.int32)) > 0:
        low = coin_half_each(index, expert, 1, name_hash, seed)
        kept = kept | (undecided & (low < (keep_below & 0xFFFF).to(tl.uint32)))
    return tl.where(kept, d, 0.0)
