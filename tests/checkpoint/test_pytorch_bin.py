"""pytorch_model.bin, new and old, one and many; pickles that would run code are refused."""

from __future__ import annotations

import collections
import json
import os
import re
from pathlib import Path

import pytest
import torch
from reading import part, whole
from safetensors.torch import save_file

from mergekern.checkpoint import open_checkpoint
from mergekern.dtypes import of_torch
from mergekern.errors import CheckpointError

SINGLE = "pytorch_model.bin"
INDEX = "pytorch_model.bin.index.json"


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    weights = torch.randn(6, 4, dtype=torch.float64).bfloat16()
    return {"w": weights, "turned": torch.randn(5, 3).t(), "tied": weights, "n": torch.tensor(4)}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_single(tmp_path, state, zipped) -> None:
    torch.save(state, tmp_path / SINGLE, _use_new_zipfile_serialization=zipped)
    checkpoint = open_checkpoint(tmp_path)
    assert list(checkpoint.tensors) == list(state)
    for name, tensor in state.items():
        info = checkpoint.tensors[name]
        assert (info.dtype, info.shape, info.file) == (of_torch(tensor.dtype), tensor.shape, SINGLE)
        assert torch.equal(whole(checkpoint, name), tensor)
    assert checkpoint.shared == {"tied": "w"}
    assert (checkpoint.on_disk, checkpoint.folder) == (False, tmp_path)


def test_new_files_are_mapped(tmp_path) -> None:
    torch.save({"w": torch.zeros(1 << 22)}, tmp_path / SINGLE)
    checkpoint = open_checkpoint(tmp_path)
    assert str(tmp_path / SINGLE) in Path("/proc/self/maps").read_text()
    checkpoint.close()


def test_ordered_dicts_and_parameters_are_tensors_too(tmp_path) -> None:
    layer = torch.nn.Linear(3, 2)
    torch.save(collections.OrderedDict(layer.named_parameters()), tmp_path / SINGLE)
    assert torch.equal(whole(open_checkpoint(tmp_path), "bias"), layer.bias.detach())


def save_sharded(folder, state, weight_map=None) -> None:
    names = list(state)
    shards = {"pytorch_model-00001-of-00002.bin": names[:2], "b.bin": names[2:]}
    for shard, held in shards.items():
        torch.save({name: state[name].clone() for name in held}, folder / shard)
    true_map = {name: shard for shard, held in shards.items() for name in held}
    index = {"weight_map": weight_map or true_map}
    (folder / INDEX).write_text(json.dumps(index))


def test_sharded(tmp_path, state) -> None:
    save_sharded(tmp_path, state)
    checkpoint = open_checkpoint(tmp_path)
    assert sorted(checkpoint.tensors) == sorted(state)
    assert checkpoint.tensors["n"].file == "b.bin"
    assert sorted(checkpoint.fingerprint) == ["b.bin", "pytorch_model-00001-of-00002.bin"]
    for name, tensor in state.items():
        assert torch.equal(part(checkpoint, name, 0, tensor.numel()), tensor.reshape(-1))


def test_sharded_with_a_wrong_index(tmp_path, state) -> None:
    save_sharded(tmp_path, state, {"w": "pytorch_model-00001-of-00002.bin", "tied": "b.bin"})
    with pytest.raises(
        CheckpointError, match=r"b.bin holds tensors that .* does not place there: n"
    ):
        open_checkpoint(tmp_path)
    (tmp_path / "b.bin").unlink()
    with pytest.raises(CheckpointError, match=r"1 of 2 shards are missing: b.bin"):
        open_checkpoint(tmp_path)


def test_fingerprint_follows_the_contents(tmp_path) -> None:
    def fingerprint(value: float, zipped: bool = True) -> str:
        path = tmp_path / SINGLE
        torch.save({"w": torch.tensor([value])}, path, _use_new_zipfile_serialization=zipped)
        return open_checkpoint(tmp_path).fingerprint[SINGLE]

    assert fingerprint(1.0) == fingerprint(1.0) != fingerprint(2.0)
    assert fingerprint(1.0, zipped=False) == fingerprint(1.0, zipped=False)


def test_safetensors_goes_first(tmp_path) -> None:
    torch.save({"w": torch.zeros(1)}, tmp_path / SINGLE)
    save_file({"w": torch.ones(1)}, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.on_disk and checkpoint.read("w", 0, 1, None) == 1.0


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_pickles_that_run_code(tmp_path, zipped) -> None:
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"w": Evil()}, tmp_path / SINGLE, _use_new_zipfile_serialization=zipped)
    message = (
        "pytorch_model.bin: would run code on loading \\(it asks for posix.mkdir\\) .* safeten"
    )
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(tmp_path)
    assert not (tmp_path / "ran").exists() and "\n" not in str(caught.value)


DAMAGED = {
    "empty": (lambda data: b"", "is damaged or cut short: "),
    "cut zip": (lambda data: data[:-40], "is damaged or cut short: PytorchStreamReader failed"),
    "no pickle": (lambda data: b"garbage!", "is damaged, or no file of PyTorch's at all"),
    "no file of PyTorch's": (lambda data: b"some words", "is damaged or cut short: "),
    "lfs": (
        lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        "is a Git LFS pointer, not weights: run git lfs pull",
    ),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGED.values(), ids=DAMAGED)
def test_damaged(tmp_path, damage, message) -> None:
    path = tmp_path / SINGLE
    torch.save({"w": torch.ones(100)}, path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match=re.escape(f"{path}: {message}")):
        open_checkpoint(tmp_path)


def test_other_contents(tmp_path) -> None:
    torch.save([torch.ones(1)], tmp_path / SINGLE)
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin: holds a list, wanted tensors"):
        open_checkpoint(tmp_path)
    torch.save({"state_dict": {"w": torch.ones(1)}, "epoch": 3}, tmp_path / SINGLE)
    with pytest.raises(CheckpointError, match=f"{SINGLE}: holds entries .*: epoch, state_dict"):
        open_checkpoint(tmp_path)


def test_notices_changed_files(tmp_path) -> None:
    torch.save({"w": torch.ones(1)}, tmp_path / SINGLE)
    checkpoint = open_checkpoint(tmp_path)
    checkpoint.verify_unchanged()
    os.utime(tmp_path / SINGLE, ns=(0, 0))
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin: was changed while"):
        checkpoint.verify_unchanged()
