"""collect masks: the steps in float64, what a kill costs, and that training pays."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from collected import TEXTS, speaking, texts
from folders import load, write_model
from safetensors import safe_open
from safetensors.torch import load_file
from typer.testing import CliRunner

import mergekern
from mergekern.cli import app
from mergekern.collect import masks, store
from mergekern.errors import CollectError, OutputError

KINDS = ("llama", "gemma2", "gpt2")
TRAINED: dict[str, Any] = {"sparsity": 0.2, "rate": 1e4, "l1": 0.3, "epochs": 3}
State = dict[str, torch.Tensor]


def opened(folder: Path, dtype: torch.dtype = torch.float64) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def mean_loss(model: Any, folder: Path) -> torch.Tensor:
    """The mean over texts of their mean over tokens."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = [tokenizer(text, return_tensors="pt")["input_ids"] for text in TEXTS]
    return torch.stack([model(input_ids=each, labels=each).loss for each in ids]).mean()


def tuned(folder: Path, base: Path, kind: str) -> Path:
    """The base with some steps on the texts, in a folder with its tokenizer."""
    speaking(folder, kind)
    model = opened(base, torch.float32)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(12):
        optimizer.zero_grad()
        mean_loss(model, base).backward()
        optimizer.step()
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Of each kind a model and its base."""
    root = tmp_path_factory.mktemp("masked")
    found = {}
    for kind in KINDS:
        base = speaking(root / f"{kind}-base", kind)
        found[kind] = tuned(root / kind, base, kind), base
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return texts(tmp_path_factory.mktemp("texts"))


def collect(pair: tuple[Path, Path], data: Path, path: Path, **options: Any) -> State:
    """The masks, unpacked, and False in a mask for every tensor that has none."""
    model, base = pair
    given = {"samples": len(TEXTS), "device": "cpu", **TRAINED, **options}
    mergekern.collect("masks", model, data, base=base, output=path, **given)
    shapes = said(path)["shapes"]
    found = load_file(path)
    assert found.keys() == shapes.keys()
    return {name: unpacked(found[name], shape) for name, shape in shapes.items()}


def unpacked(bits: torch.Tensor, shape: list[int]) -> torch.Tensor:
    numel = int(np.prod(shape))
    flags = [bool(bits[place // 8] >> (place % 8) & 1) for place in range(numel)]
    assert len(bits) == -(-numel // 8)
    assert not any(bits[place // 8] >> (place % 8) & 1 for place in range(numel, 8 * len(bits)))
    return torch.tensor(flags).reshape(shape)


def said(path: Path) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        found: dict[str, Any] = json.loads(file.metadata()["mergekern"])
    return found


def logits_by_hand(
    pair: tuple[Path, Path], sparsity: float, rate: float, l1: float, epochs: int
) -> State:
    """The whole model in float64, by the formula."""
    model, (expert, base) = opened(pair[1]), map(opened, pair)
    ends = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    weights = {n: w for n, w in model.named_parameters() if id(w) not in ends}
    start, stop = dict(base.named_parameters()), dict(expert.named_parameters())
    deltas = {n: (stop[n] - start[n]).detach() for n in weights}
    flat = torch.cat([d.abs().flatten() for d in deltas.values()])
    least = flat.sort(descending=True).values[int(sparsity * len(flat)) - 1]
    logits = {n: torch.where(d.abs() >= least, 3.0, -3.0).double() for n, d in deltas.items()}
    for _ in range(epochs):
        with torch.no_grad():
            for n, w in weights.items():
                w.copy_(start[n] + logits[n].sigmoid() * deltas[n])
        model.zero_grad()
        mean_loss(model, pair[1]).backward()
        for n, w in weights.items():
            s = logits[n].sigmoid()
            logits[n] = logits[n] - (rate * w.grad * deltas[n] + l1) * s * (1 - s)
    return logits


@pytest.mark.parametrize("kind", KINDS)
def test_the_steps(
    kind: str, pairs: dict[str, tuple[Path, Path]], data: Path, tmp_path: Path
) -> None:
    found = collect(pairs[kind], data, tmp_path / "masks.safetensors")
    wanted = logits_by_hand(pairs[kind], **TRAINED)
    strip = "transformer." if kind == "gpt2" else ""
    named = {name if name in found else name.removeprefix(strip): s for name, s in wanted.items()}
    assert found.keys() == named.keys()
    unsure = sum(int((s.abs() < 0.02).sum()) for s in named.values())
    wrong = sum(int((found[n] != (s > 0)).sum()) for n, s in named.items())
    of = sum(s.numel() for s in named.values())
    assert wrong <= unsure < of / 100
    begun = logits_by_hand(pairs[kind], **TRAINED | {"epochs": 0})
    moved = sum(int(((s > 0) != (begun[n] > 0)).sum()) for n, s in wanted.items())
    assert moved > of / 100  # or the comparison would be of the beginning
    about = said(tmp_path / "masks.safetensors")
    assert about["marked"] == sum(int(m.sum()) for m in found.values()) and about["of"] == of
    assert about["question"]["options"] | TRAINED == about["question"]["options"]


def test_masks_begin_with_the_largest_deltas(
    pairs: dict[str, tuple[Path, Path]], data: Path, tmp_path: Path
) -> None:
    """Over all that takes part, equal ones together; what did not change is in no mask."""
    model, base = pairs["llama"]
    state = load(model)
    state["model.norm.weight"] = load(base)["model.norm.weight"]
    state["model.layers.0.mlp.up_proj.weight"] = load(base)["model.layers.0.mlp.up_proj.weight"] + 9
    changed = write_model(tmp_path / "changed", state)
    for side in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (changed / side).write_bytes((model / side).read_bytes())
    for place, sparsity in enumerate((1e-9, 0.05, 0.3, 1.0)):
        path = tmp_path / f"{place}.safetensors"
        found = collect((changed, base), data, path, epochs=0, sparsity=sparsity)
        deltas = {n: (state[n] - load(base)[n]).abs() for n in found}
        flat = torch.cat([d.flatten() for d in deltas.values()]).sort(descending=True).values
        least = flat[max(1, int(sparsity * len(flat))) - 1]
        for name, mask in found.items():
            assert torch.equal(mask, (deltas[name] >= least) & (deltas[name] > 0)), name
        assert not found["model.norm.weight"].any()


def test_training_pays(pairs: dict[str, tuple[Path, Path]], data: Path, tmp_path: Path) -> None:
    """The loss with trained masks is lower than with as many of the largest deltas."""
    model, base = pairs["llama"]
    options: dict[str, Any] = {"rate": 1e4, "l1": 0.0, "epochs": 6}
    collect((model, base), data, tmp_path / "trained.safetensors", **options)
    about = said(tmp_path / "trained.safetensors")
    options = {"epochs": 0, "sparsity": about["marked"] / about["of"]}
    collect((model, base), data, tmp_path / "largest.safetensors", **options)
    assert abs(said(tmp_path / "largest.safetensors")["marked"] - about["marked"]) <= 1
    losses = {}
    for name in ("trained", "largest"):
        file = tmp_path / f"{name}.safetensors"
        given: dict[str, Any] = {"base": base, "models": [model], "statistics": [file]}
        mergekern.merge("stitch", output=tmp_path / name, **given)
        losses[name] = float(mean_loss(opened(tmp_path / name), base).detach())
    losses["base"] = float(mean_loss(opened(base), base).detach())
    assert losses["trained"] < losses["largest"] - 0.05 < losses["base"] - 0.05, losses


def test_a_kill_costs_what_was_not_finished(
    pairs: dict[str, tuple[Path, Path]],
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, path = tmp_path / "whole.safetensors", tmp_path / "out.safetensors"
    collect(pairs["llama"], data, whole)
    likelihood = masks.log_likelihood
    calls: list[int] = []

    def stopping(after: int) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            calls.append(1)
            if len(calls) == after:
                raise KeyboardInterrupt
            return likelihood(*arguments)

        return call

    monkeypatch.setattr(store, "KEEP_EVERY", 0.0)
    monkeypatch.setattr(store, "KEEP_SHARE", math.inf)
    for after in (20, 9):  # in the second epoch, which has seven of twelve; then in the third
        calls.clear()
        monkeypatch.setattr(masks, "log_likelihood", stopping(after))
        with pytest.raises(KeyboardInterrupt):
            collect(pairs["llama"], data, path)
        assert not path.exists()
        with pytest.raises(OutputError, match="begun with another model"):
            collect(pairs["llama"], data, path, rate=1.0)
    calls.clear()
    monkeypatch.setattr(masks, "log_likelihood", stopping(0))
    collect(pairs["llama"], data, path)
    assert len(calls) == 9
    assert path.read_bytes() == whole.read_bytes()


def test_embeddings_where_asked_for(
    pairs: dict[str, tuple[Path, Path]], data: Path, tmp_path: Path
) -> None:
    path = tmp_path / "masks.safetensors"
    found = collect(pairs["llama"], data, path, embeddings=True, epochs=1)
    assert found.keys() == load(pairs["llama"][0]).keys()


def test_what_is_refused(pairs: dict[str, tuple[Path, Path]], data: Path, tmp_path: Path) -> None:
    path = tmp_path / "masks.safetensors"
    for name, value in (("sparsity", 0.0), ("sparsity", 1.5), ("bias", 0.0), ("rate", -1.0)):
        with pytest.raises(CollectError, match=rf"{name} is {value}; want"):
            collect(pairs["llama"], data, path, **{name: value})
    for name, low in (("l1", -0.5), ("epochs", -1)):
        with pytest.raises(CollectError, match=rf"{name} is {low}; want .*0 or more"):
            collect(pairs["llama"], data, path, **{name: low})
    model, base = pairs["llama"]
    with pytest.raises(CollectError, match="masks needs the base that the model was fine-tuned"):
        mergekern.collect("masks", model, data, samples=2)
    with pytest.raises(
        CollectError, match="base is an option of masks and regmean_plusplus, and fisher"
    ):
        mergekern.collect("fisher", model, data, base=base, samples=2)
    message = r"tensor .*: .*gpt2-base has it as .* and .*llama lacks it: no delta can be taken"
    with pytest.raises(CollectError, match=message):
        collect((model, pairs["gpt2"][1]), data, path)
    with pytest.raises(
        CollectError, match=r"--rate 1e\+308 is too large: remove .*parts, and give"
    ):
        collect(pairs["llama"], data, path, rate=1e308)
    small = tmp_path / "small"
    small.mkdir()
    narrow = opened(base, torch.float32)
    narrow.resize_token_embeddings(20)
    narrow.save_pretrained(small)
    with pytest.raises(CollectError, match=r"makes token \d+ of a sample, and the base has .* 20,"):
        collect((model, small), data, tmp_path / "other.safetensors")


def test_the_command(pairs: dict[str, tuple[Path, Path]], data: Path, tmp_path: Path) -> None:
    (model, base), path = pairs["gpt2"], tmp_path / "masks.safetensors"
    line = ["collect", "masks", "--model", str(model), "--base", str(base), "--data", str(data)]
    line += ["--samples", "3", "--device", "cpu", "--output", str(path), "--sparsity", "0.3"]
    told = CliRunner().invoke(app, [*line, "--dry-run"])
    assert told.exit_code == 0 and "it would hold" in told.output and not path.exists()
    done = CliRunner().invoke(app, [*line, "--epochs", "2", "--rate", "10", "--l1", "1"])
    assert done.exit_code == 0 and path.exists(), done.output
    about = said(path)
    options = {"sparsity": 0.3, "bias": 3.0, "rate": 10.0, "l1": 1.0, "epochs": 2}
    assert about["question"]["options"] | options == about["question"]["options"]
    assert (about["kind"], about["model"], about["base"]) == ("masks", str(model), str(base))
    missing = CliRunner().invoke(app, line[:4] + line[6:])
    assert missing.exit_code == 1 and "give --base" in missing.output
