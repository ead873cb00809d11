"""Timing on a GPU, by its own clock, and made models in its memory.

Without one, all of it happens on the CPU: to rehearse what will run there.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from data import SIGMA_BASE, SIGMA_DELTA
from timing import Times, once

Work = Callable[[], object]
GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda", torch.cuda.current_device()) if GPU else torch.device("cpu")
COPIED = 4 << 30  # bytes


def alternate(runs: list[Work], repetitions: int, warm_up: int = 2) -> list[Times]:
    """Seconds of each on the device, in turn, round by round; waits of the host count."""
    if not GPU:
        warm_up, repetitions = 0, 1
    rounds = [[_seconds(run) for run in runs] for _ in range(warm_up + repetitions)][warm_up:]
    return [Times(mine, mine) for mine in zip(*rounds, strict=True)]


def _seconds(run: Work) -> float:
    if not GPU:
        return once(run)[0]
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    result = run()
    end.record()
    end.synchronize()
    del result
    return begin.elapsed_time(end) / 1e3


def peak_of(run: Work) -> int:
    """The most bytes that torch holds on the device while this runs, above what it held before."""
    if not GPU:
        run()
        return 1
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return torch.cuda.max_memory_allocated() - before


def copy_of(nbytes: int) -> tuple[Work, int]:
    """A copy within the device's memory that reads and writes `nbytes` together."""
    source = torch.empty(nbytes // 2, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    return lambda: target.copy_(source), 2 * source.nbytes


def base_and_experts(
    numel: int, experts: int, seed: int = 0
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """In bf16, like data.base_and_experts(), made where they are used."""
    g = torch.Generator(DEVICE).manual_seed(seed)
    base = torch.empty(numel, dtype=torch.bfloat16, device=DEVICE)
    tuned = [torch.empty_like(base) for _ in range(experts)]
    step = 1 << 26  # what is fp32 on the way takes little room
    for at in range(0, numel, step):
        part = slice(at, min(at + step, numel))
        length = part.stop - part.start
        wide = SIGMA_BASE * torch.randn(length, generator=g, device=DEVICE)
        base[part] = wide.bfloat16()
        for x in tuned:
            delta = SIGMA_DELTA * torch.randn(length, generator=g, device=DEVICE)
            x[part] = (base[part].float() + delta).bfloat16()
    return base, tuned


def llama_3b(
    seed: int, base: dict[str, torch.Tensor] | None = None, smaller: int = 1
) -> dict[str, torch.Tensor]:
    """A state dict with the shapes of Llama 3.2 3B, in bf16; a fine-tune of `base`, if given.

    smaller: what every side is divided by, to rehearse
    """
    g = torch.Generator(DEVICE).manual_seed(seed)
    hidden, kv, inner, words = (side // smaller for side in (3072, 1024, 8192, 128256))
    layers = max(1, 28 // smaller)
    shapes = {"model.embed_tokens.weight": (words, hidden), "model.norm.weight": (hidden,)}
    for layer in range(layers):
        each = {
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (kv, hidden),
            "self_attn.v_proj": (kv, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
            "input_layernorm": (hidden,),
            "post_attention_layernorm": (hidden,),
        }
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in each.items()}
    state = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=g, device=DEVICE)
        if base is None:
            state[name] = (SIGMA_BASE * noise).bfloat16()
        else:
            state[name] = (base[name].float() + SIGMA_DELTA * noise).bfloat16()
    return state
