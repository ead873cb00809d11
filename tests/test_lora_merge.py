"""Merges of a base with an adapter: the bytes of a merge of the same weights as a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from adapters import llama
from folders import buffers, load
from reading import whole
from safetensors.torch import load_file, save_file

import mergekern
from mergekern.checkpoint import lora, open_checkpoint
from mergekern.errors import CheckpointError, OutputError
from mergekern.machine import resident_bytes

pytestmark = pytest.mark.filterwarnings("ignore")  # peft's and torch's own
WIDE = {"hidden_size": 96, "intermediate_size": 160, "vocab_size": 900}


def write_adapter(base: Path, folder: Path, seed: int, **settings: object) -> Path:
    """Random factors for every linear layer of a Llama, as PEFT lays them out, by hand: its
    models are slow to make, and these are larger."""
    g = torch.Generator().manual_seed(seed)
    weights = {}
    for name, x in load_file(base / "model.safetensors").items():
        if not name.endswith("proj.weight"):
            continue
        module = "base_model.model." + name.removesuffix(".weight")
        weights[f"{module}.lora_A.weight"] = torch.randn(3, x.shape[1], generator=g)
        weights[f"{module}.lora_B.weight"] = 1e-4 * torch.randn(x.shape[0], 3, generator=g)
        if settings.get("use_dora"):
            weights[f"{module}.lora_magnitude_vector"] = x.float().norm(dim=1) * 1.01
    folder.mkdir()
    save_file(weights, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "base_model_name_or_path": str(base)}
    (folder / "adapter_config.json").write_text(json.dumps(config | settings))
    return folder


def as_checkpoint(base: Path, adapter: Path, folder: Path) -> Path:
    """The adapted weights, saved whole in fp32."""
    checkpoint = open_checkpoint(base, lora=adapter)
    folder.mkdir()
    state = {name: whole(checkpoint, name).float() for name in checkpoint.tensors}
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text((base / "config.json").read_text())
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapted")
    torch.manual_seed(3)
    base = root / "base"
    llama(**WIDE).to(torch.bfloat16).save_pretrained(base)
    plain = write_adapter(base, root / "plain", 1)
    dora = write_adapter(base, root / "dora", 2, use_dora=True)
    whole = {
        f"{x.name}-whole": as_checkpoint(base, x, root / f"{x.name}-whole") for x in (plain, dora)
    }
    return {"base": base, "plain": plain, "dora": dora} | whole


def merge(folders: dict[str, Path], models: list[str], output: Path, method: str, **more):
    options = {"density": 0.4} if method == "ties" else {}
    base = str(folders["base"]) if method == "ties" else None
    given = [str(folders[model]) for model in models]
    return mergekern.merge(method, base=base, models=given, output=str(output), **options, **more)


@pytest.mark.parametrize("method", ["linear", "ties"])
def test_bytes_of_a_merge_of_the_same_weights(folders, tmp_path, method) -> None:
    merge(folders, ["plain", "dora"], tmp_path / "got", method)
    merge(folders, ["plain-whole", "dora-whole"], tmp_path / "wanted", method, dtype="bfloat16")
    got, wanted = load(tmp_path / "got"), load(tmp_path / "wanted")
    assert got.keys() == wanted.keys()
    for name, x in got.items():
        assert x.dtype == torch.bfloat16 and torch.equal(x, wanted[name]), name
    base = load_file(folders["base"] / "model.safetensors")
    changed = [name for name, x in got.items() if not torch.equal(x, base[name])]
    assert len(changed) == 14  # the linear layers: what small changes there are came through
    assert json.loads((tmp_path / "got/config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("method", ["linear", "ties"])
def test_the_same_bytes_whatever_the_memory_and_threads(
    folders, tmp_path, monkeypatch, method
) -> None:
    merge(folders, ["plain", "dora"], tmp_path / "wanted", method, threads=1)
    monkeypatch.setattr(lora, "STRETCH", 500)
    monkeypatch.setattr(lora, "KEPT_BYTES", 1)
    buffers(monkeypatch, 600_000, open_=1)
    merge(folders, ["plain", "dora"], tmp_path / "got", method, threads=2)
    wanted, got = load(tmp_path / "wanted"), load(tmp_path / "got")
    assert wanted.keys() == got.keys()
    assert all(torch.equal(wanted[name], got[name]) for name in wanted)


def test_recipes_name_base_and_adapter(folders, tmp_path) -> None:
    merge(folders, ["plain", "dora"], tmp_path / "wanted", "linear")
    base, plain, dora = (str(folders[name]) for name in ("base", "plain", "dora"))
    models = [f"{base}+{plain}", {"model": base, "lora": dora}]
    mergekern.merge("linear", models=models, output=str(tmp_path / "got"))
    wanted, got = load(tmp_path / "wanted"), load(tmp_path / "got")
    assert all(torch.equal(wanted[name], got[name]) for name in wanted)
    for model, inside in ((f"{base}+{plain}", plain), (plain, plain), (plain, base)):
        with pytest.raises(OutputError, match="is or overlaps the folder of input"):
            mergekern.merge("linear", models=[model, base], output=f"{inside}/out")


def test_finished_merges_go_by_the_adapter_too(folders, tmp_path) -> None:
    adapter = write_adapter(folders["base"], tmp_path / "adapter", 5)
    mine = folders | {"mine": adapter}
    merge(mine, ["plain", "mine"], tmp_path / "out", "linear")
    locked = json.loads((tmp_path / "out/mergekern.lock.json").read_text())
    assert "adapter/adapter_config.json" in locked["models"][1]["files"]
    assert merge(mine, ["plain", "mine"], tmp_path / "out", "linear").bytes_read == 0
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file({k: v + 1 for k, v in weights.items()}, adapter / "adapter_model.safetensors")
    with pytest.raises(OutputError, match="have changed since"):
        merge(mine, ["plain", "mine"], tmp_path / "out", "linear")


def test_files_changed_while_they_are_read(folders, tmp_path) -> None:
    adapter = write_adapter(folders["base"], tmp_path / "adapter", 5)
    checkpoint = open_checkpoint(folders["base"], lora=adapter)
    (adapter / "adapter_model.safetensors").write_bytes(b"other")
    with pytest.raises(CheckpointError, match=r"adapter_model.safetensors: was changed"):
        checkpoint.verify_unchanged()


def test_in_bounded_memory(tmp_path) -> None:
    """Norms of a large tensor, and stretches of it, hold neither it nor its change."""
    rows, columns = 40_000, 1_000  # 160 MB in fp32
    save_file({"q.weight": torch.ones(rows, columns).bfloat16()}, tmp_path / "model.safetensors")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    weights = {
        "q.lora_A.weight": torch.ones(2, columns),
        "q.lora_B.weight": torch.ones(rows, 2),
        "q.lora_magnitude_vector": torch.ones(rows),
    }
    save_file(weights, adapter / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "use_dora": True}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    checkpoint = open_checkpoint(tmp_path / "model.safetensors", lora=adapter)
    buffer = np.ones(4 << 20, np.uint8)
    before = resident_bytes()
    for start in range(0, rows * columns, 1 << 20):
        stop = min(start + (1 << 20), rows * columns)
        found = checkpoint.read("q.weight", start, stop, buffer[: 4 * (stop - start)])
        assert abs(float(found[-1]) - columns**-0.5) < 1e-6
    assert resident_bytes() - before < 24 << 20
