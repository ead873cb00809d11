"""Whole merges give the same bytes however they are cut, and whoever computes them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from folders import METHODS, Watch, buffers, hashes, load, merge
from safetensors.torch import load_file

import mergekern
from mergekern import stream
from mergekern.backends import cpu


@pytest.mark.parametrize("name", METHODS)
def test_a_folder_holds_what_a_merge_in_memory_gives(
    models: list[Path], wanted: dict[str, Path], name: str
) -> None:
    states = [load_file(folder / "model.safetensors") for folder in models]
    options = dict(METHODS[name])
    method = options.pop("method")
    base = None if method == "linear" else states[0]
    state = mergekern.merge(method, base=base, models=states[1:], **options)
    found = load(wanted[name])
    assert isinstance(state, dict) and found.keys() == state.keys()
    for tensor, value in state.items():
        assert value.dtype == found[tensor].dtype and value.shape == found[tensor].shape
        assert torch.equal(value, found[tensor]), tensor


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("nbytes", [2_200_000, 2_700_000, 5_000_000, 20_000_000])
def test_buffers_do_not_change_a_byte(
    models: list[Path],
    wanted: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    nbytes: int,
) -> None:
    """At the smallest, the largest tensors are read tile by tile, several times."""
    buffers(monkeypatch, nbytes)
    monkeypatch.setattr(stream, "REQUEST", 100_000)
    watch = Watch()
    report = merge(models, tmp_path / "out", name, progress=watch)
    assert hashes(tmp_path / "out") == hashes(wanted[name])
    assert watch.moved == watch.total
    assert watch.done == watch.tensors == report.tensors
    assert watch.stopped == 1


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("options", [{"threads": 1}, {"threads": 5}, {"backend": "reference"}])
def test_threads_and_backends_do_not_change_a_byte(
    models: list[Path],
    wanted: dict[str, Path],
    tmp_path: Path,
    name: str,
    options: dict[str, object],
) -> None:
    merge(models, tmp_path / "out", name, **options)
    assert hashes(tmp_path / "out") == hashes(wanted[name])


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("isa", cpu.instruction_sets())
def test_instruction_sets_do_not_change_a_byte(
    models: list[Path],
    wanted: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    isa: str,
) -> None:
    monkeypatch.setattr(cpu, "instruction_sets", lambda: [isa])
    merge(models, tmp_path / "out", name)
    assert hashes(tmp_path / "out") == hashes(wanted[name])


@pytest.mark.parametrize("name", METHODS)
def test_shards_hold_the_same_tensors(
    models: list[Path], wanted: dict[str, Path], tmp_path: Path, name: str
) -> None:
    merge(models, tmp_path / "out", name, max_shard_size=500_000)
    whole, parts = load(wanted[name]), load(tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 4
    assert (tmp_path / "out/model.safetensors.index.json").exists()
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[tensor], parts[tensor]) for tensor in whole)
