"""Statistics are what the formulas say, however they are streamed, stopped and gone on with."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from collected import TEXTS, speaking, texts
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import mergekern
from mergekern.checkpoint import open_checkpoint
from mergekern.cli import app
from mergekern.collect import fisher, gram, store
from mergekern.collect.layers import Layers
from mergekern.collect.network import Network
from mergekern.errors import CollectError, OutputError

KINDS = ("llama", "gemma2", "gpt2", "qwen2", "qwen3")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("speaking")
    return {kind: speaking(root / kind, kind) for kind in KINDS}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return texts(tmp_path_factory.mktemp("texts"))


def loaded(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    return model.eval(), AutoTokenizer.from_pretrained(folder)


def said(path: Path) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        found: dict[str, Any] = json.loads(file.metadata()["mergekern"])
    return found


def grams_by_hand(folder: Path) -> dict[str, torch.Tensor]:
    """The whole model in float64, and all its linear layers, each by itself."""
    model, tokenizer = loaded(folder)
    seen: dict[str, list[torch.Tensor]] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda _, args: seen.setdefault(name, []).append(args[0][0])

    for name, module in model.named_modules():
        if type(module).__name__ in ("Linear", "Conv1D") and "lm_head" not in name:
            module.register_forward_pre_hook(keep(f"{name}.weight"))
    with torch.no_grad():
        for text in TEXTS:
            model(**tokenizer(text, return_tensors="pt"))
    inputs = {name: torch.cat(parts) for name, parts in seen.items()}
    return {name: x.T @ x / len(x) for name, x in inputs.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_gram_is_the_mean_over_tokens(
    kind: str, folders: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    path = tmp_path / "out.safetensors"
    mergekern.collect("gram", folders[kind], data, samples=12, output=path, device="cpu")
    found, about = load_file(path), said(path)
    wanted = grams_by_hand(folders[kind])
    assert found.keys() | about["shares"].keys() == wanted.keys()
    assert not found.keys() & about["shares"].keys()
    for name, matrix in wanted.items():
        mine = found[about["shares"].get(name, name)]
        torch.testing.assert_close(mine.double(), matrix, rtol=1e-4, atol=1e-5)
    # k and v see what q does, up what gate does
    assert len(about["shares"]) == (0 if kind == "gpt2" else 6)
    assert len(about["untransposed"]) == (8 if kind == "gpt2" else 0)
    assert not (tmp_path / "out.safetensors.parts").exists()


@pytest.mark.parametrize("labels", ["empirical", "hard"])
@pytest.mark.parametrize("kind", KINDS)
def test_fisher_is_the_mean_of_squared_gradients(
    labels: Any, kind: str, folders: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    path = tmp_path / "out.safetensors"
    options: dict[str, Any] = {"output": path, "device": "cpu", "labels": labels}
    mergekern.collect("fisher", folders[kind], data, samples=12, **options)
    model, tokenizer = loaded(folders[kind])
    wanted: dict[str, torch.Tensor] = {}
    for text in TEXTS:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        p = model(input_ids=ids).logits[0].softmax(-1)
        places = torch.arange(ids.shape[1] - 1)
        chosen = p[places, ids[0, 1:]].log().sum() if labels == "empirical" else p[-1].max().log()
        model.zero_grad()
        chosen.backward()
        for name, weight in model.named_parameters():
            wanted[name] = wanted.get(name, 0) + weight.grad**2 / len(TEXTS)
    found = load_file(path)
    assert wanted.keys() - found.keys() == {
        next(name for name in wanted if "embed_tokens" in name or "wte" in name)
    }
    for name, mean in found.items():
        torch.testing.assert_close(mean.double(), wanted[name], rtol=2e-3, atol=1e-7)


def test_embeddings_where_asked_for(folders: dict[str, Path], data: Path, tmp_path: Path) -> None:
    path = tmp_path / "out.safetensors"
    options: dict[str, Any] = {"output": path, "device": "cpu", "samples": 2}
    mergekern.collect("fisher", folders["gemma2"], data, embeddings=True, **options)
    assert "model.embed_tokens.weight" in load_file(path)


@pytest.mark.parametrize("kind", ["gram", "fisher"])
def test_a_kill_costs_what_was_not_finished(
    kind: Any, folders: dict[str, Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, path = tmp_path / "whole.safetensors", tmp_path / "out.safetensors"
    options: dict[str, Any] = {"samples": 12, "device": "cpu"}
    mergekern.collect(kind, folders["llama"], data, output=whole, **options)
    calls: list[int] = []
    stop = 18 if kind == "gram" else 7  # in the second of two layers; behind six samples
    monkeypatch.setattr(store, "KEEP_EVERY", 0.0)
    monkeypatch.setattr(store, "KEEP_SHARE", math.inf)

    def counted(work: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            calls.append(1)
            if len(calls) == stop:
                raise KeyboardInterrupt
            return work(*arguments)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(Layers, "run", counted(Layers.run))
        patch.setattr(fisher, "log_likelihood", counted(fisher.log_likelihood))
        with pytest.raises(KeyboardInterrupt):
            mergekern.collect(kind, folders["llama"], data, output=path, **options)
        assert not path.exists()
        with pytest.raises(OutputError, match="begun with another model"):
            mergekern.collect(kind, folders["llama"], data, output=path, seed=1, **options)
        calls.clear()
        stop = 0
        mergekern.collect(kind, folders["llama"], data, output=path, **options)
        assert len(calls) == (12 if kind == "gram" else 6)
    assert path.read_bytes() == whole.read_bytes()
    again = mergekern.collect(kind, folders["llama"], data, output=path, **options)
    assert again.found and "nothing to do" in str(again)
    with pytest.raises(OutputError, match="holds something else"):
        mergekern.collect(kind, folders["gemma2"], data, output=path, **options)


def test_places_that_cannot_be_written(
    folders: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"samples": 2, "device": "cpu"}
    blocked = tmp_path / "blocked.safetensors"
    blocked.with_name("blocked.safetensors.parts").write_text("")
    for output, message in (
        (tmp_path / "x.st", r"want a file named \*.safetensors"),
        ("", r"want a file named \*.safetensors"),
        (tmp_path / f"{'x' * 300}.safetensors", "cannot be written: File name too long"),
        (blocked, "parts: cannot be written: File exists"),
    ):
        with pytest.raises(OutputError, match=message):
            mergekern.collect("gram", folders["llama"], data, output=output, **options)


def test_parts_of_a_finished_file_are_removed(
    folders: dict[str, Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, options = tmp_path / "x.safetensors", {"samples": 2, "device": "cpu"}
    with monkeypatch.context() as patch:
        patch.setattr(store.shutil, "rmtree", lambda path: None)  # as a kill leaves them
        mergekern.collect("fisher", folders["llama"], data, output=path, **options)
    assert path.with_name("x.safetensors.parts").is_dir()
    assert mergekern.collect("fisher", folders["llama"], data, output=path, **options).found
    assert not path.with_name("x.safetensors.parts").exists()


def test_sums_are_kept_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(store.time, "monotonic", lambda: clock[0])
    kept = store.Store(tmp_path / "x.safetensors", {})
    kept.open()
    write = kept.write

    def slow(name: str, tensors: Any, notes: Any) -> None:
        write(name, tensors, notes)
        clock[0] += 9.0

    monkeypatch.setattr(kept, "write", slow)
    written = []
    for second in range(0, 400, 10):
        clock[0] = max(clock[0], float(second))
        kept.keep("sums", {"x": torch.ones(3)}, {"at": second})
        if kept.has("sums") and kept.notes("sums")["at"] == second:
            written.append(second)
    assert written == [60, 250]  # a minute, then twenty times the nine seconds


def test_layers_hold_weights_one_at_a_time(
    folders: dict[str, Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: set[int] = set()
    run = Layers.run

    def look(self: Layers, *arguments: Any) -> Any:
        real = [
            n for n, each in enumerate(self.layers) if next(each.parameters()).device.type == "cpu"
        ]
        held.add(len(real))
        return run(self, *arguments)

    monkeypatch.setattr(gram.Layers, "run", look)
    path = tmp_path / "out.safetensors"
    mergekern.collect("gram", folders["llama"], data, samples=2, output=path, device="cpu")
    assert held == {1}


def test_the_command(folders: dict[str, Path], data: Path, tmp_path: Path) -> None:
    path = tmp_path / "out.safetensors"
    where = ["--model", str(folders["gpt2"]), "--data", str(data), "--output", str(path)]
    line = ["collect", "gram", *where, "--samples", "3", "--device", "cpu"]
    told = CliRunner().invoke(app, [*line, "--dry-run"])
    assert told.exit_code == 0 and "would hold" in told.output and not path.exists()
    done = CliRunner().invoke(app, line)
    assert done.exit_code == 0 and path.exists(), done.output
    wrong = CliRunner().invoke(app, ["collect", "grams", *where])
    assert wrong.exit_code == 1 and "want one of fisher, gram" in wrong.output
    for option in (["--rate", "1"], ["--embeddings"], ["--weight", "2"]):
        wrong = CliRunner().invoke(app, [*line, *option])
        complaint = f"{option[0][2:]} is an option of "
        assert wrong.exit_code == 1 and complaint in wrong.output, wrong.output
    with pytest.raises(CollectError, match="labels is an option of fisher, and gram is collected"):
        mergekern.collect("gram", folders["gpt2"], data, labels="hard")
    about = said(path)
    assert about["question"]["data"]["samples"] == 3 and about["kind"] == "gram"
    assert about["files"].keys() == {"model.safetensors"} and about["model"] == str(folders["gpt2"])


def test_what_cannot_be_walked(folders: dict[str, Path], tmp_path: Path) -> None:
    with closing(open_checkpoint(folders["llama"])) as checkpoint:
        network = Network(checkpoint, "cpu", None)
        network.model.towers = torch.nn.ModuleList([torch.nn.Linear(2, 2) for _ in range(2)])
        with pytest.raises(CollectError, match=r"found model\.layers, towers"):
            Layers(network)
    stored = load_file(folders["llama"] / "model.safetensors")
    stored["stack.weight"] = stored.pop("model.layers.1.mlp.up_proj.weight")
    save_file(stored, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((folders["llama"] / "config.json").read_bytes())
    with closing(open_checkpoint(tmp_path)) as checkpoint:
        layers = Layers(Network(checkpoint, "cpu", None))
        with pytest.raises(CollectError, match=r"up_proj\.weight, and the checkpoint stores no"):
            layers.held(1).__enter__()
