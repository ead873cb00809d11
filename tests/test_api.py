"""merge() and plan() from end to end: folders that load, state dicts, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from models import tiny_llama
from transformers import AutoModelForCausalLM

import mergekern
from mergekern.errors import (
    CheckpointError,
    MismatchError,
    NonFiniteError,
    OutputError,
    RecipeError,
)
from mergekern.methods import get_method

METHODS = [method.name for method in mergekern.methods()]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("inputs")
    made = {name: tiny_llama(root / name, seed) for seed, name in enumerate(["base", "a", "b"])}
    made["tied"] = tiny_llama(root / "tied", 3, tie=True)
    made["tied_base"] = tiny_llama(root / "tied_base", tie=True)
    made["larger"] = tiny_llama(root / "larger", 4, vocabulary=70)
    return made


def weights(folder: Path) -> dict[str, torch.Tensor]:
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.state_dict()


def test_a_plain_average_loads_and_is_right(folders, tmp_path) -> None:
    report = mergekern.merge("linear", models=[folders["a"], folders["b"]], output=tmp_path / "o")
    got, a, b = (weights(folder) for folder in (tmp_path / "o", folders["a"], folders["b"]))
    for name, tensor in got.items():
        want = ((a[name].float() + b[name].float()) / 2).bfloat16()
        assert torch.equal(tensor, want), name
    assert isinstance(report, mergekern.MergeReport)
    assert report.tensors == len(report.merged) == len(got)
    assert not report.resumed
    assert "tensors merged, 0 copied, 0 left out" in str(report)
    config = json.loads((tmp_path / "o" / "config.json").read_text())
    assert config["model_type"] == "llama"
    assert (tmp_path / "o" / "README.md").read_text().startswith("---\n")
    lock = json.loads((tmp_path / "o" / "mergekern.lock.json").read_text())
    assert lock["models"][0]["model"] == str(folders["a"])


def statistics_of(state: dict[str, torch.Tensor], diagonals: bool) -> dict[str, torch.Tensor]:
    if diagonals:
        return {name: weight.float() ** 2 for name, weight in state.items()}
    return {name: w.float().T @ w.float() for name, w in state.items() if "_proj" in name}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_makes_a_model_that_runs(folders, tmp_path, method) -> None:
    base, a, b = (folders[name] for name in ("base", "a", "b"))
    calls: dict[str, dict[str, Any]] = {
        "linear": {"models": [a, b]},
        "passthrough": {"models": [a], "scale": 0.9},
        "slerp": {"base": base, "models": [a], "t": 0.3},
        "nearswap": {"base": base, "models": [a], "t": 1e-3},
        "arcee_fusion": {"base": base, "models": [a]},
    }
    call = calls.get(method, {"base": base, "models": [a, b]})
    if get_method(method).statistics:
        elementwise = get_method(method).statistics in ("fisher", "masks")
        call["statistics"] = [statistics_of(weights(m), elementwise) for m in (a, b)]
    if any(p.name == "density" for p in get_method(method).parameters):
        call["density"] = 0.5
    if get_method(method).container:
        mergekern.merge(method, output=tmp_path / "c", **call)
        mergekern.materialise(tmp_path / "c", tmp_path / "o", task="b")
    else:
        mergekern.merge(method, output=tmp_path / "o", **call)
    weights(tmp_path / "o")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "o")
    assert torch.isfinite(model(torch.tensor([[1, 2, 3]])).logits).all()


def test_disk_and_memory_agree(folders, tmp_path) -> None:
    names = ("base", "a", "b")
    base, a, b = (
        AutoModelForCausalLM.from_pretrained(folders[name], dtype="auto").state_dict()
        for name in names
    )
    options = {"density": 0.3, "weight": [0.4, 0.7], "seed": 5}
    state = mergekern.merge("dare_ties", base=base, models=[a, b], **options)
    assert isinstance(state, dict)
    inputs = {"base": folders["base"], "models": [folders["a"], folders["b"]]}
    mergekern.merge("dare_ties", **inputs, output=tmp_path / "o", **options)
    written = weights(tmp_path / "o")
    assert set(written) == set(state)
    assert all(torch.equal(written[name], state[name]) for name in state)


def test_a_recipe_file_and_a_call_write_the_same_bytes(folders, tmp_path) -> None:
    recipe = {
        "merge_method": "ties",
        "models": [
            {"model": str(folders["a"]), "parameters": {"weight": 0.5, "density": 0.2}},
            {"model": str(folders["b"]), "parameters": {"weight": "3e-1", "density": 0.4}},
        ],
        "base_model": str(folders["base"]),
        "dtype": "float32",
    }
    (tmp_path / "r.yml").write_text(yaml.safe_dump(recipe))
    mergekern.merge(tmp_path / "r.yml", output=tmp_path / "file")
    mergekern.merge(recipe, output=tmp_path / "mapping")
    mergekern.merge(
        "ties",
        base=folders["base"],
        models=[folders["a"], folders["b"]],
        weight=[0.5, 0.3],
        density=[0.2, 0.4],
        dtype=torch.float32,
        output=str(tmp_path / "call"),
        threads=1,
        max_shard_size="1MB",
    )
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("file", "mapping")]
    assert files[0] == files[1] == (tmp_path / "call" / "model.safetensors").read_bytes()
    assert json.loads((tmp_path / "call" / "config.json").read_text())["dtype"] == "float32"


def test_tied_models_stay_tied(folders, tmp_path) -> None:
    mergekern.merge(
        "ties", base=folders["tied_base"], models=[folders["tied"]], output=tmp_path / "o"
    )
    state = weights(tmp_path / "o")
    assert state["lm_head.weight"].data_ptr() == state["model.embed_tokens.weight"].data_ptr()


def test_a_tied_expert_of_an_untied_base_gives_its_embedding_twice(folders, tmp_path) -> None:
    mergekern.merge(
        "task_arithmetic", base=folders["base"], models=[folders["tied"]], output=tmp_path / "o"
    )
    got, base, tied = (weights(f) for f in (tmp_path / "o", folders["base"], folders["tied"]))
    head = base["lm_head.weight"].float()
    delta = tied["model.embed_tokens.weight"].float() - head
    assert torch.equal(got["lm_head.weight"], (head + delta).bfloat16())


def test_shared_storage_in_memory_stays_shared() -> None:
    def model(value: float) -> dict[str, torch.Tensor]:
        weight = torch.full((3, 2), value)
        return {"model.embed_tokens.weight": weight, "lm_head.weight": weight}

    state = mergekern.merge("linear", models=[model(1.0), model(2.0)])
    assert isinstance(state, dict)
    assert state["lm_head.weight"] is state["model.embed_tokens.weight"]
    assert state["lm_head.weight"].tolist() == [[1.5, 1.5]] * 3


def test_vocabularies_of_different_size(folders, tmp_path) -> None:
    inputs = {"base": folders["base"], "models": [folders["a"], folders["larger"]]}
    with pytest.raises(MismatchError, match=r"larger has shape \[70, 32\].*different size"):
        mergekern.merge("ties", **inputs, output=tmp_path / "o")
    assert not (tmp_path / "o").exists()
    report = mergekern.merge("ties", **inputs, output=tmp_path / "o", mismatch="skip-model")
    assert isinstance(report, mergekern.MergeReport)
    assert {gone.tensor for gone in report.dropped} == {
        "lm_head.weight",
        "model.embed_tokens.weight",
    }
    assert weights(tmp_path / "o")["lm_head.weight"].shape == (64, 32)


def test_integers_that_differ_are_an_error(tmp_path) -> None:
    def state(value: int) -> dict[str, torch.Tensor]:
        return {"w": torch.zeros(2), "ids": torch.tensor([value])}

    assert isinstance(mergekern.merge("linear", models=[state(1), state(1)]), dict)
    with pytest.raises(MismatchError, match="ids"):
        mergekern.merge("linear", models=[state(1), state(2)])


def test_the_output_may_not_overlap_an_input(folders) -> None:
    models = [folders["a"], folders["b"]]
    for output in (folders["a"], folders["a"] / "merged", folders["a"].parent):
        with pytest.raises(OutputError, match=r"overlaps the folder of input .*choose another"):
            mergekern.merge("linear", models=models, output=output)
    with pytest.raises(OutputError, match="give output="):
        mergekern.merge("linear", models=models)
    single = [folder / "model.safetensors" for folder in models]
    with pytest.raises(OutputError, match="overlaps the folder"):
        mergekern.merge("linear", models=single, output=folders["b"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "coda"}, r"device is 'coda'; did you mean 'cuda'\?; want auto, cpu, cuda or"),
        ({"device": "cuda:x"}, "device is 'cuda:x'"),
        ({"backend": "cpx"}, "backend is 'cpx'; did you mean 'cpu'"),
        ({"device": "cuda", "backend": "cpu"}, "backend 'cpu' merges on the CPU, not on 'cuda'"),
        ({"device": "cpu", "backend": "cuda"}, "backend 'cuda' merges on a GPU"),
        ({"max_device_memory": "lots"}, "max_device_memory is 'lots'; want a size"),
        ({"max_memory": "lots"}, "max_memory is 'lots'; want a size"),
        ({"max_shard_size": 0}, "max_shard_size is 0; want a size"),
        ({"mismatch": "ignore"}, "mismatch is 'ignore'"),
        ({"lamda_": 1}, "no parameter 'lamda_'; did you mean 'lambda'?"),
        ({"dtype": "int8"}, "dtype 'int8' is not one of"),
    ],
)
def test_wrong_arguments_are_named(options, message) -> None:
    base, model = {"w": torch.zeros(2)}, {"w": torch.ones(2)}
    with pytest.raises(RecipeError, match=message):
        mergekern.merge("ties", base=base, models=[model], **options)


def test_a_plan_reads_headers_and_prints_itself(folders, tmp_path) -> None:
    made = mergekern.plan(
        "ties", base=folders["base"], models=[folders["a"]], preset="paper", max_memory="4GiB"
    )
    assert isinstance(made, mergekern.Plan)
    assert made.memory is not None
    text = str(made)
    assert "scope=model" in text
    assert "memory" in text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("output", [5, "", "x" * 300, "a\0b"])
def test_an_output_that_is_no_path_is_refused(folders, output) -> None:
    with pytest.raises(OutputError, match=r"output is|cannot be written"):
        mergekern.merge("linear", models=[folders["a"], folders["b"]], output=output)


@pytest.mark.parametrize("threads", [0, -1, 2.5, "two"])
def test_a_number_of_threads_that_is_none_is_refused(threads) -> None:
    state = {"w": torch.ones(3)}
    with pytest.raises(RecipeError, match="threads is"):
        mergekern.merge("linear", models=[state], threads=threads)


def test_a_path_too_long_for_the_disk_is_not_found() -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        mergekern.merge("linear", models=["a/" + "x" * 300 + "/b"], output="never")


def test_one_storage_in_a_model_that_ties_nothing_is_written_under_both_names(
    folders, tmp_path
) -> None:
    for name in ("a", "b"):
        model = AutoModelForCausalLM.from_pretrained(folders[name])
        model.config.save_pretrained(tmp_path / name)
        state = model.state_dict()
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
        torch.save(state, tmp_path / name / "pytorch_model.bin")
    models = [tmp_path / "a", tmp_path / "b"]
    mergekern.merge("linear", models=models, output=tmp_path / "o")
    got = weights(tmp_path / "o")
    assert torch.equal(got["lm_head.weight"], got["model.embed_tokens.weight"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float8_e4m3fn])
def test_what_is_copied_must_be_finite_too(dtype) -> None:
    base = {"w": torch.ones(3), "x": torch.tensor([1, float("nan")]).to(dtype)}
    with pytest.raises(NonFiniteError, match="x: NaN or Inf in base"):
        mergekern.merge("ties", base=base, models=[{"w": torch.ones(3)}], mismatch="base")


def test_a_merge_without_a_config_says_so(tmp_path) -> None:
    state = {"w": torch.ones(3)}
    report = mergekern.merge("linear", models=[state], output=tmp_path / "o")
    assert "note: models[0] has no config.json" in str(report)


def test_the_second_argument_is_the_output(folders, tmp_path) -> None:
    recipe = {"merge_method": "linear", "models": [{"model": str(folders[n])} for n in "ab"]}
    options = {"random_seed": 3, "out_shard_size": "1B", "write_model_card": False, "cuda": False}
    mergekern.merge(recipe, tmp_path / "o", copy_tokenizer=False, options=options, num_threads=1)
    assert not (tmp_path / "o/README.md").exists()
    with pytest.raises(RecipeError, match="options: there is no option 'speed'"):
        mergekern.merge(recipe, tmp_path / "p", options={"speed": 9})


def test_crimes_are_allowed_by_name(folders, tmp_path) -> None:
    (tmp_path / "b").mkdir()
    for path in Path(folders["b"]).iterdir():
        (tmp_path / "b" / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "b/config.json").read_text()) | {"model_type": "mistral"}
    (tmp_path / "b/config.json").write_text(json.dumps(config))
    models = [folders["a"], tmp_path / "b"]
    with pytest.raises(MismatchError, match="--allow-crimes goes by names and shapes"):
        mergekern.merge("linear", models=models, output=tmp_path / "o")
    mergekern.merge("linear", models=models, output=tmp_path / "o", allow_crimes=True)
    assert json.loads((tmp_path / "o/config.json").read_text())["model_type"] == "llama"
