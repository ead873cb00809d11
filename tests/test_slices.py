"""Slices and modules: which layers of which models become which, with which parameters."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import mergekern
from mergekern.errors import MergeError

DEPTH = 4


def state(seed: int, depth: int = DEPTH) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    names = ["model.embed_tokens.weight"]
    names += [f"model.layers.{i}.{n}.weight" for i in range(depth) for n in ("q", "mlp.up", "norm")]
    names += ["model.norm.weight", "lm_head.weight"]
    return {name: torch.randn(8, generator=generator) for name in names}


A, B, BASE = state(1), state(2), state(0)


def layers(model: dict, number: int) -> dict[str, torch.Tensor]:
    head = f"model.layers.{number}."
    return {name.removeprefix(head): x for name, x in model.items() if name.startswith(head)}


def source(model, first: int, stop: int, **parameters) -> dict:
    return {"model": model, "layer_range": [first, stop], "parameters": parameters}


def merge(slices, method="linear", **keys):
    return mergekern.merge({"merge_method": method, "slices": slices, **keys})


def test_layers_are_taken_repeated_and_numbered_anew() -> None:
    slices = [
        {"sources": [source(m, *r, weight=1)]} for m, r in ((A, (2, 4)), (B, (0, 3)), (A, (3, 4)))
    ]
    made = merge(slices)
    taken = [(A, 2), (A, 3), (B, 0), (B, 1), (B, 2), (A, 3)]
    for number, (model, layer) in enumerate(taken):
        assert layers(made, number).keys() == layers(model, layer).keys()
        for name, x in layers(made, number).items():
            assert torch.equal(x, layers(model, layer)[name])
    assert not layers(made, len(taken))


def test_the_first_slice_gives_embeddings_and_the_last_one_the_head() -> None:
    empty = {"sources": [source(B, 0, 0, weight=1)]}
    made = merge([{"sources": [source(A, 0, 2, weight=1)]}, empty])
    assert torch.equal(made["model.embed_tokens.weight"], A["model.embed_tokens.weight"])
    for name in ("model.norm.weight", "lm_head.weight"):
        assert torch.equal(made[name], B[name])
    assert not layers(made, 2)


def test_gradients_run_over_the_layers_of_their_slice() -> None:
    def both(weight):
        return {"sources": [source(A, 0, 3, weight=weight), source(B, 1, 4, weight=1)]}

    made = merge([both([0, 1]), both(3)], parameters={"normalize": False})
    for number, (layer, weight) in enumerate([(0, 0), (1, 0.5), (2, 1), (0, 3), (1, 3), (2, 3)]):
        want = (
            A[f"model.layers.{layer}.q.weight"] * weight + B[f"model.layers.{layer + 1}.q.weight"]
        )
        assert torch.equal(made[f"model.layers.{number}.q.weight"], want)
    embed = "model.embed_tokens.weight"
    assert torch.equal(made[embed], A[embed] * 0 + B[embed])  # outside of layers: the first point


def test_filters_of_models_go_by_the_names_of_inputs() -> None:
    weight = [{"filter": "layers.3.", "value": 2}, {"filter": "mlp", "value": 5}, {"value": 1}]
    made = merge([{"sources": [source(A, 2, 4, weight=weight)]}], parameters={"normalize": False})
    for name, factor in (("0.q", 1), ("0.mlp.up", 5), ("1.q", 2), ("1.mlp.up", 2)):
        layer, rest = name.split(".", 1)
        want = A[f"model.layers.{int(layer) + 2}.{rest}.weight"] * factor
        assert torch.equal(made[f"model.layers.{name}.weight"], want)


def test_filters_and_gradients_of_whole_models() -> None:
    recipe = {
        "merge_method": "task_arithmetic",
        "base_model": BASE,
        "models": [{"model": A, "parameters": {"weight": [{"filter": "q", "value": [0, 1]}, 1]}}],
        "parameters": {"lambda": {"filter": "norm", "value": 0.5}},
    }
    recipe["models"][0]["parameters"]["weight"] = [{"filter": "q", "value": [0, 3]}, {"value": 1}]
    made = mergekern.merge(recipe)
    for number in range(DEPTH):
        for rest, factor in (("q", float(number)), ("mlp.up", 1.0), ("norm", 0.5)):
            name = f"model.layers.{number}.{rest}.weight"
            delta = A[name] - BASE[name]
            assert torch.equal(
                made[name], BASE[name] + (delta * factor if factor != 0.5 else 0.5 * delta)
            )


def test_a_slices_base_is_its_own() -> None:
    def one(base, first, stop):
        own = [source(A, first, stop, weight=0.5), source(base, first, stop)]
        return {"sources": own, "base_model": base}

    made = merge([one(BASE, 0, 2), one(B, 2, 4)], "task_arithmetic", base_model=BASE)
    for number, base in enumerate([BASE, BASE, B, B]):
        name = f"model.layers.{number}.q.weight"
        assert torch.equal(made[name], base[name] + (A[name] - base[name]) * 0.5)
    assert torch.equal(
        made["lm_head.weight"],
        B["lm_head.weight"] + (A["lm_head.weight"] - B["lm_head.weight"]) * 0.5,
    )


def test_what_no_slice_takes_is_named() -> None:
    recipe = {"merge_method": "linear", "slices": [{"sources": [source(A, 0, 1, weight=1)]}]}
    plan = mergekern.plan(recipe)
    gone = {dropped.tensor: dropped.reason for dropped in plan.dropped}
    assert len(gone) == 3 * (DEPTH - 1) and set(gone.values()) == {"no slice takes this layer"}
    middle = [{"sources": [source(m, 0, 1, weight=1)]} for m in (A, B, A)]
    reasons = {
        d.reason for d in mergekern.plan({**recipe, "slices": middle}).dropped if "head" in d.tensor
    }
    assert len(reasons) == 1 and "behind the layers is the last slice's" in reasons.pop()


def test_the_plan_names_layers_that_change_their_numbers() -> None:
    slices = [{"sources": [source(m, *r, weight=1)]} for m, r in ((A, (0, 2)), (B, (1, 4)))]
    text = str(mergekern.plan({"merge_method": "linear", "slices": slices}))
    moved = [line for line in text.splitlines() if line.startswith("layers")]
    assert len(moved) == 1 and "model.layers.1–3 of " in moved[0] and moved[0].endswith("as 2–4")
    assert " gives " not in text


@pytest.mark.parametrize(
    ("slices", "message"),
    [
        ([[(A, 0, 5)]], r"slices\[0\]: layer_range \[0, 5\] of model .*, which has 4 layers"),
        ([[(A, 0, 2), (B, 0, 1)]], "different numbers of layers"),
        ([[({"w": torch.ones(2)}, 0, 1)]], "no layers are found"),
    ],
)
def test_layers_that_are_not_there(slices, message) -> None:
    made = [{"sources": [source(*s, weight=1) for s in sources]} for sources in slices]
    with pytest.raises(MergeError, match=message):
        merge(made)


def test_modules_are_made_apart() -> None:
    def model(seed):
        generator = torch.Generator().manual_seed(seed)
        names = ["shared.weight", "lm_head.weight"]
        names += [f"{side}.block.{i}.q.weight" for side in ("encoder", "decoder") for i in range(3)]
        return {name: torch.randn(4, generator=generator) for name in names}

    a, b = model(1), model(2)
    recipe = {
        "merge_method": "linear",
        "modules": {
            "encoder": {"models": [{"model": a, "parameters": {"weight": 1}}]},
            "decoder": {"slices": [{"sources": [source(b, 1, 3, weight=1)]}]},
            "shared": {"models": [{"model": b, "parameters": {"weight": 1}}]},
        },
    }
    made = mergekern.merge(recipe)
    assert torch.equal(made["encoder.block.2.q.weight"], a["encoder.block.2.q.weight"])
    assert torch.equal(made["decoder.block.0.q.weight"], b["decoder.block.1.q.weight"])
    assert torch.equal(made["shared.weight"], b["shared.weight"])
    assert torch.equal(made["lm_head.weight"], b["lm_head.weight"])
    assert "decoder.block.2.q.weight" not in made
    del recipe["modules"]["shared"]
    gone = {d.reason for d in mergekern.plan(recipe).dropped if d.tensor == "shared.weight"}
    assert gone == {"no module of the recipe has it (encoder, decoder)"}


def test_a_sliced_model_loads_with_the_depth_it_has(tmp_path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        layer_types=None,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "a")
    slices = [{"sources": [source(str(tmp_path / "a"), *r, weight=1)]} for r in ((0, 3), (1, 3))]
    report = mergekern.merge({"merge_method": "linear", "slices": slices}, output=tmp_path / "out")
    assert not report.dropped
    assert json.loads((tmp_path / "out/config.json").read_text())["num_hidden_layers"] == 5
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    stored = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    for number, layer in enumerate([0, 1, 2, 1, 2]):
        for x, y in zip(
            loaded.model.layers[number].parameters(),
            stored.model.layers[layer].parameters(),
            strict=True,
        ):
            assert torch.equal(x, y)


@pytest.mark.parametrize("mismatch", ["error", "base", "skip-model"])
def test_one_model_that_fits_is_merged_whatever_is_done_with_misfits(mismatch) -> None:
    slices = [{"sources": [source(m, *r, scale=2)]} for m, r in ((A, (0, 2)), (B, (2, 4)))]
    recipe = {"merge_method": "passthrough", "base_model": A, "slices": slices}
    made = mergekern.merge(recipe, mismatch=mismatch)
    for number, model in enumerate([A, A, B, B]):
        for name, x in layers(made, number).items():
            assert torch.equal(x, layers(model, number)[name] * 2)


def test_every_run_of_moved_layers_has_one_line_and_no_other() -> None:
    runs = ((A, (1, 2)), (B, (0, 1)), (A, (3, 4)))
    slices = [{"sources": [source(m, *r, weight=1)]} for m, r in runs]
    plan = mergekern.plan({"merge_method": "linear", "slices": slices})
    assert not any(step.note for step in plan.steps)
    text = " ".join(str(plan).split("left out  ")[0].split())
    for line in (
        "layers.1 of slices[0].sources[0] as 0 ",
        "layers.3 of slices[0].sources[0] as 2 ",
    ):
        assert line in text
    assert text.count("model.layers.") == 3


def test_a_modules_slice_is_called_by_its_place_there() -> None:
    model = {
        f"{side}.block.{i}.q": torch.ones(2) for side in ("encoder", "decoder") for i in (0, 1)
    }

    def slices(*stops):
        return {"slices": [{"sources": [source(model, 0, stop, weight=1)]} for stop in stops]}

    modules = {"encoder": slices(2), "decoder": slices(1, 3)}
    with pytest.raises(MergeError, match=r"^modules.decoder.slices\[1\]: layer_range \[0, 3\]"):
        mergekern.plan({"merge_method": "linear", "modules": modules})


def folder(path, model, **config) -> str:
    path.mkdir()
    save_file(model, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(config))
    return str(path)


def test_what_the_config_cannot_say_of_moved_layers(tmp_path) -> None:
    config = {"num_hidden_layers": DEPTH, "first_k_dense_replace": 2}
    made = folder(tmp_path / "a", A, **config)

    def notes(*runs):
        slices = [{"sources": [source(made, *run, weight=1)]} for run in runs]
        return [n for n in mergekern.plan({"merge_method": "linear", "slices": slices}).notes]

    assert notes((0, 3)) == []
    assert "first_k_dense_replace in the config goes by" in notes((1, 4))[0]


def test_modules_that_the_config_cannot_tell_apart_or_that_are_not_there(tmp_path) -> None:
    t5 = {f"{side}.block.{i}.q": torch.ones(2) for side in ("encoder", "decoder") for i in (0, 1)}
    made = folder(tmp_path / "t5", t5, num_layers=2)
    whole = {"models": [{"model": made, "parameters": {"weight": 1}}]}
    modules = {"encoder": {"slices": [{"sources": [source(made, 0, 1, weight=1)]}]}}
    recipe = {"merge_method": "linear", "modules": {**modules, "decoder": whole}}
    with pytest.raises(MergeError, match="one field for them all, num_layers: give it"):
        mergekern.plan(recipe)
    recipe["modules"] = {"encoder": whole, "decodr": whole}
    with pytest.raises(MergeError, match=r"^modules.decodr: no tensor .* encoder.block"):
        mergekern.plan(recipe)


def test_a_module_has_the_layers_and_gradients_of_its_own_models(tmp_path) -> None:
    def model(name, encoder, decoder):
        depths = {"encoder": encoder, "decoder": decoder}
        names = [f"{side}.block.{i}.q" for side, n in depths.items() for i in range(n)]
        config = {"num_layers": encoder, "num_decoder_layers": decoder}
        return folder(tmp_path / name, {n: torch.ones(2) for n in names}, **config)

    def whole(path):
        return {"models": [{"model": path, "parameters": {"weight": [0, 1]}}]}

    modules = {"encoder": whole(model("a", 2, 3)), "decoder": whole(model("b", 3, 5))}
    recipe = {"merge_method": "linear", "modules": modules, "parameters": {"normalize": False}}
    mergekern.merge(recipe, tmp_path / "out")
    made = load_file(tmp_path / "out/model.safetensors")
    assert [made[f"encoder.block.{i}.q"][0].item() for i in range(2)] == [0, 1]
    assert [made[f"decoder.block.{i}.q"][0].item() for i in range(5)] == [0, 0.25, 0.5, 0.75, 1]
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert (config["num_layers"], config["num_decoder_layers"]) == (2, 5)


def test_gradients_end_with_the_layers_that_only_some_models_have() -> None:
    deep = state(3, DEPTH + 2)
    recipe = {
        "merge_method": "linear",
        "models": [{"model": m, "parameters": {"weight": [0, 0.5, 1]}} for m in (A, deep)],
        "parameters": {"normalize": False},
    }
    made = mergekern.merge(recipe, mismatch="skip-model")
    last = f"model.layers.{DEPTH + 1}.q.weight"
    assert torch.equal(made[last], deep[last])
