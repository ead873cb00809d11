"""Small random models of several architectures, the same numbers on every machine.

A base and fine-tunes of it: every parameter moved by noise of a twentieth of the weights' size, so
that models in bf16 have many equal deltas, as real ones do. `far` is another model altogether.
Numbers come from Philox's raw integers, which numpy keeps the same from version to version.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from small_tokenizers import EXTRA, tokenizer_of
from transformers import PretrainedConfig, PreTrainedModel

WEIGHTS, NOISE = 0.02, 1e-3
SEEDS = {"base": 0, "a": 1, "b": 2, "c": 3, "wide": 4, "other": 5, "far": 9}
EVERYWHERE = ("base", "a", "b", "c", "far")


@dataclass(frozen=True)
class Size:
    hidden: int = 32
    inner: int = 48
    layers: int = 4
    heads: int = 4
    vocabulary: int = 96


TINY = Size(hidden=8, inner=12, layers=4, heads=2, vocabulary=24)


@dataclass(frozen=True)
class Architecture:
    """kind: the auto class's suffix; config: its fields for a size."""

    model_type: str
    kind: str
    config: Callable[[Size], Mapping[str, Any]]

    def build(self, size: Size) -> PreTrainedModel:
        config: PretrainedConfig = transformers.AutoConfig.for_model(
            self.model_type, **self.config(size)
        )
        return self.auto.from_config(config)

    @property
    def auto(self) -> Any:
        return getattr(transformers, f"AutoModel{self.kind}")


def _decoder(size: Size, **more: Any) -> dict[str, Any]:
    return {
        "vocab_size": size.vocabulary,
        "hidden_size": size.hidden,
        "intermediate_size": size.inner,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.heads // 2,
        "max_position_embeddings": 64,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
        **more,
    }


def _gpt2(size: Size) -> dict[str, Any]:
    return {
        "vocab_size": size.vocabulary,
        "n_embd": size.hidden,
        "n_layer": size.layers,
        "n_head": size.heads,
        "n_positions": 64,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def _bert(size: Size) -> dict[str, Any]:
    return {
        "vocab_size": size.vocabulary,
        "hidden_size": size.hidden,
        "intermediate_size": size.inner,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "max_position_embeddings": 64,
    }


def _t5(size: Size) -> dict[str, Any]:
    return {
        "vocab_size": size.vocabulary,
        "d_model": size.hidden,
        "d_kv": size.hidden // size.heads,
        "d_ff": size.inner,
        "num_layers": size.layers,
        "num_decoder_layers": size.layers,
        "num_heads": size.heads,
        "feed_forward_proj": "gated-gelu",
        "decoder_start_token_id": 0,
    }


def _experts(size: Size, **more: Any) -> dict[str, Any]:
    return _decoder(size, num_experts_per_tok=2, **more)


ARCHITECTURES = {
    "llama": Architecture("llama", "ForCausalLM", _decoder),
    "llama-tied": Architecture(
        "llama", "ForCausalLM", lambda size: _decoder(size, tie_word_embeddings=True)
    ),
    "mistral": Architecture("mistral", "ForCausalLM", _decoder),
    "qwen2": Architecture(
        "qwen2", "ForCausalLM", lambda size: _decoder(size, tie_word_embeddings=True)
    ),
    "qwen3": Architecture(
        "qwen3", "ForCausalLM", lambda size: _decoder(size, head_dim=size.hidden // size.heads)
    ),
    "gemma2": Architecture(
        "gemma2",
        "ForCausalLM",
        lambda size: _decoder(
            size, head_dim=size.hidden // size.heads, sliding_window=16, tie_word_embeddings=True
        ),
    ),
    "gpt2": Architecture("gpt2", "ForCausalLM", _gpt2),
    "bert": Architecture("bert", "", _bert),
    "mixtral": Architecture(
        "mixtral", "ForCausalLM", lambda size: _experts(size, num_local_experts=4)
    ),
    "qwen3-moe": Architecture(
        "qwen3_moe",
        "ForCausalLM",
        lambda size: _experts(
            size,
            num_experts=4,
            moe_intermediate_size=size.inner // 2,
            head_dim=size.hidden // size.heads,
        ),
    ),
    "t5": Architecture("t5", "ForSeq2SeqLM", _t5),
}


def normal(name: str, seed: int, shape: torch.Size) -> np.ndarray:
    """Nearly normal numbers: sums of twelve uniform ones, exact in fp64."""
    generator = np.random.Philox(key=np.array([zlib.crc32(name.encode()), seed], np.uint64))
    uniform = generator.random_raw(3 * max(1, shape.numel())).view(np.uint16).reshape(-1, 12)
    return ((uniform.sum(1, dtype=np.int64) / 65536) - 6.0)[: shape.numel()].reshape(shape)


def fill(model: PreTrainedModel, seed: int) -> None:
    """Parameters: near one where they scale (norms), near zero elsewhere; then the fine-tune."""
    start = SEEDS["far"] if seed == SEEDS["far"] else SEEDS["base"]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if parameter.dim() == 1 and not name.endswith("bias") else 0.0
            values = centre + WEIGHTS * normal(name, start, parameter.shape)
            if seed != start:
                values = values + NOISE * normal(name, seed, parameter.shape)
            parameter.copy_(torch.from_numpy(values))


def write_model(folder: Path, name: str, architecture: str, dtype: torch.dtype, size: Size) -> None:
    """The model of that name in SEEDS, and its tokenizer."""
    vocabulary = size.vocabulary + (EXTRA if name == "wide" else 0)
    model = ARCHITECTURES[architecture].build(replace(size, vocabulary=vocabulary))
    fill(model, SEEDS[name])
    # Mixtral with fused experts, as transformers holds them; Qwen3-MoE as it is published.
    model.to(dtype).save_pretrained(folder, save_original_format=architecture != "mixtral")
    tokenizer_of(name, size.vocabulary).save_pretrained(folder)


def write_models(
    root: Path,
    architecture: str,
    dtype: torch.dtype,
    size: Size = Size(),
    names: Iterable[str] = EVERYWHERE,
) -> dict[str, Path]:
    """Folders below `root`, by model name."""
    folders = {name: root / name for name in names}
    for name, folder in folders.items():
        write_model(folder, name, architecture, dtype, size)
    return folders
