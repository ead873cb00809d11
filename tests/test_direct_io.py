"""Whole merges past the page cache and through it: the same bytes, wherever tensors begin."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from folders import CONFIG, METHODS, buffers, hashes, load, merge
from safetensors.torch import load_file, save_file

import mergekern
from mergekern import stream
from mergekern.checkpoint import direct

AWKWARD = (0, 1, 4095, 4096, 4097)  # bytes of a tensor


@pytest.fixture(params=[True, False], ids=["direct", "buffered"])
def forced(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(direct, "forced", request.param)
    return bool(request.param)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("threads", "nbytes"), [(1, 2_200_000), (3, 3_333_333), (8, 20_000_000)])
def test_the_way_to_the_disk_does_not_change_a_byte(
    models: list[Path],
    wanted: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    forced: bool,
    name: str,
    threads: int,
    nbytes: int,
) -> None:
    buffers(monkeypatch, nbytes)
    monkeypatch.setattr(stream, "REQUEST", 128 << 10)
    merge(models, tmp_path / "out", name, threads=threads)
    assert hashes(tmp_path / "out") == hashes(wanted[name])


def moved(folder: Path, to: Path, by: int) -> Path:
    """A copy of a model whose header is `by` bytes longer, so that its tensors lie elsewhere."""
    data = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length] + b" " * by
    to.mkdir()
    (to / "model.safetensors").write_bytes(
        (length + by).to_bytes(8, "little") + header + data[8 + length :]
    )
    (to / "config.json").write_text(json.dumps(CONFIG))
    return to


@pytest.mark.parametrize("name", ["linear", "ties"])
@pytest.mark.parametrize("by", [1, 2, 3, 7, 2048])
def test_tensors_begin_anywhere(
    models: list[Path],
    wanted: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    forced: bool,
    name: str,
    by: int,
) -> None:
    buffers(monkeypatch, 2_700_000)
    elsewhere = [moved(model, tmp_path / str(n), by + n) for n, model in enumerate(models)]
    merge(elsewhere, tmp_path / "out", name)
    found, expected = load(tmp_path / "out"), load(wanted[name])
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[tensor], expected[tensor]) for tensor in expected)


def awkward(root: Path, number: int) -> Path:
    """Tensors of awkward sizes, copied and merged, large ones between small ones."""
    g = torch.Generator().manual_seed(number)
    same = torch.Generator().manual_seed(99)
    state: dict[str, torch.Tensor] = {}
    for turn in range(6):
        for size in AWKWARD:
            state[f"{turn}.{size}.copied"] = torch.randint(
                255, (size,), generator=same, dtype=torch.uint8
            )
            state[f"{turn}.{size}.bf16"] = torch.randn(size // 2, generator=g).bfloat16()
            state[f"{turn}.{size}.f32"] = torch.randn(size // 4, generator=g)
        state[f"{turn}.large"] = torch.randn(70_001 + turn, generator=g).bfloat16()
        state[f"{turn}.large.copied"] = torch.arange(40_000 + turn)
    for count in range(600):
        state[f"tiny.{count}"] = torch.randn(count % 5, generator=g).bfloat16()
    root.mkdir()
    save_file(state, root / "model.safetensors")
    (root / "config.json").write_text(json.dumps(CONFIG))
    return root


@pytest.mark.parametrize("nbytes", [1_500_000, 4_000_000])
@pytest.mark.parametrize("shard", ["5GB", "100KB"])
def test_awkward_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forced: bool, nbytes: int, shard: str
) -> None:
    folders = [awkward(tmp_path / str(number), number) for number in range(3)]
    states = [load_file(folder / "model.safetensors") for folder in folders]
    expected = mergekern.merge("linear", models=states[1:], weight=[0.25, 0.75])
    buffers(monkeypatch, nbytes)
    merge(folders, tmp_path / "out", max_shard_size=shard)
    found = load(tmp_path / "out")
    assert isinstance(expected, dict) and found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_merging_what_was_merged(
    wanted: dict[str, Path], tmp_path: Path, forced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our own files are aligned alike, so that copies are written from where they were read."""
    buffers(monkeypatch, 3_000_000)
    shutil.copytree(wanted["linear"], tmp_path / "twin")
    twins = [str(wanted["linear"]), str(tmp_path / "twin")]
    mergekern.merge("linear", models=twins, output=tmp_path / "out")
    found, before = load(tmp_path / "out"), load(wanted["linear"])
    assert all(torch.equal(found[name], before[name]) for name in before)


@pytest.mark.parametrize("call", ["open", "preadv", "pwrite"])
def test_file_systems_that_refuse(
    models: list[Path],
    wanted: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
) -> None:
    """Refused when opened or only when used: read and written through the cache, quietly."""
    monkeypatch.setattr(direct, "forced", True)
    real: Callable[..., int] = getattr(os, call)
    refusals = []

    def refuse(first: Any, *rest: Any) -> int:
        flags = rest[0] if call == "open" else fcntl.fcntl(first, fcntl.F_GETFL)
        if flags & os.O_DIRECT:
            refusals.append(first)
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(first, *rest)

    monkeypatch.setattr(os, call, refuse)
    merge(models, tmp_path / "out")
    assert refusals
    assert hashes(tmp_path / "out") == hashes(wanted["linear"])
