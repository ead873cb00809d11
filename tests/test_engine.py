"""Whole merges into folders: what is read and written, and clear errors."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from folders import METHODS, Watch, hashes, load, merge, tensors, unfinished, write_model
from folders import write_models as write
from safetensors.torch import load_file, save_file

import mergekern
from mergekern import output as output_module
from mergekern.errors import (
    BudgetError,
    CheckpointError,
    MismatchError,
    NonFiniteError,
    OutputError,
)
from mergekern.journal import NAME as JOURNAL
from mergekern.journal import Journal


def test_from_memory_into_a_folder(models: list[Path], tmp_path: Path) -> None:
    states = [load_file(folder / "model.safetensors") for folder in models]
    options = dict(METHODS["ties"])
    method = options.pop("method")
    folder = tmp_path / "out"
    mergekern.merge(method, base=states[0], models=states[1:], output=folder, **options)
    found = load(folder)
    state = mergekern.merge(method, base=states[0], models=states[1:], **options)
    assert isinstance(state, dict)
    assert all(torch.equal(found[tensor], state[tensor]) for tensor in state)


def test_each_byte_is_read_once(models: list[Path], tmp_path: Path) -> None:
    size = sum(t.nbytes for t in tensors(0).values())
    assert merge(models, tmp_path / "linear").bytes_read == 2 * size
    assert merge(models, tmp_path / "ties", "ties").bytes_read == 3 * size


# errors


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", METHODS)
def test_non_finite_input(tmp_path: Path, name: str, value: float) -> None:
    models = write(tmp_path)
    state = load_file(models[2] / "model.safetensors")
    state["layer.2.up"][3, 4] = value
    save_file(state, models[2] / "model.safetensors")
    with pytest.raises(NonFiniteError, match=r"layer\.2\.up: NaN or Inf in .*expert1") as caught:
        merge(models, tmp_path / "out", name)
    assert "expert0" not in str(caught.value)
    assert unfinished(tmp_path / "out")


@pytest.mark.parametrize(
    "dtype, value, mend",
    [
        (torch.float16, 6e4, "set out_dtype to bfloat16, or lower the weights"),
        (torch.float32, 3e38, "at the most: lower the weights"),
    ],
)
def test_overflow(tmp_path: Path, dtype: torch.dtype, value: float, mend: str) -> None:
    a, b = ({"w": torch.full((10,), value, dtype=dtype)} for _ in range(2))
    folders = [write_model(tmp_path / name, state) for name, state in (("a", a), ("b", b))]
    options = {"models": [str(f) for f in folders], "weight": [1.0, 1.0], "normalize": False}
    with pytest.raises(NonFiniteError, match=f"w: the result is too large .*{mend}"):
        mergekern.merge("linear", output=tmp_path / "out", **options)
    assert unfinished(tmp_path / "out")


def test_discrete_tensors_must_be_equal(tmp_path: Path) -> None:
    models = write(tmp_path)
    state = load_file(models[2] / "model.safetensors")
    state["ids"][99_999] += 1
    save_file(state, models[2] / "model.safetensors")
    with pytest.raises(MismatchError, match=r"ids: differs between .* int64 .*never averaged"):
        merge(models, tmp_path / "out")
    assert unfinished(tmp_path / "out")


def test_foreign_files(models: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match=r"thesis\.txt.*choose another folder"):
        merge(models, out)
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]


def test_output_is_a_file(models: list[Path], tmp_path: Path) -> None:
    (tmp_path / "out").write_text("years of work")
    with pytest.raises(OutputError, match="is a file"):
        merge(models, tmp_path / "out")
    with pytest.raises(OutputError, match="cannot be written"):
        merge(models, tmp_path / "out" / "below")
    assert (tmp_path / "out").read_text() == "years of work"


def test_merging_again(models: list[Path], tmp_path: Path) -> None:
    merge(models, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    report = merge(models, tmp_path / "out")
    assert report.bytes_read == report.bytes_written == 0
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    with pytest.raises(OutputError, match="finished merge of another recipe"):
        merge(models, tmp_path / "out", weight=[0.5, 0.5])
    (tmp_path / "out/model.safetensors").unlink()
    with pytest.raises(OutputError, match=r"model\.safetensors is missing"):
        merge(models, tmp_path / "out")


def test_two_merges_into_one_folder(models: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    other = Journal(out)
    with pytest.raises(OutputError, match="another process"):
        merge(models, out)
    other.close()
    merge(models, out)


def test_least_memory(models: list[Path], tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match=r"max_memory is 10 MiB, wanted (\d+) MiB") as caught:
        merge(models, tmp_path / "out", max_memory=10 << 20)
    assert not (tmp_path / "out").exists()
    least = int(str(caught.value).split("wanted ")[1].split()[0])
    merge(models, tmp_path / "out", max_memory=f"{least + 8}MiB")


def test_no_space(models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = output_module.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(output_module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OutputError, match="only 1000 are free"):
        merge(models, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_space_to_allocate(
    models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(output_module.os, "posix_fallocate", full)
    with pytest.raises(OutputError, match=r"No space left.*bytes.*free; make room"):
        merge(models, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_file_systems_without_fallocate(
    models: list[Path], wanted: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(output_module.os, "posix_fallocate", unsupported)
    merge(models, tmp_path / "out")
    assert hashes(tmp_path / "out") == hashes(wanted["linear"])


def test_inputs_changed_while_merging(tmp_path: Path) -> None:
    models = write(tmp_path)
    watch = Watch(lambda: os.utime(models[1] / "model.safetensors"))
    with pytest.raises(CheckpointError, match="was changed while it was being read"):
        merge(models, tmp_path / "out", progress=watch)
    assert unfinished(tmp_path / "out")
    with pytest.raises(OutputError, match="inputs whose files were changed since"):
        merge(models, tmp_path / "out")


def test_a_reader_that_fails_stops_everything(
    models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(CheckpointError, match="expert0"):
        merge(models, tmp_path / "out")


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (OutputError("no tokenizer today"), "no tokenizer today"),
        (
            OSError(errno.ENOSPC, "No space left on device", "config.json"),
            "config.json .*make room",
        ),
    ],
)
def test_finish_that_fails(
    models: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    wanted: str,
) -> None:
    def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch, pytest.raises(OutputError, match=wanted):
        patch.setattr(mergekern.jobs, "write_side_files", fail)
        merge(models, tmp_path / "out")
    assert unfinished(tmp_path / "out")
    report = merge(models, tmp_path / "out")
    assert report.resumed and report.bytes_read == 0
    assert not (tmp_path / "out" / JOURNAL).exists()
    assert json.loads((tmp_path / "out/config.json").read_text())["model_type"] == "test"
