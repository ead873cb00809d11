"""What may be given as a model, and what is said of everything else."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mergekern.checkpoint import open_checkpoint
from mergekern.errors import CheckpointError

STATE = {"w": torch.ones(2)}
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


def test_folder_path_or_text(tmp_path) -> None:
    save_file(STATE, tmp_path / "model.safetensors")
    assert open_checkpoint(tmp_path).label == str(tmp_path)
    assert open_checkpoint(str(tmp_path), label="mine").label == "mine"
    assert open_checkpoint(tmp_path).config == {}


def test_files_without_tensors(tmp_path) -> None:
    save_file({}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model.safetensors holds no tensors"):
        open_checkpoint(tmp_path)


def test_single_file_and_what_lies_beside(tmp_path) -> None:
    save_file(STATE, tmp_path / "any-name.safetensors")
    checkpoint = open_checkpoint(tmp_path / "any-name.safetensors")
    assert list(checkpoint.tensors) == ["w"] and checkpoint.folder is None
    (tmp_path / "config.json").write_text('{"model_type": "llama", "limit": Infinity}')
    checkpoint = open_checkpoint(tmp_path / "any-name.safetensors")
    assert checkpoint.folder == tmp_path and checkpoint.config["model_type"] == "llama"


def test_home_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    save_file(STATE, tmp_path / "model.safetensors")
    assert list(open_checkpoint("~/model.safetensors").tensors) == ["w"]


def test_one_file_goes_before_an_index_as_in_transformers(tmp_path) -> None:
    save_file(STATE, tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"v": "gone"}}')
    assert list(open_checkpoint(tmp_path).tensors) == ["w"]


FOLDERS = {
    "empty": ([], "has no weights; what is read: model.safetensors, model.safetensors.index.json"),
    "gguf": (["model-Q4_K_M.gguf"], "of a kind that is not read: model-Q4_K_M.gguf; what is read"),
    "original": (["consolidated.00.pth", "params.json"], "not read: consolidated.00.pth; what is"),
    "flax and tf": (["tf_model.h5", "flax_model.msgpack"], "not read: flax_model.msgpack, tf_mod"),
    "another name": (["model.fp16.safetensors"], "not read: model.fp16.safetensors; .* its path"),
    "no index": (
        ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
        "has shards .* but no index that says what belongs to them: add model.safetensors.index",
    ),
}


@pytest.mark.parametrize(("names", "message"), FOLDERS.values(), ids=FOLDERS)
def test_folders_without_a_model(tmp_path, names, message) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"{}")
    with pytest.raises(CheckpointError, match=f"{tmp_path}: .*{message}"):
        open_checkpoint(tmp_path)


FILES = {
    "model.gguf": "has weights of a kind that is not read: model.gguf",
    "model-00001-of-00003.safetensors": "is one shard of 3: give its folder instead",
    "pytorch_model-00001-of-00003.bin": "is one shard of 3: give its folder instead",
    "pytorch_model.bin": "is a file of a model folder: give the folder instead",
    "model.safetensors.index.json": "is a file of a model folder: give the folder instead",
    "notes.txt": "has no weights; what is read",
    "model.safetensors": "is a Git LFS pointer, not weights: run git lfs pull",
}


@pytest.mark.parametrize(("name", "message"), FILES.items(), ids=FILES)
def test_files_that_are_no_model(tmp_path, name, message) -> None:
    (tmp_path / name).write_bytes(LFS)
    with pytest.raises(CheckpointError, match=f"{tmp_path / name}: {message}"):
        open_checkpoint(tmp_path / name)


def test_adapter_given_as_a_file(tmp_path) -> None:
    save_file(STATE, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"adapter_model.safetensors: is a LoRA adapter"):
        open_checkpoint(tmp_path / "adapter_model.safetensors")


def test_things_that_are_no_files(tmp_path) -> None:
    os.mkfifo(tmp_path / "model.safetensors")  # opening it would wait for ever
    with pytest.raises(CheckpointError, match=r"model.safetensors: is not a regular file"):
        open_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "gone")
    with pytest.raises(CheckpointError, match=r"model.safetensors: cannot be opened: No such file"):
        open_checkpoint(tmp_path)


def test_unreadable(tmp_path, monkeypatch) -> None:
    save_file(STATE, tmp_path / "model.safetensors")

    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(CheckpointError, match=r"model.safetensors: cannot be opened: Permission"):
        open_checkpoint(tmp_path)
    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(CheckpointError, match=f"{tmp_path}: cannot be read: Permission denied"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "7"])
def test_bad_config(tmp_path, text) -> None:
    save_file(STATE, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(
        CheckpointError, match=r"config\.json: (is not valid JSON|holds a (list|int))"
    ):
        open_checkpoint(tmp_path)


def test_paths_that_do_not_exist() -> None:
    message = "gone/: no such file or folder (looked in {}), and a Hub id would be org/name"
    with pytest.raises(CheckpointError, match=re.escape(message.format(Path.cwd()))):
        open_checkpoint("gone/")
    for name in ("/gone/x", "a/b/c", "gone/model.safetensors", "a--b/c", "..", "", " x"):
        if Path(name).exists():
            continue
        with pytest.raises(CheckpointError, match="no such file or folder"):
            open_checkpoint(name)


def test_revisions_are_of_the_hub(tmp_path) -> None:
    save_file(STATE, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="is a local path, which has no revision 'main'"):
        open_checkpoint(tmp_path, revision="main")
    with pytest.raises(CheckpointError, match="'main' was given with a model that is in memory"):
        open_checkpoint(STATE, revision="main")


def test_other_objects() -> None:
    with pytest.raises(CheckpointError, match="cannot read a model from a list; wanted a folder"):
        open_checkpoint([1])  # type: ignore[arg-type]
