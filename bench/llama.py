"""Llama-shaped checkpoints on disk: a base and its fine-tunes, as folders that both tools take.

    python bench/llama.py FOLDER LAYERS [EXPERTS]

They are base, a, b, and so on; two experts, if not said.

A process of its own makes them, so that what measures stays small.
"""

from __future__ import annotations

import json
import sys
import zlib
from pathlib import Path
from string import ascii_lowercase

import torch
from data import SIGMA_BASE, SIGMA_DELTA
from safetensors.torch import save_file
from tokenizers import Tokenizer, models

HIDDEN, INNER, VOCABULARY, HEADS = 1024, 2816, 32000, 16


def shapes(layers: int) -> dict[str, tuple[int, ...]]:
    """24 layers are 374 million parameters."""
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        for part in "qkvo":
            found[f"{prefix}.self_attn.{part}_proj.weight"] = (HIDDEN, HIDDEN)
        for part in ("gate", "up"):
            found[f"{prefix}.mlp.{part}_proj.weight"] = (INNER, HIDDEN)
        found[f"{prefix}.mlp.down_proj.weight"] = (HIDDEN, INNER)
        for part in ("input", "post_attention"):
            found[f"{prefix}.{part}_layernorm.weight"] = (HIDDEN,)
    return found | {"model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCABULARY, HIDDEN)}


def config(layers: int) -> dict[str, object]:
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }


def noise(name: str, seed: int, shape: tuple[int, ...]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) + seed)
    return torch.randn(shape, generator=generator)


def write(root: Path, layers: int, experts: int = 2) -> None:
    for seed, model in enumerate(("base", *ascii_lowercase[:experts])):
        state = {}
        for name, shape in shapes(layers).items():
            tensor = SIGMA_BASE * noise(name, 0, shape) + (1.0 if len(shape) == 1 else 0.0)
            if seed:
                tensor = tensor.bfloat16().float() + SIGMA_DELTA * noise(name, seed, shape)
            state[name] = tensor.bfloat16()
        folder = root / model
        folder.mkdir(parents=True)
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(config(layers)))
        vocabulary = {"<unk>": 0, "a": 1, "b": 2}
        core = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
        core.save(str(folder / "tokenizer.json"))
        kind = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>"}
        (folder / "tokenizer_config.json").write_text(json.dumps(kind))


if __name__ == "__main__":
    write(Path(sys.argv[1]), *map(int, sys.argv[2:]))
