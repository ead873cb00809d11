"""Tiny models of several architectures with LoRA adapters that peft itself made and merged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

VOCABULARY, WIDTH = 48, 16
COMMON = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


@dataclass(frozen=True)
class Adapted:
    """A base and an adapter as folders, and what merge_and_unload() makes of them."""

    base: Path
    adapter: Path
    merged: dict[str, torch.Tensor]

    @property
    def factors(self) -> dict[str, torch.Tensor]:
        return load_file(self.adapter / "adapter_model.safetensors")


def llama(**settings: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes: dict[str, Any] = {"vocab_size": VOCABULARY, "hidden_size": WIDTH}
    sizes |= {"intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(**(sizes | {"num_key_value_heads": 1} | COMMON | settings))
    return LlamaForCausalLM(config)


def gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=1, n_head=2, n_positions=8, **COMMON
    )
    return GPT2LMHeadModel(config)


def gpt_oss() -> Any:
    """Its experts are one tensor [experts, in, out] each, the second of them square."""
    from transformers import GptOssConfig, GptOssForCausalLM

    config = GptOssConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=3,
        num_experts_per_tok=2,
        head_dim=8,
        **COMMON,
    )
    return GptOssForCausalLM(config)


def vit() -> Any:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
    )
    return ViTForImageClassification(config)


EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
ATTENTION = {"target_modules": ["q_proj", "down_proj"]}
CASES: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "linear": (llama, ATTENTION),
    "rslora": (llama, {"target_modules": "all-linear", "use_rslora": True, "lora_alpha": 7}),
    "patterns": (
        llama,
        ATTENTION
        | {
            "rank_pattern": {"q_proj": 8, r"layers\.1\.mlp\.down_proj": 2},
            "alpha_pattern": {"proj": 99, "0.self_attn.q_proj": 5, "q_proj": 6, ".*down_proj": 3},
        },
    ),
    "dora": (llama, {"target_modules": ["q_proj", "down_proj", "embed_tokens"], "use_dora": True}),
    "embeddings": (llama, {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}),
    "saved": (llama, ATTENTION | {"modules_to_save": ["lm_head", "norm"]}),
    "biases": (lambda: llama(attention_bias=True), ATTENTION | {"bias": "all"}),
    "its biases": (lambda: llama(attention_bias=True), ATTENTION | {"bias": "lora_only"}),
    "lora_bias": (
        lambda: llama(attention_bias=True),
        {"target_modules": ["q_proj"], "lora_bias": True},
    ),
    "conv1d": (gpt2, {"target_modules": ["c_attn", "c_proj", "wte"], "fan_in_fan_out": True}),
    "conv1d dora": (
        gpt2,
        {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True, "use_dora": True},
    ),
    "experts": (
        gpt_oss,
        {"target_modules": ["q_proj"], "target_parameters": EXPERTS}
        | {"rank_pattern": {"experts.down_proj": 6}},
    ),
    "convolution": (vit, {"target_modules": ["projection", "query"]}),
    "convolution dora": (vit, {"target_modules": ["projection"], "use_dora": True}),
}


def make(root: Path, name: str, dtype: torch.dtype = torch.float32) -> Adapted:
    """The model of a case, saved in `dtype`, with an adapter of random factors in fp32."""
    from peft import LoraConfig, PeftModel, get_peft_model

    build, settings = CASES[name]
    torch.manual_seed(7)
    model = build()
    model.to(dtype).save_pretrained(root / "base")
    loaded = type(model).from_pretrained(root / "base", dtype=torch.float32)
    adapted = get_peft_model(loaded, LoraConfig(r=4, **settings))
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape)
    adapted.save_pretrained(root / "adapter")
    again = type(model).from_pretrained(root / "base", dtype=torch.float32)
    whole = PeftModel.from_pretrained(again, root / "adapter").merge_and_unload()
    whole.save_pretrained(root / "merged")
    return Adapted(root / "base", root / "adapter", load_file(root / "merged/model.safetensors"))
