"""The layout of outputs: files that the safetensors package reads, data at multiples of 4096."""

from __future__ import annotations

import json
import re

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reading import whole
from safetensors import safe_open

from mergekern.checkpoint import open_checkpoint
from mergekern.checkpoint.base import TensorInfo
from mergekern.checkpoint.layout import Shard, index_json, lay_out
from mergekern.dtypes import BFLOAT16, FLOAT32, SAFETENSORS, UINT8, DType, to_torch
from mergekern.errors import CheckpointError, RecipeError

INT4 = np.dtype(ml_dtypes.int4)


def infos(*parts: tuple[DType, tuple[int, ...]]) -> list[TensorInfo]:
    return [TensorInfo(f"t{i}", dtype, shape) for i, (dtype, shape) in enumerate(parts)]


def write(folder, shards: tuple[Shard, ...], values: dict[str, torch.Tensor]) -> None:
    """Write every tensor at its place, as an engine would."""
    for shard in shards:
        data = bytearray(shard.size)
        data[: len(shard.header)] = shard.header
        for name, offset in shard.offsets.items():
            raw = values[name].contiguous().view(-1).view(torch.uint8).numpy().tobytes()
            data[offset : offset + len(raw)] = raw
        (folder / shard.file).write_bytes(data)
    index = index_json(shards)
    if index is not None:
        (folder / "model.safetensors.index.json").write_text(index)


def random_values(tensors: list[TensorInfo]) -> dict[str, torch.Tensor]:
    return {
        info.name: torch.randint(0, 2, (info.nbytes,), dtype=torch.uint8)
        .view(to_torch(info.dtype))
        .view(info.shape)
        for info in tensors
    }


TENSORS = st.lists(
    st.tuples(
        st.sampled_from(list(SAFETENSORS.values())),
        st.lists(st.integers(0, 6), max_size=3).map(tuple),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=150, deadline=None)
@given(parts=TENSORS, max_shard_size=st.integers(1, 2000))
def test_layout_is_true(tmp_path_factory, parts, max_shard_size) -> None:
    folder = tmp_path_factory.mktemp("out")
    tensors = infos(*parts)
    values = random_values(tensors)
    shards = lay_out(tensors, max_shard_size)
    assert shards == lay_out(tensors, max_shard_size)
    write(folder, shards, values)
    for shard in shards:
        check_shard(folder, shard, values)
        data = shard.size - len(shard.header)
        assert data <= max_shard_size or len(shard.offsets) == 1
    ours = open_checkpoint(folder)
    assert ours.tensors.keys() == values.keys()
    for shard in shards:
        for name, offset in shard.offsets.items():
            assert (ours.tensors[name].file, ours.tensors[name].offset) == (shard.file, offset)


def check_shard(folder, shard: Shard, values: dict[str, torch.Tensor]) -> None:
    assert len(shard.header) % 4096 == 0
    with safe_open(folder / shard.file, framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert set(file.keys()) == set(shard.offsets)
        for name, offset in shard.offsets.items():
            got, want = file.get_tensor(name), values[name]
            assert (got.dtype, got.shape) == (want.dtype, want.shape)
            assert torch.equal(got.view(-1).view(torch.uint8), want.view(-1).view(torch.uint8))
            assert offset % want.dtype.itemsize == 0


def test_names_of_files_and_their_order() -> None:
    half = (BFLOAT16, (10,))
    (one,) = lay_out(infos(half, half), 100)
    assert one.file == "model.safetensors" and index_json([one]) is None
    many = lay_out(infos(half, half, half), 40)
    assert [shard.file for shard in many] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]
    assert [list(shard.offsets) for shard in many] == [["t0", "t1"], ["t2"]]
    assert json.loads(index_json(many) or "") == {
        "metadata": {"total_size": 60},
        "weight_map": {"t0": many[0].file, "t1": many[0].file, "t2": many[1].file},
    }


def test_keeps_order_unless_elements_would_lie_across() -> None:
    byte, half, word = UINT8, BFLOAT16, FLOAT32
    (kept,) = lay_out(infos((half, (2,)), (word, (1,)), (byte, (1,))), 1000)
    assert list(kept.offsets) == ["t0", "t1", "t2"]
    (sorted_,) = lay_out(infos((half, (1,)), (word, (1,)), (half, (1,)), (word, (1,))), 1000)
    assert list(sorted_.offsets) == ["t1", "t3", "t0", "t2"]
    first, _ = lay_out(infos((byte, (1,)), (word, (3,)), (byte, (1,)), (word, (3,))), 14)
    assert list(first.offsets) == ["t1", "t0", "t2"]


def test_a_large_tensor_is_alone() -> None:
    small, large = (FLOAT32, (1,)), (FLOAT32, (100,))
    shards = lay_out(infos(small, large, small, small), 50)
    assert [list(shard.offsets) for shard in shards] == [["t0"], ["t1"], ["t2", "t3"]]


def test_header_of_exactly_a_page() -> None:
    """Names of every length: the padding never breaks, whatever the JSON's length."""
    for length in range(3900, 4100):
        (shard,) = lay_out([TensorInfo("x" * length, UINT8, (1,))], 10)
        assert len(shard.header) in (4096, 8192)
        assert int.from_bytes(shard.header[:8], "little") == len(shard.header) - 8


def test_names_beyond_ascii(tmp_path) -> None:
    tensors = [TensorInfo('größe."é"', FLOAT32, (2,))]
    shards = lay_out(tensors, 100)
    write(tmp_path, shards, random_values(tensors))
    check_shard(tmp_path, shards[0], random_values(tensors) | read_back(tmp_path))


def read_back(folder) -> dict[str, torch.Tensor]:
    checkpoint = open_checkpoint(folder)
    return {name: whole(checkpoint, name) for name in checkpoint.tensors}


@pytest.mark.parametrize(
    ("tensors", "size", "error", "message"),
    [
        (infos((FLOAT32, (1,))), 0, RecipeError, "max_shard_size is 0, wanted a number of"),
        (infos((INT4, (1,))), 9, CheckpointError, "'t0': safetensors cannot hold int4"),
        (infos((UINT8, (1,))) * 2, 9, CheckpointError, "'t0': its name is taken"),
        ([TensorInfo("__metadata__", UINT8, ())], 9, CheckpointError, "its name is taken"),
    ],
    ids=["no room", "dtype", "name twice", "name of the metadata"],
)
def test_refuses(tensors, size, error, message) -> None:
    with pytest.raises(error, match=re.escape(message)):
        lay_out(tensors, size)
