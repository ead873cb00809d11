"""Recipes for all parts of the format besides methods: what is merged with what, and how named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recipes import Case

Entry = Mapping[str, Any]


def layers(model: str, first: int, stop: int, **parameters: Any) -> Entry:
    """One source of a slice."""
    entry: dict[str, Any] = {"model": model, "layer_range": [first, stop]}
    return entry | ({"parameters": parameters} if parameters else {})


def part(*sources: Entry, **more: Any) -> Entry:
    """A slice; more: its base_model and parameters."""
    return {"sources": list(sources), **more}


def sliced(
    name: str, label: str, *parts: Entry, on: tuple[str, ...] = ("llama",), **top: Any
) -> Case:
    return Case(name, label, ({"merge_method": name, "slices": list(parts), **top},), on=on)


def whole(name: str, label: str, wants: tuple[str, ...] = (), **top: Any) -> Case:
    """A recipe written out."""
    return Case(name, label, ({"merge_method": name, **top},), wants=wants)


def of(model: str, **parameters: Any) -> Entry:
    return {"model": model, "parameters": parameters} if parameters else {"model": model}


ANYWHERE = ("llama", "llama-tied", "mistral", "qwen2", "qwen3", "gemma2", "gpt2", "mixtral")
HALVES = [of("a", weight=0.5), of("b", weight=0.5)]
MIXED = [of("base"), of("wide"), of("other")]
THIRDS = {"parameters": {"weight": 0.4}}

STRUCTURES: tuple[Case, ...] = (
    sliced(
        *("passthrough", "stack", part(layers("a", 0, 3)), part(layers("b", 1, 4))), on=ANYWHERE
    ),
    sliced(
        *("passthrough", "repeated layer"),
        *(part(layers("a", 0, 2)), part(layers("a", 1, 2)), part(layers("a", 1, 4))),
    ),
    sliced("passthrough", "reordered", part(layers("a", 2, 4)), part(layers("b", 0, 2))),
    sliced("passthrough", "one layer", part(layers("a", 1, 2))),
    sliced("passthrough", "empty last range", part(layers("a", 0, 4)), part(layers("b", 4, 4))),
    sliced("passthrough", "empty first range", part(layers("b", 0, 0)), part(layers("a", 0, 4))),
    sliced(
        *("passthrough", "scaled copies", part(layers("a", 0, 3))),
        part(
            layers(
                *("a", 2, 4),
                scale=[
                    {"filter": "o_proj", "value": 0.0},
                    {"filter": "down_proj", "value": 0.0},
                    {"value": 1.0},
                ],
            )
        ),
    ),
    sliced(
        *("linear", "two sources"),
        part(layers("a", 0, 2, weight=0.3), layers("b", 0, 2, weight=0.7)),
        part(layers("b", 1, 4, weight=0.4), layers("c", 0, 3, weight=0.6)),
    ),
    sliced(
        *("slerp", "slices", part(layers("base", 0, 2), layers("far", 0, 2))),
        part(layers("base", 2, 4), layers("far", 2, 4)),
        base_model="base",
        parameters={"t": [0.1, 0.9]},
    ),
    sliced(
        *("task_arithmetic", "base of a slice"),
        part(layers("base", 0, 2), layers("a", 0, 2, weight=0.7)),
        part(layers("b", 2, 4), layers("a", 2, 4, weight=0.7), base_model="b"),
        base_model="base",
    ),
    sliced(
        *("task_arithmetic", "parameters at all levels"),
        part(
            *(layers("base", 0, 2), layers("a", 0, 2, weight=0.7), layers("b", 0, 2)),
            parameters={"weight": 0.2, "lambda": 0.5},
        ),
        part(layers("base", 2, 4), layers("a", 2, 4), layers("b", 2, 4)),
        **{"base_model": "base", "parameters": {"weight": 0.4, "lambda": 0.9}},
    ),
    sliced(
        *("linear", "filters by input and output names"),
        part(
            layers("a", 2, 4, weight=[{"filter": "layers.2.", "value": 0.9}, {"value": 0.3}]),
            layers("b", 1, 3, weight=[{"filter": "layers.2.", "value": 0.8}, {"value": 0.1}]),
        ),
        parameters={"normalize": [{"filter": "layers.0.", "value": False}, {"value": True}]},
    ),
    whole(
        *("slerp", "gradient"),
        models=[of("base"), of("far")],
        base_model="base",
        parameters={"t": [0.0, 0.5, 0.3, 0.7, 1.0]},
    ),
    whole(
        *("slerp", "gradients with filters"),
        models=[of("base"), of("far")],
        base_model="base",
        parameters={
            "t": [
                {"filter": "self_attn", "value": [0.0, 0.5, 0.3]},
                {"filter": "mlp", "value": [1.0, 0.5]},
                {"value": 0.5},
            ]
        },
    ),
    whole(
        *("linear", "gradients of models"),
        models=[of("a", weight=[0.0, 0.3, 1.0]), of("b", weight=[1.0, 0.2])],
    ),
    whole(
        *("ties", "gradients of density and weight"),
        models=[
            of("a", density=[1.0, 0.7, 0.1], weight=1.0),
            of("b", density=0.5, weight=[0.0, 0.3, 0.7, 1.0]),
            of("c", density=0.33, weight=[{"filter": "mlp", "value": 0.5}, {"value": 0.0}]),
        ],
        base_model="base",
        parameters={"normalize": True, "int8_mask": True},
    ),
    whole(
        *("linear", "falls through to the top"),
        models=[of("a", weight={"filter": "mlp", "value": 0.9}), of("b")],
        **THIRDS,
    ),
    whole(
        *("linear", "first filter wins"),
        models=[
            of("a", weight=[{"value": 0.9}, {"filter": "mlp", "value": 0.1}]),
            of("b", weight=[{"filter": "*", "value": 0.3}]),
        ],
    ),
    whole(
        *("task_arithmetic", "filters of lambda"),
        models=HALVES,
        base_model="base",
        parameters={"lambda": [{"filter": "k_proj", "value": [0.2, 0.8]}, {"value": 0.7}]},
    ),
    whole(
        "linear", "base is one more input", models=[of("a"), of("b")], base_model="base", **THIRDS
    ),
    Case(
        *("linear", "modules"),
        (
            {
                "merge_method": "linear",
                "modules": {
                    "shared": {"models": HALVES},
                    "encoder": {"models": HALVES},
                    "decoder": {"models": [of("a")], "parameters": {"weight": 1.0}},
                },
            },
        ),
        on=("t5",),
    ),
    *(
        whole(name, f"dtype {dtype}, out_dtype {out}", models=HALVES, base_model="base", **keys)
        for name in ("task_arithmetic", "ties")
        for dtype, out in (("float32", "bfloat16"), ("float16", None), (None, "float32"))
        for keys in [{k: v for k, v in (("dtype", dtype), ("out_dtype", out)) if v}]
    ),
    *(
        whole(
            *("linear", f"tokenizer_source {source}", ("wide", "other")),
            **{"models": MIXED, "base_model": "base", "tokenizer_source": source, **THIRDS},
        )
        for source in ("union", "base", "wide")
    ),
    whole(
        *("linear", "tokenizer of a model, padded", ("wide",)),
        **{"models": [of("base"), of("wide")], "base_model": "base", **THIRDS},
        tokenizer={"source": "wide", "pad_to_multiple_of": 16},
        chat_template="auto",
    ),
    whole(
        *("linear", "tokens from elsewhere", ("wide", "other")),
        **{"models": MIXED, "base_model": "base", **THIRDS},
        tokenizer={
            "source": "union",
            "tokens": {
                "<|start|>": {"source": "wide", "force": True},
                "<|end|>": {"source": {"kind": "zero"}},
                "<|new|>": {"source": {"kind": "model_token", "model": "base", "token": "a"}},
                "ab": {"source": "other", "force": True},
            },
        },
    ),
    whole(
        *("task_arithmetic", "tokenizer union", ("wide", "other")),
        **{"models": MIXED, "base_model": "base", "tokenizer": {"source": "union"}, **THIRDS},
    ),
    whole(
        *("linear", "chat template"),
        models=HALVES,
        chat_template="{% for message in messages %}{{ message['content'] }}{% endfor %}",
    ),
    Case(
        *("linear", "stages"),
        (
            {"name": "first", "merge_method": "linear", "models": HALVES},
            {
                "name": "second",
                "merge_method": "task_arithmetic",
                "base_model": "base",
                "models": [of("c", weight=0.7)],
            },
            {
                "merge_method": "slerp",
                "base_model": "first",
                "models": [of("first"), of("second")],
                "parameters": {"t": 0.4},
            },
        ),
    ),
)
