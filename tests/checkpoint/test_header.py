"""Every rule of the safetensors format: a file that breaks one is refused with its message."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from mergekern.checkpoint.files import WeightFile
from mergekern.checkpoint.header import Header, read_header
from mergekern.errors import CheckpointError

F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def read(path: Path) -> Header:
    return read_header(WeightFile(path, path.name))


def entry(**changes: object) -> dict[str, object]:
    return {"w": F32 | changes}


BROKEN_HEADERS = {
    "no JSON": (b"{nonsense}", "header: is not valid JSON"),
    "not UTF-8": (b'{"\xff": 1}', "is not valid JSON: 'utf-8'"),
    "too deep": (b'{"a":' * 100_000, "is not valid JSON: maximum recursion"),
    "a list": (b"[]", "header begins with b'\\[', wanted b'{'"),
    "space before": (b" {}", "header begins with b' ', wanted b'{'"),
    "name twice": (
        b'{"w":%b,"w":%b}' % (json.dumps(F32).encode(), json.dumps(F32).encode()),
        "key 'w' is there more than once",
    ),
    "field twice": (
        b'{"w":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
        "key 'dtype' is there more than once",
    ),
    "NaN": (b'{"w":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}', "NaN is not a JSON"),
    "huge number": (b'{"w":%b}' % (b"9" * 5000), "is not valid JSON"),
    "metadata no texts": ({"__metadata__": {"a": 1}, "w": F32}, "__metadata__ must map texts"),
    "metadata no map": ({"__metadata__": "pt", "w": F32}, "__metadata__ must map texts"),
    "entry no map": ({"w": 7}, "tensor 'w': wanted dtype, shape and data_offsets, found 7"),
    "field missing": ({"w": {"dtype": "F32"}}, "wanted dtype, shape and data_offsets"),
    "unknown dtype": (entry(dtype="F4"), "dtype 'F4' is not one of F64, F32"),
    "dtype no text": (entry(dtype=["F32"]), "dtype \\['F32'\\] is not one of"),
    "negative size": (entry(shape=[-2]), "shape \\[-2\\] is not a list of sizes"),
    "size no integer": (entry(shape=[2.0]), "shape \\[2.0\\] is not a list of sizes"),
    "size a boolean": (entry(shape=[2, True]), "is not a list of sizes"),
    "shape no list": (entry(shape=2), "shape 2 is not a list of sizes"),
    "one offset": (entry(data_offsets=[0]), "data_offsets \\[0\\] is not \\[begin, end\\]"),
    "end before begin": (entry(data_offsets=[8, 0]), "is not \\[begin, end\\]"),
    "offset no integer": (entry(data_offsets=[0, "8"]), "is not \\[begin, end\\]"),
    "wrong size": (entry(shape=[3]), "F32 of shape \\[3\\] takes 12 bytes, but its .* hold 8"),
    "too large": (entry(shape=[2**40, 2**40]), "is too large to be true"),
    "too large and empty": (entry(shape=[0, 2**70], data_offsets=[0, 0]), "too large to be true"),
    "name no Unicode": (b'{"\\ud800":%b}' % json.dumps(F32).encode(), "not valid Unicode"),
    "hole": ({"w": F32 | {"data_offsets": [4, 12]}}, "'w' leaves a hole before it"),
    "overlap": (
        {"v": F32, "w": F32 | {"data_offsets": [4, 12]}},
        "'w' overlaps the tensor before it: it begins at byte \\d+, wanted \\d+",
    ),
    "data missing": (
        {"v": F32, "w": F32 | {"data_offsets": [8, 16]}},
        "is cut short: 8 of \\d+ bytes are missing, from tensor 'w' on; download",
    ),
    "data left": ({"v": F32 | {"shape": [1], "data_offsets": [0, 4]}}, "4 bytes behind its last"),
}


@pytest.mark.parametrize(("header", "message"), BROKEN_HEADERS.values(), ids=BROKEN_HEADERS)
def test_broken_header(write_raw, header, message) -> None:
    path = write_raw(header, bytes(8))
    with pytest.raises(CheckpointError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_lengths_that_cannot_be(write_raw, tmp_path) -> None:
    with pytest.raises(CheckpointError, match="header of 100000001 bytes, more than the 100000000"):
        read(write_raw({"w": F32}, bytes(8), length=100_000_001))
    path = write_raw({"w": F32}, bytes(8), length=1000)
    short = 1008 - path.stat().st_size
    with pytest.raises(CheckpointError, match=f"header needs 1008 bytes .* {short} too few"):
        read(path)
    path.write_bytes(b"short")
    with pytest.raises(CheckpointError, match="holds 5 bytes, too few for safetensors"):
        read(path)


def test_accepts_what_the_format_allows(write_raw) -> None:
    header = {
        "b": {"dtype": "U8", "shape": [], "data_offsets": [8, 9]},
        "__metadata__": {"format": "pt", "_": ""},
        "empty": {"dtype": "F32", "shape": [0, 5], "data_offsets": [8, 8]},
        "a": {**F32, "note": "more fields are no fault"},
    }
    text = json.dumps(header).encode() + b"   "
    tensors = read(write_raw(text, bytes(9))).tensors
    assert list(tensors) == ["a", "empty", "b"]
    assert [info.offset - 8 - len(text) for info in tensors.values()] == [0, 8, 8]
    assert tensors["a"].file == "model.safetensors"
    assert tensors["empty"].shape == (0, 5) and tensors["b"].shape == ()


def test_fingerprint_is_of_the_header_alone(write_raw) -> None:
    one, other = read(write_raw({"w": F32}, bytes(8))), read(write_raw({"w": F32}, b"12345678"))
    renamed = read(write_raw({"v": F32}, bytes(8)))
    assert one.sha256 == other.sha256 != renamed.sha256


WHOLE = save(
    {
        "model.embed": torch.arange(12, dtype=torch.bfloat16).reshape(3, 4),
        "norm": torch.ones(3),
        "count": torch.tensor(7),
        "none": torch.empty(0, 2),
    },
    {"format": "pt"},
)
HEADER_END = 8 + int.from_bytes(WHOLE[:8], "little")


def oracle(path: Path) -> dict[str, tuple[list[int], str]] | None:
    """What the safetensors package says is in a file, None where it refuses it."""
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {name: (s.get_shape(), s.get_dtype()) for name, s in slices.items()}
    except (SafetensorError, OSError, UnicodeError):
        return None


def check_against_oracle(path: Path) -> None:
    """What we read, the package reads alike; everything else is a CheckpointError."""
    try:
        tensors = read(path).tensors
    except CheckpointError:
        return
    found = oracle(path)
    assert found is not None
    assert {name: shape for name, (shape, _) in found.items()} == {
        name: list(info.shape) for name, info in tensors.items()
    }


RELAXED = settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@RELAXED
@given(
    changes=st.lists(
        st.tuples(st.integers(0, HEADER_END - 1), st.sampled_from(b'0123456789{}[]",:-eF \\\xff')),
        max_size=3,
    )
)
def test_bytes_overwritten(tmp_path, changes) -> None:
    data = bytearray(WHOLE)
    for place, byte in changes:
        data[place] = byte
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    check_against_oracle(path)


@RELAXED
@given(cut=st.integers(0, len(WHOLE) - 1), insert=st.binary(max_size=9))
def test_bytes_lost_or_put_in(tmp_path, cut, insert) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(WHOLE[:cut])
    with pytest.raises(CheckpointError):
        read(path)
    path.write_bytes(WHOLE[:cut] + insert + WHOLE[cut:])
    check_against_oracle(path)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2**66) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "U8", "F8_E4M3", "X"]) | JSON_VALUES,
        "shape": st.lists(st.integers(0, 3) | JSON_VALUES, max_size=3) | JSON_VALUES,
        "data_offsets": st.lists(st.integers(0, 16), min_size=2, max_size=2) | JSON_VALUES,
    }
)


@RELAXED
@given(
    header=st.dictionaries(
        st.sampled_from(["a", "b", "__metadata__"]) | st.text(max_size=2), ENTRIES | JSON_VALUES
    ),
    size=st.integers(0, 16),
)
def test_any_json(write_raw, header, size) -> None:
    check_against_oracle(write_raw(header, bytes(size)))
