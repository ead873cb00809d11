"""Containers have the same bytes however they are cut, whoever computes them, and after kills."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from devices import DEVICES
from folders import Watch, buffers, hashes, load, merge
from killing import killed
from safetensors import safe_open

import mergekern
from mergekern import api, engine, stream
from mergekern.backends import cpu
from mergekern.backends.masks import unpacked
from mergekern.checkpoint.container import MANIFEST
from mergekern.errors import BudgetError, MergeError
from mergekern.journal import NAME as JOURNAL


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, models: list[Path]) -> Path:
    """An undisturbed merge."""
    folder = tmp_path_factory.mktemp("container") / "whole"
    merge(models, folder, "emr")
    return folder


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory, whole: Path) -> Path:
    folder = tmp_path_factory.mktemp("taken") / "out"
    mergekern.materialise(whole, folder, task="expert1")
    return folder


@pytest.mark.parametrize("nbytes", [2_700_000, 5_000_000, 20_000_000])
def test_buffers_do_not_change_a_byte(
    models: list[Path], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nbytes: int
) -> None:
    buffers(monkeypatch, nbytes)
    monkeypatch.setattr(stream, "REQUEST", 100_000)
    watch = Watch()
    merge(models, tmp_path / "out", "emr", progress=watch)
    assert hashes(tmp_path / "out") == hashes(whole)
    assert watch.moved == watch.total and watch.done == watch.tensors


@pytest.mark.parametrize("nbytes", [2_700_000, 20_000_000])
def test_buffers_do_not_change_what_is_taken_out(
    whole: Path, taken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nbytes: int
) -> None:
    buffers(monkeypatch, nbytes)
    mergekern.materialise(whole, tmp_path / "out", task="expert1")
    assert hashes(tmp_path / "out") == hashes(taken)


@pytest.mark.parametrize("options", [{"threads": 1}, {"threads": 5}, {"backend": "reference"}])
def test_threads_and_backends_do_not_change_a_byte(
    models: list[Path], whole: Path, taken: Path, tmp_path: Path, options: dict[str, object]
) -> None:
    merge(models, tmp_path / "c", "emr", **options)
    assert hashes(tmp_path / "c") == hashes(whole)
    mergekern.materialise(whole, tmp_path / "out", task="expert1", **options)  # type: ignore[arg-type]
    assert hashes(tmp_path / "out") == hashes(taken)


@pytest.mark.parametrize("device", DEVICES, ids=lambda backend: type(backend).__name__)
def test_devices_do_not_change_a_byte(
    models: list[Path], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: Any
) -> None:
    monkeypatch.setattr(api, "get_backend", lambda *_, **__: device)
    merge(models, tmp_path / "out", "emr")
    assert hashes(tmp_path / "out") == hashes(whole)


@pytest.mark.parametrize("isa", cpu.instruction_sets())
def test_instruction_sets_do_not_change_a_byte(
    models: list[Path], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, isa: str
) -> None:
    monkeypatch.setattr(cpu, "instruction_sets", lambda: [isa])
    merge(models, tmp_path / "out", "emr")
    assert hashes(tmp_path / "out") == hashes(whole)


def test_little_memory_merges_the_parts_one_after_the_other(
    models: list[Path], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The masks do not go by what another run has written, but by the same numbers."""
    honest, runs = engine.budget.memory_estimate, []

    def few(plans: list[object], *rest: object) -> object:
        if len(plans) > 1:
            raise BudgetError("too much")
        runs.append(len(plans))
        return honest(plans, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(engine.budget, "memory_estimate", few)
    merge(models, tmp_path / "out", "emr")
    assert len(runs) == 4
    assert hashes(tmp_path / "out") == hashes(whole)


def test_shards_hold_the_same_tensors(models: list[Path], whole: Path, tmp_path: Path) -> None:
    merge(models, tmp_path / "c", "emr", max_shard_size=200_000)
    for part in ("unified", "tasks/expert0", "sums"):
        one, many = load(whole / part), load(tmp_path / "c" / part)
        assert one.keys() == many.keys()
        assert all(torch.equal(one[name], many[name]) for name in one)
    assert len(list((tmp_path / "c/unified").glob("*.safetensors"))) > 4
    mergekern.materialise(tmp_path / "c", tmp_path / "m", task="expert0")
    mergekern.materialise(whole, tmp_path / "n", task="expert0")
    assert load(tmp_path / "m").keys() == load(tmp_path / "n").keys()
    for name, x in load(tmp_path / "m").items():
        assert torch.equal(x, load(tmp_path / "n")[name])


def test_what_a_container_holds(models: list[Path], whole: Path) -> None:
    """The vector in the base's dtypes, a bit for each element and task, two sums for each chunk."""
    base, experts = load(models[0]), [load(model) for model in models[1:]]
    unified, sums = load(whole / "unified"), load(whole / "sums")
    assert unified.keys() == sums.keys() == base.keys() - {"ids", "mask"}
    for place, expert in enumerate(experts):
        with safe_open(whole / f"tasks/expert{place}/model.safetensors", "pt") as file:
            assert set(file.keys()) == base.keys()
            for name, vector in unified.items():
                mask = file.get_tensor(name)
                assert vector.dtype == base[name].dtype and vector.shape == base[name].shape
                assert mask.dtype == torch.uint8 and mask.shape == (-(-vector.numel() // 8),)
                delta = (expert[name].float() - base[name].float()).reshape(-1)
                marks = unpacked(mask, vector.numel())
                assert torch.equal(marks, delta * vector.float().reshape(-1) > 0)
                chunks = -(-vector.numel() // 65536)
                assert sums[name].dtype == torch.float64 and sums[name].shape == (chunks, 4)
            for name in ("ids", "mask"):
                assert torch.equal(file.get_tensor(name), expert[name])


def test_kill_at_any_moment(
    models: list[Path], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = int(killed(models, tmp_path, "emr", [0]))
    assert hashes(tmp_path / "0") == hashes(whole)
    choose = random.Random(0)
    points = [
        1,
        2,
        *choose.sample(range(3, count - 40), 5),
        *range(count - 40, count, 8),
        count - 3,
    ]
    killed(models, tmp_path, "emr", points)
    resumed = 0
    for point in points:
        folder = tmp_path / str(point)
        assert not (folder / MANIFEST).exists(), point
        with pytest.raises(MergeError, match=r"not finished|has no weights|has no revision"):
            mergekern.merge("passthrough", models=[f"{folder}@expert0"], output=tmp_path / "x")
        with monkeypatch.context() as patch:
            buffers(patch, choose.choice([2_700_000, 3_500_000, 9_000_000]))
            resumed += merge(models, folder, "emr").resumed
        assert hashes(folder) == hashes(whole), point
    assert resumed > len(points) // 3


def test_only_the_rest_is_merged(
    models: list[Path], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part that is gone is written again, by itself."""
    copy = shutil.copytree(whole, tmp_path / "c")
    shutil.rmtree(copy / "tasks/expert1")
    (copy / MANIFEST).unlink()
    report = merge(models, copy, "emr")
    assert hashes(copy) == hashes(whole) and not (copy / JOURNAL).exists()
    assert report.bytes_written < sum(p.stat().st_size for p in whole.rglob("*")) / 2
    assert merge(models, copy, "emr").bytes_written == 0
    stored = json.loads((copy / "mergekern.lock.json").read_text())
    assert list(stored["parts"]) == ["unified", "tasks/expert0", "tasks/expert1", "sums"]
