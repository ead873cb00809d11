from dataclasses import replace

import pytest
import torch
from labs import TINY

from mergekern.errors import MergeError
from mergekern.lab import lab as lab_module
from mergekern.lab import train
from mergekern.lab.domains import DOMAINS
from mergekern.lab.lab import open_lab, read_settings, train_missing


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


def test_a_lab_is_keyed_by_its_settings(tmp_path):
    lab = open_lab(tmp_path, TINY)
    assert open_lab(tmp_path, TINY).folder == lab.folder
    assert open_lab(tmp_path, replace(TINY, base_rate=1e-3)).folder != lab.folder
    assert lab.missing() == ["base", *DOMAINS]
    assert read_settings(lab.folder) == TINY
    fewer = open_lab(tmp_path, replace(TINY, domains=("math", "safety")))
    assert fewer.missing() == ["base", "math", "safety"]
    assert read_settings(fewer.folder).taught == ("math", "safety", "general")


def test_an_expert_replays_the_others_as_the_base_saw_them():
    base, expert = train.mixture(TINY, "base"), train.mixture(TINY, "math")
    assert base.keys() == {*DOMAINS, "general"} and expert.keys() == set(DOMAINS)
    for mix in (base, expert):
        assert sum(share for share, _ in mix.values()) == pytest.approx(1.0)
    assert expert["math"] == (TINY.own_share, 0.0)
    assert base["math"][1] == expert["coding"][1] == TINY.carelessness


def test_only_missing_models_are_trained_the_base_first(tmp_path, monkeypatch):
    lab = open_lab(tmp_path, TINY)
    calls = []

    def run(lab, names, threads, at_once, report):
        if names:
            calls.append((names, threads, at_once))
        for name in names:
            (lab.folder / name).mkdir()

    monkeypatch.setattr(lab_module, "_run_workers", run)
    lab.experts["coding"].mkdir()
    train_missing(lab, 4, lambda name, step: None)
    others = ["instruction", "math", "multilingual", "safety"]
    assert calls == [(["base"], 2, 1), (others, 1, 4)]
    train_missing(lab, 4, lambda name, step: None)
    assert len(calls) == 2


def test_a_failing_worker_is_reported_and_leaves_no_model(tmp_path):
    lab = open_lab(tmp_path, TINY)
    (lab.folder / "settings.json").write_text("{}}")
    with pytest.raises(MergeError, match=r"(?s)training the lab's base model failed.*Extra data"):
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


def test_a_failure_ends_the_workers_that_are_running(tmp_path):
    """An expert of a base that is not there fails at once; the base, in training, is ended."""
    lab = open_lab(tmp_path, replace(TINY, base_steps=100_000))
    with pytest.raises(MergeError, match="training the lab's math model failed"):
        lab_module._run_workers(lab, ["base", "math"], 1, 2, lambda name, step: None)
    assert lab.missing()[:2] == ["base", "instruction"]
