import json
from dataclasses import replace

import pytest
import torch

from mergekern.demo import lab as lab_module
from mergekern.demo import train
from mergekern.demo.lab import Settings, open_lab, train_missing
from mergekern.errors import MergeError

TINY = Settings(
    vocabulary=300,
    hidden=16,
    layers=1,
    heads=2,
    kv_heads=1,
    base_steps=3,
    base_batch=4,
    expert_steps=2,
    expert_batch=4,
    tested=8,
)


def make(lab, *names):
    steps = []
    for name in names:
        train.make(lab.folder, name, lab.settings, lambda at: steps.append(at))
    return steps


def weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_models_are_ordinary_checkpoints_and_depend_on_the_seed_alone(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    first, again = open_lab(tmp_path / "a", TINY), open_lab(tmp_path / "b", TINY)
    other = open_lab(tmp_path / "a", replace(TINY, seed=1))
    assert make(first, "base", "math") == [1, 2, 3, 1, 2]
    make(again, "base", "math")
    make(other, "base")
    for name in ("base", "math"):
        for key, value in weights(first.folder / name).items():
            assert torch.equal(value, weights(again.folder / name)[key])
    assert any(
        not torch.equal(value, weights(other.base)[key])
        for key, value in weights(first.base).items()
    )

    model = AutoModelForCausalLM.from_pretrained(first.experts["math"])
    tokenizer = AutoTokenizer.from_pretrained(first.experts["math"])
    assert model.dtype == torch.bfloat16
    assert model.generation_config.max_new_tokens == 32
    chat = [{"role": "user", "content": "How many?"}]
    prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert prompt == "User: How many?\nAssistant:"
    assert tokenizer.decode(tokenizer(prompt)["input_ids"]) == prompt
    assert len(tokenizer("12", add_special_tokens=False)["input_ids"]) == 2
    assert [*first.folder.glob(".*")] == []


def test_a_lab_is_keyed_by_its_settings_and_keeps_its_items(tmp_path):
    lab = open_lab(tmp_path, TINY)
    assert open_lab(tmp_path, TINY).folder == lab.folder
    assert open_lab(tmp_path, replace(TINY, base_rate=1e-3)).folder != lab.folder
    items = [json.loads(line) for line in (lab.data / "math.jsonl").read_text().splitlines()]
    assert len(items) == 8
    assert items[0].keys() == {"prompt", "answer", "number"}
    assert lab.missing() == ["base", "math", "coding", "safety"]


def test_only_missing_models_are_trained_the_base_first(tmp_path, monkeypatch):
    lab = open_lab(tmp_path, TINY)
    calls = []

    def run(lab, names, threads, report):
        calls.append((names, threads))
        for name in names:
            (lab.folder / name).mkdir()

    monkeypatch.setattr(lab_module, "_run_workers", run)
    lab.experts["coding"].mkdir()
    train_missing(lab, 4, lambda name, step: None)
    assert calls == [(["base"], 2), (["math", "safety"], 1)]
    train_missing(lab, 4, lambda name, step: None)
    assert len(calls) == 2


def test_a_failing_worker_is_reported_and_leaves_no_model(tmp_path):
    lab = open_lab(tmp_path, TINY)
    (lab.folder / "settings.json").write_text("{}}")
    with pytest.raises(MergeError, match=r"(?s)training the demo's base model failed.*Extra data"):
        train_missing(lab, 1, lambda name, step: None)
    assert lab.missing()[0] == "base"


def test_a_killed_worker_leaves_no_model(tmp_path):
    lab = open_lab(tmp_path, replace(TINY, base_steps=2_000))
    log = tmp_path / "log"
    worker = lab_module._start(lab, "base", 1, log)
    assert worker.stdout is not None
    with worker.stdout as lines:
        first = lines.readline()
        worker.kill()
        worker.wait()
    assert first == "1\n", log.read_text()
    assert lab.missing()[0] == "base"
