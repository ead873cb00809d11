"""The lock file: what it records, and that a finished merge is not trusted when inputs changed."""

from __future__ import annotations

import json
import os

import pytest
from folders import Watch, hashes
from models import tiny_llama
from safetensors.torch import load_file, save_file

import mergekern
from mergekern.errors import OutputError
from mergekern.lock import LOCK


def test_the_lock_holds_what_the_bytes_were_made_from(tmp_path) -> None:
    base, model = tiny_llama(tmp_path / "base"), tiny_llama(tmp_path / "a", 1)
    inputs = {"base": base, "models": [model], "mismatch": "skip-model"}
    mergekern.merge("dare_ties", **inputs, output=tmp_path / "o", seed=3)
    content = json.loads((tmp_path / "o" / LOCK).read_text())
    assert content["plan"] == mergekern.plan("dare_ties", **inputs, seed=3).digest
    assert content["recipe"]["merge_method"] == "dare_ties"
    assert (content["seed"], content["mismatch"]) == (3, "skip-model")
    assert [entry["model"] for entry in content["models"]] == [str(base), str(model)]
    file = content["models"][0]["files"]["model.safetensors"]
    assert file["size"] == os.path.getsize(base / "model.safetensors")
    assert len(file["header_sha256"]) == 64
    assert content["tensors"] == {"merged": 21, "copied": 0, "left_out": 0}
    assert set(content["versions"]) == {"mergekern", "torch", "python"}


def test_a_finished_merge_is_done_until_an_input_changes(tmp_path) -> None:
    model = tiny_llama(tmp_path / "a", 1)
    first = mergekern.merge("linear", models=[model], output=tmp_path / "o")
    again = mergekern.merge("linear", models=[model], output=tmp_path / "o")
    assert isinstance(first, mergekern.MergeReport) and not first.resumed
    assert isinstance(again, mergekern.MergeReport) and again.resumed
    file = model / "model.safetensors"
    save_file(
        {name: 2 * tensor for name, tensor in load_file(file).items()}, file, {"format": "pt"}
    )
    with pytest.raises(OutputError, match=r"finished merge of this recipe, but the files of .*a h"):
        mergekern.merge("linear", models=[model], output=tmp_path / "o")


def test_a_model_that_is_replaced_during_the_merge(tmp_path) -> None:
    """What was opened is merged; what came into its place is not what the weights were made of."""
    model = tiny_llama(tmp_path / "a", 1)
    other = tiny_llama(tmp_path / "b", 2)
    wanted = mergekern.merge("linear", models=[model], output=tmp_path / "wanted")
    assert isinstance(wanted, mergekern.MergeReport)

    def replace() -> None:
        if (other / "model.safetensors").exists():
            os.rename(other / "model.safetensors", model / "model.safetensors")

    mergekern.merge("linear", models=[model], output=tmp_path / "o", progress=Watch(replace))
    assert hashes(tmp_path / "o") == hashes(tmp_path / "wanted")
    with pytest.raises(OutputError, match=r"finished merge of this recipe, but the files of .*a h"):
        mergekern.merge("linear", models=[model], output=tmp_path / "o")


def test_a_model_that_is_removed_during_the_merge(tmp_path) -> None:
    model = tiny_llama(tmp_path / "a", 1)
    remove = (model / "model.safetensors").unlink
    mergekern.merge(
        "linear", models=[model], output=tmp_path / "o", progress=Watch(lambda: remove(True))
    )
    assert (tmp_path / "o" / LOCK).exists()


def test_a_lock_that_is_none_is_left_to_the_engine(tmp_path) -> None:
    model = tiny_llama(tmp_path / "a", 1)
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / LOCK).write_text("[]")
    with pytest.raises(OutputError, match="o: holds"):
        mergekern.merge("linear", models=[model], output=tmp_path / "o")
