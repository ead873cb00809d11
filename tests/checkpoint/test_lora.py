"""A base with an adapter reads as what peft's merge_and_unload() makes of them, and bit for bit as
the formula."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from adapters import CASES, Adapted, make
from reading import part, whole
from safetensors.torch import load_file, save_file

from mergekern.checkpoint import open_checkpoint
from mergekern.dtypes import BFLOAT16, FLOAT32
from mergekern.errors import CheckpointError

pytestmark = pytest.mark.filterwarnings("ignore")  # peft's and torch's own
ULPS = 4  # of the largest value of a tensor; peft adds up in another order

_made: dict[str, Adapted] = {}


@pytest.fixture
def adapted(request, tmp_path_factory) -> Adapted:
    """The case of that name, made once."""
    if request.param not in _made:
        _made[request.param] = make(tmp_path_factory.mktemp("adapted"), request.param)
    return _made[request.param]


def case(name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("adapted", [name], indirect=True)


@pytest.mark.parametrize("adapted", CASES, indirect=True)
def test_equals_what_peft_merges(adapted) -> None:
    checkpoint = open_checkpoint(adapted.base, lora=adapted.adapter)
    base = open_checkpoint(adapted.base)
    assert list(checkpoint.tensors) == list(base.tensors)
    changed = 0
    for name, wanted in adapted.merged.items():
        got = whole(checkpoint, name)
        ulp = torch.finfo(torch.float32).eps * wanted.abs().max()
        assert got.shape == wanted.shape and (got - wanted).abs().max() <= ULPS * ulp
        changed += not torch.equal(wanted, whole(base, name))
    touched = [name for name in base.tensors if checkpoint.tensors[name] != base.tensors[name]]
    assert changed == len(touched) > 0
    assert checkpoint.notes == ()


@pytest.mark.parametrize("adapted", ["linear", "conv1d dora", "experts", "saved"], indirect=True)
def test_any_stretch_has_the_bits_of_the_whole(adapted) -> None:
    checkpoint = open_checkpoint(adapted.base, lora=adapted.adapter)
    for name, info in checkpoint.tensors.items():
        flat = whole(checkpoint, name).flatten()
        buffer = np.empty(info.nbytes, np.uint8)
        for start, stop in ((0, info.numel), (info.numel // 3, info.numel - 1), (1, 2), (2, 2)):
            length = (stop - start) * info.dtype.itemsize
            got = part(checkpoint, name, start, stop, buffer[:length])
            assert torch.equal(got, flat[start:stop])


def product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """The sum over ranks, rounded step by step."""
    total = left[:, :1] * right[:1]
    for rank in range(1, len(right)):
        total = total + left[:, rank : rank + 1] * right[rank : rank + 1]
    return total


@case("patterns")
def test_bits_of_the_formula(adapted) -> None:
    checkpoint, weights = open_checkpoint(adapted.base, lora=adapted.adapter), adapted.factors
    base = load_file(adapted.base / "model.safetensors")
    # The first pattern that matches whole parts of the name's end counts.
    scales = {"0.self_attn.q_proj": 5 / 8, "1.self_attn.q_proj": 6 / 8, "1.mlp.down_proj": 3 / 2}
    for module, scale in scales.items():
        name = f"model.layers.{module}"
        a, b = (weights[f"base_model.model.{name}.lora_{k}.weight"] for k in "AB")
        wanted = base[f"{name}.weight"] + torch.tensor(scale) * product(b, a)
        assert torch.equal(whole(checkpoint, f"{name}.weight"), wanted)


@case("dora")
def test_bits_of_dora(adapted) -> None:
    checkpoint, weights = open_checkpoint(adapted.base, lora=adapted.adapter), adapted.factors
    base = load_file(adapted.base / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj"
    a, b = (weights[f"base_model.model.{name}.lora_{k}.weight"] for k in "AB")
    summed = base[f"{name}.weight"] + torch.tensor(8 / 4) * product(b, a)
    lanes = summed.double() ** 2  # as wide as there are partial sums: each has one number
    squares = torch.zeros(len(lanes), dtype=torch.float64)
    for column in lanes.T:
        squares = squares + column
    magnitude = weights[f"base_model.model.{name}.lora_magnitude_vector"]
    wanted = summed * (magnitude / squares.sqrt().float())[:, None]
    assert torch.equal(whole(checkpoint, f"{name}.weight"), wanted)


def test_rows_without_a_length_have_no_direction(tmp_path) -> None:
    """It is the merge that names the tensor, in its own words."""
    (tmp_path / "adapter").mkdir()
    save_file({"q.weight": torch.zeros(3, 2)}, tmp_path / "model.safetensors")
    factors = {"lora_A.weight": torch.ones(1, 2), "lora_B.weight": torch.zeros(3, 1)}
    factors["lora_magnitude_vector"] = torch.tensor([0.0, 1.0, torch.inf])
    weights = {f"q.{name}": factor for name, factor in factors.items()}
    save_file(weights, tmp_path / "adapter" / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "use_dora": True}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(settings))
    checkpoint = open_checkpoint(tmp_path / "model.safetensors", lora=tmp_path / "adapter")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert whole(checkpoint, "q.weight").isnan().all()


@case("linear")
def test_fp32_for_the_merge_and_the_bases_dtype_for_its_result(adapted, tmp_path) -> None:
    made = make(tmp_path, "linear", torch.bfloat16)
    checkpoint = open_checkpoint(made.base, lora=made.adapter)
    info = checkpoint.tensors["model.layers.0.self_attn.q_proj.weight"]
    assert (info.dtype, info.native, info.file) == (FLOAT32, BFLOAT16, "")
    other = checkpoint.tensors["model.layers.0.self_attn.k_proj.weight"]
    assert (other.dtype, other.native, other.file) == (BFLOAT16, None, "model.safetensors")
    for name, wanted in made.merged.items():
        assert torch.allclose(whole(checkpoint, name).float(), wanted, rtol=1e-5, atol=1e-6)


def saved_again(adapted: Adapted, folder: Path, rename=lambda key: key, **settings) -> Path:
    """A copy of the adapter with other keys or settings."""
    shutil.copytree(adapted.adapter, folder)
    config = json.loads((folder / "adapter_config.json").read_text()) | settings
    (folder / "adapter_config.json").write_text(json.dumps(config))
    weights = {rename(key): value for key, value in adapted.factors.items()}
    save_file({k: v for k, v in weights.items() if k}, folder / "adapter_model.safetensors")
    return folder


@case("dora")
@pytest.mark.parametrize("tail", [".default", ".other"])
def test_keys_with_the_adapters_name(adapted, tmp_path, tail) -> None:
    def rename(key: str) -> str:
        key = key.replace("lora_A", f"lora_A{tail}").replace("lora_B", f"lora_B{tail}")
        named = key.endswith(("vector", "embedding_A", "embedding_B"))
        return key + tail if named else key

    folder = saved_again(adapted, tmp_path / "adapter", rename)
    one, other = (open_checkpoint(adapted.base, lora=x) for x in (folder, adapted.adapter))
    assert all(torch.equal(whole(one, name), whole(other, name)) for name in one.tensors)


@case("saved")
def test_bin_files(adapted, tmp_path) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(adapted.adapter, folder)
    (folder / "adapter_model.safetensors").unlink()
    torch.save(adapted.factors, folder / "adapter_model.bin")
    one, other = (open_checkpoint(adapted.base, lora=x) for x in (folder, adapted.adapter))
    assert all(torch.equal(whole(one, name), whole(other, name)) for name in one.tensors)


@case("linear")
@pytest.mark.parametrize("change", ["", "model.model."], ids=["without model.", "more"])
def test_bases_saved_without_or_inside_another_model(adapted, tmp_path, change) -> None:
    state = load_file(adapted.base / "model.safetensors")
    state = {change + name.removeprefix("model."): value for name, value in state.items()}
    checkpoint = open_checkpoint(state, lora=adapted.adapter)
    wanted = open_checkpoint(adapted.base, lora=adapted.adapter)
    name = "layers.1.mlp.down_proj.weight"
    assert torch.equal(whole(checkpoint, change + name), whole(wanted, "model." + name))
    assert checkpoint.fingerprint == {}  # a base in memory cannot be known again


@case("linear")
def test_an_adapter_alone_finds_its_base(adapted, tmp_path) -> None:
    wanted = open_checkpoint(adapted.base, lora=adapted.adapter)
    alone = open_checkpoint(adapted.adapter)  # peft wrote the base's path into its config
    assert alone.label == str(adapted.adapter) and alone.folder == adapted.base
    assert all(torch.equal(whole(alone, name), whole(wanted, name)) for name in wanted.tensors)
    for given, message in (
        (None, "is a LoRA adapter and names no base; write the base before it: BASE"),
        ("./gone", "its base_model_name_or_path cannot be read .*gone: no such file or folder"),
    ):
        folder = saved_again(adapted, tmp_path / str(given is None), base_model_name_or_path=given)
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint(folder)


@case("linear")
def test_adapter_on_adapter(adapted, tmp_path) -> None:
    checkpoint = open_checkpoint(adapted.adapter, lora=adapted.adapter)
    once = open_checkpoint(adapted.base, lora=adapted.adapter)
    name = "model.layers.0.self_attn.q_proj.weight"
    step = whole(once, name) - load_file(adapted.base / "model.safetensors")[name]
    assert torch.allclose(whole(checkpoint, name) - whole(once, name), step, atol=1e-5)
    assert len(checkpoint.fingerprint) == len(checkpoint.states) == 5


@case("saved")
def test_what_the_files_are_known_by(adapted, tmp_path) -> None:
    folder = saved_again(adapted, tmp_path / "adapter")
    checkpoint = open_checkpoint(adapted.base, lora=folder)
    names = {f"adapter/adapter_{x}" for x in ("model.safetensors", "config.json")}
    assert set(checkpoint.fingerprint) == set(checkpoint.states) == {"model.safetensors", *names}
    assert checkpoint.tensors["lm_head.weight"].file in checkpoint.files  # read as any file is
    other = saved_again(adapted, tmp_path / "other", lora_alpha=5)
    assert open_checkpoint(adapted.base, lora=other).fingerprint != checkpoint.fingerprint
    checkpoint.verify_unchanged()
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"adapter_config.json: was changed while"):
        checkpoint.verify_unchanged()


@case("embeddings")
def test_resized_vocabulary(adapted, tmp_path) -> None:
    weights = adapted.factors
    for key in [key for key in weights if "embed_tokens" in key or "lm_head" in key]:
        del weights[key]
    more = torch.randn(50, 16)
    weights["base_model.model.model.embed_tokens.weight"] = more
    weights["base_model.model.lm_head.weight"] = more.clone()
    folder = saved_again(adapted, tmp_path / "adapter")
    save_file(weights, folder / "adapter_model.safetensors")
    checkpoint = open_checkpoint(adapted.base, lora=folder)
    assert torch.equal(whole(checkpoint, "lm_head.weight"), more)
    assert checkpoint.config["vocab_size"] == 50


@case("linear")
def test_what_is_noted(adapted, tmp_path) -> None:
    folder = saved_again(adapted, tmp_path / "adapter", made_by="someone", nothing=None)
    base = tmp_path / "base"
    shutil.copytree(adapted.base, base)
    (base / "tokenizer.json").write_text('{"model": {"a": 1}, "padding": null}')
    (folder / "tokenizer.json").write_text('{"model": {"a": 1}, "padding": {}}')
    (note,) = open_checkpoint(base, lora=folder).notes
    assert "adapter_config.json has settings that are not known: made_by" in note
    (folder / "tokenizer.json").write_text('{"model": {"a": 2}}')
    notes = open_checkpoint(base, lora=folder).notes
    assert "holds another tokenizer.json than the base's" in notes[1]


def test_heads_of_tied_models(tmp_path) -> None:
    """An adapter may hold a head of its own where the base repeats the embedding."""
    CASES["tied"] = (
        lambda: CASES["linear"][0](tie_word_embeddings=True),  # type: ignore[call-arg]
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
    )
    made = make(tmp_path, "tied")
    checkpoint = open_checkpoint(made.base, lora=made.adapter)
    assert list(checkpoint.tensors)[-1] == "lm_head.weight"


SETTINGS = {
    "another kind": ({"peft_type": "IA3"}, "peft_type is 'IA3'; only LORA adapters are read"),
    "alora": ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens is set: .*some tokens"),
    "tokens": ({"trainable_token_indices": [1]}, "trainable_token_indices is set: .*single tokens"),
    "qalora": ({"use_qalora": True}, "use_qalora is set: the adapter pools its inputs"),
    "pissa": ({"init_lora_weights": "pissa_niter_4"}, "belong to a base that this changed; save"),
    "rank": ({"r": 0}, "r is 0, wanted 1 or more"),
    "alpha": ({"lora_alpha": "16"}, "lora_alpha is '16', wanted 0 or more"),
    "half a rank": ({"r": 4.5}, "r is 4.5, wanted 1 or more, a whole number"),
    "alpha beyond floats": ({"lora_alpha": 10**400}, "lora_alpha is 1000.*, wanted 0 or more"),
    "parameters": (
        {"target_parameters": [3]},
        r"target_parameters is \[3\], wanted a list of name",
    ),
    "pattern": ({"rank_pattern": {"(": 4}}, r"rank_pattern: '\('"),
    "patterns": ({"alpha_pattern": [3]}, r"alpha_pattern is \[3\], wanted a mapping"),
    "other rank": ({"r": 5}, r"lora_A.weight': has shape \[4, \d+\], wanted \[5, \d+\] for model"),
    "dora": ({"use_dora": True}, "comes without a lora_magnitude_vector, unlike use_dora"),
}


@case("linear")
@pytest.mark.parametrize(("settings", "message"), SETTINGS.values(), ids=SETTINGS)
def test_settings_that_cannot_be_applied(adapted, tmp_path, settings, message) -> None:
    folder = saved_again(adapted, tmp_path / "adapter", **settings)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(adapted.base, lora=folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


Q = "base_model.model.model.layers.0.self_attn.q_proj"
KEYS = {
    "no such layer": (("layers.1", "layers.7"), "has no tensor model.layers.7.mlp.down_proj.weig"),
    "unknown part": (("q_proj.lora_A", "q_proj.lora_E"), "lora_E.weight': is of no kind that is"),
    "one factor": (("layers.0.self_attn.q_proj.lora_B", ""), "has no other factor beside it"),
    "other layer": (("self_attn.q_proj", "self_attn.k_proj"), r"wanted \[8, 4\] for .*k_proj.weig"),
    "two adapters": (("layers.1.mlp.down_proj.lora_A", "layers.0.mlp.down_proj.lora_A.b"), "more"),
    "no tensor": (("q_proj.lora_A", "q_proj.gate"), "has no other factor|has no tensor"),
}


@case("linear")
@pytest.mark.parametrize(("change", "message"), KEYS.values(), ids=KEYS)
def test_keys_that_fit_nothing(adapted, tmp_path, change, message) -> None:
    def rename(key: str) -> str:
        return "" if change[0] in key and not change[1] else key.replace(*change)

    folder = saved_again(adapted, tmp_path / "adapter", rename)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(adapted.base, lora=folder)
    assert "adapter_model.safetensors: key 'base_model." in str(caught.value)


@case("linear")
def test_bases_that_cannot_be_adapted(adapted) -> None:
    state = {k: v.double() for k, v in load_file(adapted.base / "model.safetensors").items()}
    with pytest.raises(CheckpointError, match="is float64, wanted float32, bfloat16 or float16"):
        open_checkpoint(state, lora=adapted.adapter)
    with pytest.raises(CheckpointError, match="cannot read an adapter from a dict; wanted a"):
        open_checkpoint(adapted.base, lora={})  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=r"is no LoRA adapter: it has no adapter_config"):
        open_checkpoint(adapted.base, lora=adapted.base)


@case("linear")
def test_models_of_peft_in_memory(adapted) -> None:
    from peft import LoraConfig, get_peft_model

    module = get_peft_model(CASES["linear"][0](), LoraConfig(target_modules=["q_proj"]))
    for given in (module, module.state_dict()):
        with pytest.raises(CheckpointError, match=r"holds PEFT's layers .*merge_and_unload"):
            open_checkpoint(given)
    assert open_checkpoint(module.merge_and_unload()).tensors
