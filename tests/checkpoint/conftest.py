"""Files to read: hand-made safetensors, and what transformers saves of a tiny Llama."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

WriteRaw = Callable[..., Path]


@pytest.fixture
def write_raw(tmp_path: Path) -> WriteRaw:
    """Write a safetensors file by hand: header as a dict or as raw JSON, length as it is or not."""

    def write(
        header: Mapping[str, Any] | bytes,
        data: bytes = b"",
        *,
        length: int | None = None,
        name: str = "model.safetensors",
    ) -> Path:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        prefix = (len(text) if length is None else length).to_bytes(8, "little")
        path = tmp_path / name
        path.write_bytes(prefix + text + data)
        return path

    return write


def tiny_llama(tied: bool = False, **sizes: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=sizes.get("vocab_size", 64),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config)


@pytest.fixture
def llama() -> LlamaForCausalLM:
    return tiny_llama()


@pytest.fixture
def tied_llama() -> LlamaForCausalLM:
    return tiny_llama(tied=True)
