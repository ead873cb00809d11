"""Checkpoint folders of any number of tensors that take no room: real headers, data that is a hole.

Names, shapes and dtypes are those of a mixture of experts: thousands of small projections, vectors
of norms, one large embedding. Every byte reads as zero.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain, count, islice
from pathlib import Path

HIDDEN, WIDTH, VOCABULARY = 2048, 768, 151_936
MODULES = 128  # experts of a layer, each of three projections

Named = tuple[str, tuple[int, ...]]


def mixture(tensors: int, hidden: int = HIDDEN, width: int = WIDTH) -> list[Named]:
    """Names and shapes of a model of this many tensors, which ends within a layer where it must.

    hidden, width: the sizes of an expert's projections; the vocabulary shrinks with `hidden`.
    """
    words = max(8, VOCABULARY * hidden // HIDDEN)
    ends = [("model.norm.weight", (hidden,)), ("lm_head.weight", (words, hidden))]
    first = [("model.embed_tokens.weight", (words, hidden))]
    layers = chain.from_iterable(_layer(number, hidden, width) for number in count())
    return list(islice(chain(first, layers), tensors - len(ends))) + ends


def _layer(number: int, hidden: int, width: int) -> Iterator[Named]:
    head = max(1, hidden // 16)
    layer = f"model.layers.{number}"
    yield f"{layer}.input_layernorm.weight", (hidden,)
    for name, rows in (("q", 2 * hidden), ("k", 4 * head), ("v", 4 * head)):
        yield f"{layer}.self_attn.{name}_proj.weight", (rows, hidden)
    yield f"{layer}.self_attn.o_proj.weight", (hidden, 2 * hidden)
    for name in ("q", "k"):
        yield f"{layer}.self_attn.{name}_norm.weight", (head,)
    yield f"{layer}.post_attention_layernorm.weight", (hidden,)
    yield f"{layer}.mlp.gate.weight", (MODULES, hidden)
    for module in range(MODULES):
        for name, shape in (
            ("gate", (width, hidden)),
            ("up", (width, hidden)),
            ("down", (hidden, width)),
        ):
            yield f"{layer}.mlp.experts.{module}.{name}_proj.weight", shape


def write_headers(
    folder: Path,
    tensors: int = 20_000,
    shards: int = 160,
    *,
    hidden: int = HIDDEN,
    width: int = WIDTH,
) -> Path:
    """A checkpoint in bf16 in this many files, with config and index. Returns the folder."""
    folder.mkdir(parents=True)
    named = mixture(tensors, hidden, width)
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        held = named[shard * tensors // shards : (shard + 1) * tensors // shards]
        _write_shard(folder / file, held)
        weight_map |= {name: file for name, _ in held}
    config = {"model_type": "qwen3_moe", "dtype": "bfloat16", "tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(config))
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    return folder


def _write_shard(path: Path, held: list[Named]) -> None:
    entries, at = {}, 0
    for name, shape in held:
        size = 2
        for extent in shape:
            size *= extent
        entries[name] = {"dtype": "BF16", "shape": shape, "data_offsets": (at, at + size)}
        at += size
    text = json.dumps({"__metadata__": {"format": "pt"}} | entries, separators=(",", ":")).encode()
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)
