"""Layers are told from names and config, for the architectures that transformers builds."""

from __future__ import annotations

import pytest
import torch
import transformers as tf

from mergekern.layers import (
    Layers,
    before_layers,
    by_number,
    config_of_layers,
    contradictions,
    layers_of,
)

SMALL = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


def model(config, kind=tf.AutoModelForCausalLM):
    with torch.device("meta"):
        made = kind.from_config(config)
    return list(made.state_dict()), made.config.to_dict()


def found(names, config) -> dict[str, int]:
    return {stack.prefix: stack.depth for stack in layers_of(names, config).stacks}


@pytest.mark.parametrize(
    ("config", "kind", "stacks"),
    [
        (tf.LlamaConfig(**SMALL), tf.AutoModelForCausalLM, {"model.layers.": 4}),
        (tf.Qwen3Config(**SMALL, head_dim=8), tf.AutoModelForCausalLM, {"model.layers.": 4}),
        (
            tf.LlamaConfig(**{**SMALL, "num_hidden_layers": 1}),
            tf.AutoModelForCausalLM,
            {"model.layers.": 1},
        ),
        (
            tf.MixtralConfig(**SMALL, num_local_experts=4),
            tf.AutoModelForCausalLM,
            {"model.layers.": 4},
        ),
        (
            tf.GPT2Config(n_layer=3, n_embd=16, n_head=2, vocab_size=32),
            tf.AutoModelForCausalLM,
            {"transformer.h.": 3},
        ),
        (
            tf.T5Config(
                vocab_size=32,
                d_model=16,
                d_kv=8,
                d_ff=32,
                num_layers=3,
                num_decoder_layers=2,
                num_heads=2,
            ),
            tf.AutoModelForSeq2SeqLM,
            {"encoder.block.": 3, "decoder.block.": 2},
        ),
        (
            tf.BertConfig(**{k: v for k, v in SMALL.items() if k != "num_key_value_heads"}),
            tf.AutoModelForMaskedLM,
            {"bert.encoder.layer.": 4},
        ),
    ],
    ids=lambda value: type(value).__name__ if hasattr(value, "to_dict") else None,
)
def test_stacks_of_real_architectures(config, kind, stacks) -> None:
    names, plain = model(config, kind)
    assert found(names, plain) == stacks
    assert set(found(names, {})) <= set(stacks)  # without a config by their structure


def test_a_vision_tower_stands_beside_the_text() -> None:
    config = {
        "text_config": {"num_hidden_layers": 2},
        "vision_config": {"depth": 2, "num_hidden_layers": 2},
    }
    names = [
        *(f"model.visual.blocks.{i}.{n}.weight" for i in range(2) for n in ("qkv", "proj", "mlp")),
        *(f"model.language_model.layers.{i}.{n}.weight" for i in range(2) for n in ("q", "k")),
        "model.visual.merger.mlp.0.weight",
        "model.visual.merger.mlp.2.weight",
    ]
    text, vision = layers_of(names, config).stacks
    assert text.prefix == "model.language_model.layers."
    assert text.path == ("text_config", "num_hidden_layers")
    assert vision.prefix == "model.visual.blocks." and vision.path[0] == "vision_config"


def test_a_per_expert_mixture_has_layers_not_experts() -> None:
    names = [
        f"model.layers.{i}.mlp.experts.{e}.{part}.weight"
        for i in range(3)
        for e in range(8)
        for part in ("up", "down")
    ]
    assert found(names, {"num_hidden_layers": 3, "num_experts": 8}) == {"model.layers.": 3}
    assert found(names, {}) == {"model.layers.": 3}


def test_gradients_run_over_the_layers_alone() -> None:
    layers = layers_of(*model(tf.LlamaConfig(**SMALL)))
    assert layers.position("model.layers.0.mlp.up_proj.weight") == 0.0
    assert layers.position("model.layers.1.mlp.up_proj.weight") == 1 / 3
    assert layers.position("model.layers.3.mlp.up_proj.weight") == 1.0
    assert layers.position("lm_head.weight") == layers.position("model.embed_tokens.weight") == 0.0
    alone = layers_of(*model(tf.LlamaConfig(**{**SMALL, "num_hidden_layers": 1})))
    assert alone.position("model.layers.0.mlp.up_proj.weight") == 1.0


def test_embeddings_come_before_and_heads_behind() -> None:
    names = "model.embed_tokens wte wpe bert.embeddings.word_embeddings shared gpt_neox.embed_in"
    assert all(before_layers(f"{name}.weight") for name in names.split())
    assert not any(
        before_layers(f"{n}.weight") for n in ("model.norm", "lm_head", "ln_f", "embed_out")
    )


def test_lists_of_the_config_follow_the_layers() -> None:
    config = {
        "num_hidden_layers": 4,
        "layer_types": ["full", "slide", "full", "slide"],
        "mlp_only_layers": [0, 2],
        "eos_token_id": [1, 2, 3, 4],
        "architectures": ["A"],
        "first_k_dense_replace": 2,
    }
    other = {**config, "layer_types": list("abcd"), "mlp_only_layers": []}
    names = [f"model.layers.{i}.up.weight" for i in range(4)]
    (stack,) = layers_of(names, config).stacks
    taken = [(config, 1), (config, 2), (other, 3), (config, 2), (config, 0)]
    made = config_of_layers(config, stack, taken)
    assert made["num_hidden_layers"] == 5
    assert made["layer_types"] == ["slide", "full", "d", "full", "full"]
    assert made["mlp_only_layers"] == [1, 3, 4]
    assert made["eos_token_id"] == [1, 2, 3, 4] and made["architectures"] == ["A"]
    assert by_number(config, stack) == ["first_k_dense_replace"]


def test_lists_inside_a_nested_config_follow_too() -> None:
    config = {
        "text_config": {"num_hidden_layers": 2, "layer_types": ["a", "b"]},
        "vision_config": {"depth": 3},
    }
    (stack,) = layers_of([f"language_model.layers.{i}.w" for i in range(2)], config).stacks
    made = config_of_layers(config, stack, [(config, 1), (config, 1), (config, 0)])
    assert made["text_config"] == {"num_hidden_layers": 3, "layer_types": ["b", "b", "a"]}
    assert made["vision_config"] == {"depth": 3}


def test_numbers_that_do_not_begin_at_zero_are_no_layers() -> None:
    assert layers_of(["x.1.w", "x.2.w", "mlp.0.w", "mlp.2.w"], {}) == Layers(())


def test_one_field_cannot_be_two_depths() -> None:
    names = [f"{side}.block.{i}.w" for side in ("encoder", "decoder") for i in range(3)]
    both = layers_of(names, {"num_layers": 3}).stacks
    assert not list(contradictions(dict.fromkeys(both, 2)))
    made = {stack: 2 if stack.prefix == "encoder.block." else 3 for stack in both}
    (field, depths) = next(contradictions(made))
    assert field == "num_layers" and depths == {"encoder.block.": 2, "decoder.block.": 3}
    apart = layers_of(names, {"num_layers": 3, "num_decoder_layers": 3}).stacks
    assert not list(contradictions({stack: n for n, stack in enumerate(apart)}))


def test_only_numbers_go_by_the_layers_number() -> None:
    config = {"num_hidden_layers": 4, "sliding_window_pattern": "LLLG", "max_window_layers": 2}
    (stack,) = layers_of([f"layers.{i}.w" for i in range(4)], config).stacks
    assert by_number(config, stack) == ["max_window_layers"]
