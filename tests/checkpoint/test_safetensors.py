"""Reading safetensors: the bytes that the packages wrote, in files that are whole."""

from __future__ import annotations

import errno
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from reading import part, whole
from safetensors.torch import load_file, save_file

from mergekern.arrays import address, as_tensor
from mergekern.checkpoint import open_checkpoint
from mergekern.dtypes import FLOAT64, SAFETENSORS, of_torch, to_torch
from mergekern.errors import CheckpointError

BUFFER = np.empty(1 << 16, np.uint8)
INDEX = "model.safetensors.index.json"


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)


@pytest.mark.parametrize("dtype", SAFETENSORS.values(), ids=SAFETENSORS)
def test_every_dtype(tmp_path, dtype) -> None:
    raw = torch.arange(48 * dtype.itemsize, dtype=torch.int32).to(torch.uint8)
    raw = raw % 2 if dtype == np.bool_ else raw
    save_file(
        {"w": raw.view(to_torch(dtype)).view(6, 8), "odd": raw[:3].clone()},
        tmp_path / "model.safetensors",
    )
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.tensors["w"].dtype == dtype
    assert checkpoint.tensors["w"].shape == (6, 8)
    assert torch.equal(bits(whole(checkpoint, "w", BUFFER)), raw)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("max_shard_size", ["5GB", "20KB"])
def test_what_transformers_saves(tmp_path, llama, dtype, max_shard_size) -> None:
    llama.to(dtype).save_pretrained(tmp_path, max_shard_size=max_shard_size)
    checkpoint = open_checkpoint(tmp_path)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert (len(files) > 1) == (max_shard_size == "20KB")
    wanted = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert wanted.keys() == checkpoint.tensors.keys() == llama.state_dict().keys()
    for name, tensor in wanted.items():
        assert checkpoint.tensors[name].dtype == of_torch(dtype)
        assert torch.equal(whole(checkpoint, name, BUFFER), tensor)
    assert sorted(checkpoint.fingerprint) == [file.name for file in files]
    assert checkpoint.config["model_type"] == "llama"
    assert checkpoint.folder == tmp_path and checkpoint.on_disk and not checkpoint.shared


def test_tensors_are_in_file_order(tmp_path, llama) -> None:
    llama.save_pretrained(tmp_path, max_shard_size="20KB")
    places = [(info.file, info.offset) for info in open_checkpoint(tmp_path).tensors.values()]
    assert places == sorted(places)


def test_reads_ranges_into_the_buffer(tmp_path) -> None:
    weights = torch.randn(100, 7, dtype=torch.float64)
    save_file({"a": torch.ones(3), "w": weights}, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    found = checkpoint.read("w", 33, 190, BUFFER)
    assert address(found) == address(BUFFER) and found.dtype == FLOAT64
    assert torch.equal(as_tensor(found), weights.view(-1)[33:190])
    assert len(checkpoint.read("w", 5, 5, BUFFER)) == 0
    assert torch.equal(part(checkpoint, "w", 1, 3), weights.view(-1)[1:3])


def test_many_threads_read_one_file(tmp_path) -> None:
    weights = torch.randn(1 << 16)
    save_file({"w": weights}, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)

    def piece(i: int) -> bool:
        buffer = np.empty(4096, np.uint8)
        got = part(checkpoint, "w", i * 512, i * 512 + 512, buffer)
        return torch.equal(got, weights[i * 512 : i * 512 + 512])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(piece, list(range(128)) * 8))


def test_reads_go_on_after_fewer_bytes(tmp_path, monkeypatch) -> None:
    weights = torch.randn(1000)
    save_file({"w": weights}, tmp_path / "model.safetensors")
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, views, at: preadv(fd, [views[0][:7]], at))
    assert torch.equal(whole(open_checkpoint(tmp_path), "w", BUFFER), weights)


def test_failing_reads_name_file_and_tensor(tmp_path, monkeypatch) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"w": torch.randn(1000)}, path)
    checkpoint = open_checkpoint(tmp_path)
    os.truncate(path, path.stat().st_size - 1000)
    with pytest.raises(CheckpointError, match=r"model.safetensors: tensor 'w': .* 3000 of 4000 by"):
        whole(checkpoint, "w", BUFFER)

    def fail(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(CheckpointError, match=r"tensor 'w': .* 0 of 4000 .*Input/output error"):
        whole(checkpoint, "w", BUFFER)


@pytest.mark.parametrize("change", ["size", "time"])
def test_notices_changed_files(tmp_path, change) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"w": torch.randn(10)}, path)
    checkpoint = open_checkpoint(path)
    checkpoint.verify_unchanged()
    before = path.stat().st_mtime_ns
    if change == "size":
        with open(path, "ab") as file:
            file.write(b"more")
        os.utime(path, ns=(before, before))
    else:
        os.utime(path, ns=(before, before + 1))
    with pytest.raises(CheckpointError, match=r"model.safetensors: was changed while"):
        checkpoint.verify_unchanged()


def test_files_are_closed(tmp_path, llama) -> None:
    llama.save_pretrained(tmp_path, max_shard_size="20KB")
    before = len(os.listdir("/proc/self/fd"))
    checkpoint = open_checkpoint(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before + len(checkpoint.fingerprint)
    checkpoint.close()
    checkpoint.close()
    assert len(os.listdir("/proc/self/fd")) == before
    other = open_checkpoint(tmp_path)  # its files get the numbers that were set free
    with pytest.raises(CheckpointError, match="Bad file descriptor"):
        whole(checkpoint, "lm_head.weight", BUFFER)
    del other  # never closed by hand
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def sharded(tmp_path) -> Path:
    """Two shards, a in the first, b and c in the second, and an index that says so."""
    save_file({"a": torch.zeros(2)}, tmp_path / "one.safetensors")
    save_file({"b": torch.zeros(2), "c": torch.ones(1)}, tmp_path / "two.safetensors")
    set_index(tmp_path, {"a": "one.safetensors", "b": "two.safetensors", "c": "two.safetensors"})
    return tmp_path


def set_index(folder: Path, weight_map: object) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


BAD_MAPS = {
    "shard missing": (
        {"a": "gone.safetensors", "b": "two.safetensors", "c": "two.safetensors"},
        "1 of 2 shards are missing: gone.safetensors; download",
    ),
    "tensor absent": (
        {"a": "one.safetensors", "d": "one.safetensors", "b": "two.safetensors"},
        "one.safetensors does not hold d",
    ),
    "tensor unnamed": (
        {"a": "one.safetensors", "b": "two.safetensors"},
        "two.safetensors holds tensors that the index does not place there: c; write the index",
    ),
    "another shard": (
        {"a": "two.safetensors", "b": "two.safetensors", "c": "one.safetensors"},
        "one.safetensors does not hold c",
    ),
    "leads out": ({"a": "../one.safetensors"}, "tensor 'a' is said to be in '../one.safetensors'"),
    "absolute": ({"a": "/one.safetensors"}, "tensor 'a' is said to be in '/one.safetensors'"),
    "null byte": ({"a": "one\0"}, "tensor 'a' is said to be in"),
    "nameless": ({"a": ""}, "tensor 'a' is said to be in ''"),
    "no text": ({"a": 1}, "tensor 'a' is said to be in 1"),
    "empty": ({}, "wanted a weight_map from tensors to shards, found none"),
    "no map": (["a"], "wanted a weight_map from tensors to shards, found none"),
}


@pytest.mark.parametrize(("weight_map", "message"), BAD_MAPS.values(), ids=BAD_MAPS)
def test_bad_index(sharded, weight_map, message) -> None:
    set_index(sharded, weight_map)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(sharded)
    assert INDEX in str(caught.value)


def test_index_that_is_no_json(sharded) -> None:
    assert list(open_checkpoint(sharded).tensors) == ["a", "b", "c"]
    (sharded / INDEX).write_text("{")
    with pytest.raises(CheckpointError, match=r"index.json: is not valid JSON"):
        open_checkpoint(sharded)
    (sharded / INDEX).write_text('{"weight_map": {"a": "one.safetensors", "a": "two.safetensors"}}')
    with pytest.raises(CheckpointError, match="key 'a' is there more than once"):
        open_checkpoint(sharded)


def test_tensor_in_two_shards(sharded) -> None:
    save_file({"a": torch.zeros(2), "b": torch.zeros(2)}, sharded / "one.safetensors")
    with pytest.raises(
        CheckpointError, match=r"one.safetensors holds tensors .* not place there: b"
    ):
        open_checkpoint(sharded)


def test_damaged_shard(sharded) -> None:
    path = sharded / "two.safetensors"
    os.truncate(path, path.stat().st_size - 3)
    with pytest.raises(CheckpointError, match=r"two.safetensors: is cut short: 3 of \d+ bytes"):
        open_checkpoint(sharded)
