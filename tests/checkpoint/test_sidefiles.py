"""Side files: what goes along, what stays, and a config.json that tells the truth about dtypes."""

from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, GenerationConfig

from mergekern.checkpoint import check_mergeable_config, open_checkpoint
from mergekern.checkpoint.config import with_dtype
from mergekern.checkpoint.sidefiles import write_side_files
from mergekern.dtypes import BFLOAT16, FLOAT16
from mergekern.errors import CheckpointError, OutputError

COPIED = [
    "added_tokens.json",
    "additional_chat_templates/rag.jinja",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "modeling_custom.py",
    "preprocessor_config.json",
    "processor_config.json",
    "qwen.tiktoken",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
]
LEFT_OUT = [
    ".gitattributes",
    "LICENSE",
    "License.txt",
    "README.md",
    "adapter_config.json",
    "all_results.json",
    "eval_results.json",
    "mergekern.lock.json",
    "model-00001-of-00002.safetensors",
    "model.safetensors",
    "model.safetensors.index.json",
    "optimizer.pt",
    "original/",
    "pytorch_model.bin",
    "requirements.txt",
    "rng_state.pth",
    "scheduler.pt",
    "trainer_state.json",
    "training_args.bin",
    "zero_to_fp32.py",
]


@pytest.fixture
def donor(tmp_path):
    folder = tmp_path / "donor"
    (folder / "additional_chat_templates").mkdir(parents=True)
    (folder / "original").mkdir()
    for name in COPIED + [name for name in LEFT_OUT if name[-1] != "/"]:
        (folder / name).write_bytes(f"of {name}\r\n".encode())
    (folder / "config.json").write_text('{"z": 1, "torch_dtype": "float32", "a": "ü"}')
    save_file({"w": torch.ones(1)}, folder / "model.safetensors")
    return folder


@pytest.fixture
def output(tmp_path):
    folder = tmp_path / "output"
    folder.mkdir()
    return folder


def test_copies_all_but_weights(donor, output) -> None:
    found = write_side_files(open_checkpoint(donor), output, BFLOAT16)
    assert list(found.copied) == sorted(COPIED)
    assert list(found.left_out) == sorted(LEFT_OUT)
    written = sorted(str(p.relative_to(output)) for p in output.rglob("*") if p.is_file())
    assert written == sorted(COPIED)
    for name in set(COPIED) - {"config.json"}:
        assert (output / name).read_bytes() == (donor / name).read_bytes()
    text = (output / "config.json").read_text()
    assert text == '{\n  "z": 1,\n  "torch_dtype": "bfloat16",\n  "a": "ü"\n}\n'


def test_config_is_written_last(donor, output, monkeypatch) -> None:
    targets = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (targets.append(b.name), replace(a, b)))
    write_side_files(open_checkpoint(donor), output, None)
    assert targets[-1] == "config.json" and len(targets) == len(COPIED)
    assert json.loads((output / "config.json").read_text())["torch_dtype"] == "float32"


def test_in_memory_donors_give_their_configs(llama, output, monkeypatch) -> None:
    monkeypatch.setattr(llama.generation_config, "temperature", 0.3)
    found = write_side_files(open_checkpoint(llama), output, FLOAT16)
    assert (found.copied, found.left_out) == (("config.json", "generation_config.json"), ())
    assert GenerationConfig.from_pretrained(output).temperature == 0.3
    config = AutoConfig.from_pretrained(output)
    assert (config.model_type, config.hidden_size, config.dtype) == ("llama", 32, torch.float16)
    assert config.architectures == ["LlamaForCausalLM"]


def test_state_dicts_have_no_side_files(output) -> None:
    found = write_side_files(open_checkpoint({"w": torch.ones(1)}), output, FLOAT16)
    assert (found.copied, found.left_out) == ((), ()) and not list(output.iterdir())


def test_what_transformers_saves(llama, tmp_path, output) -> None:
    llama.generation_config = GenerationConfig(max_new_tokens=7)
    llama.to(torch.float32).save_pretrained(tmp_path / "saved")
    write_side_files(open_checkpoint(tmp_path / "saved"), output, BFLOAT16)
    before = json.loads((tmp_path / "saved/config.json").read_text())
    after = json.loads((output / "config.json").read_text())
    assert before["dtype"] == "float32"
    assert list(after.items()) == list((before | {"dtype": "bfloat16"}).items())
    assert GenerationConfig.from_pretrained(output).max_new_tokens == 7


def test_links_are_followed(donor, output, tmp_path) -> None:
    blob = tmp_path / "blob"
    blob.write_text("tokens")
    (donor / "vocab.json").unlink()
    (donor / "vocab.json").symlink_to(blob)
    write_side_files(open_checkpoint(donor), output, None)
    assert not (output / "vocab.json").is_symlink()
    assert (output / "vocab.json").read_text() == "tokens"


def test_failures_name_the_file(donor, output, tmp_path) -> None:
    (output / "vocab.txt").mkdir()
    with pytest.raises(OutputError, match=r"output/vocab.txt: cannot be written: Is a directory"):
        write_side_files(open_checkpoint(donor), output, None)
    (donor / "vocab.json").unlink()
    (donor / "vocab.json").symlink_to(tmp_path / "gone")
    with pytest.raises(CheckpointError, match=r"donor/vocab.json: cannot be read: No such file"):
        write_side_files(open_checkpoint(donor), output, None)
    assert not (output / "config.json").exists()


CONFIGS = {
    "newer": ({"a": 1, "dtype": "float32"}, {"a": 1, "dtype": "bfloat16"}),
    "older": ({"torch_dtype": "float32"}, {"torch_dtype": "bfloat16"}),
    "both": (
        {"torch_dtype": "float32", "dtype": "float32"},
        {"torch_dtype": "bfloat16", "dtype": "bfloat16"},
    ),
    "none": ({"a": 1}, {"a": 1, "dtype": "bfloat16"}),
    "null": ({"torch_dtype": None}, {"torch_dtype": "bfloat16"}),
    "inside": (
        {"text_config": {"torch_dtype": "float16", "n": 1, "audio_config": {"dtype": "float64"}}},
        {
            "text_config": {
                "torch_dtype": "bfloat16",
                "n": 1,
                "audio_config": {"dtype": "bfloat16"},
            },
            "dtype": "bfloat16",
        },
    ),
    "null inside": (
        {"dtype": "float32", "vision_config": {"dtype": None}},
        {"dtype": "bfloat16", "vision_config": {"dtype": None}},
    ),
    "not a config": (
        {"dtype": "float32", "extra": {"dtype": "float32"}},
        {"dtype": "bfloat16", "extra": {"dtype": "float32"}},
    ),
}


@pytest.mark.parametrize(("before", "after"), CONFIGS.values(), ids=CONFIGS)
def test_with_dtype(before, after) -> None:
    kept = json.dumps(before)
    assert json.dumps(with_dtype(before, BFLOAT16)) == json.dumps(after)  # order too
    assert json.dumps(before) == kept


def test_config_that_is_no_json(output) -> None:
    class Odd(torch.nn.Linear):
        class config:
            @staticmethod
            def to_dict() -> dict[str, object]:
                return {"dtype": torch.float32, "odd": object()}

    with pytest.raises(CheckpointError, match="Odd: its config cannot be written as JSON: Object"):
        write_side_files(open_checkpoint(Odd(1, 1)), output, None)
    assert not list(output.iterdir())


QUANTISED = {
    "plain": {"quantization_config": {"quant_method": "gptq"}},
    "inside": {"text_config": {"quantization_config": {"quant_method": "gptq"}}},
}


@pytest.mark.parametrize("config", QUANTISED.values(), ids=QUANTISED)
def test_quantised_models_are_refused(config) -> None:
    message = r"org/x: its config.json has a quantization_config \(gptq\): .* dequantise it first"
    with pytest.raises(CheckpointError, match=message):
        check_mergeable_config(config, "org/x")


def test_other_models_are_not() -> None:
    check_mergeable_config({"quantization_config": None, "text_config": {"n": 1}}, "org/x")
    with pytest.raises(CheckpointError, match="has a compression_config: quantised"):
        check_mergeable_config({"compression_config": "x"}, "org/x")


@pytest.mark.parametrize("name", ["config.json", "vocab.txt"])
def test_a_pipe_is_refused_and_not_waited_for(donor, output, name) -> None:
    (donor / name).unlink()
    os.mkfifo(donor / name)
    with pytest.raises(CheckpointError, match="is not a regular file"):
        write_side_files(open_checkpoint(donor), output, None)
