"""The Hub, without it: a hand-made cache, and a stand-in for its answers."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants, errors
from safetensors.torch import save_file

from mergekern.checkpoint import hub, open_checkpoint
from mergekern.errors import CheckpointError

SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty Hub cache, and no Hub."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def add_to_cache(cache: Path, files: dict[str, bytes], refs: tuple[str, ...] = ("main",)) -> Path:
    """Lay out org/name as huggingface_hub does: blobs, and snapshots of links to them."""
    repo = cache / "models--org--name"
    snapshot = repo / "snapshots" / SHA
    for folder in (repo / "refs", repo / "blobs", snapshot):
        folder.mkdir(parents=True, exist_ok=True)
    for ref in refs:
        (repo / "refs" / ref).write_text(SHA)
    for name, data in files.items():
        (repo / "blobs" / name).write_bytes(data)
        (snapshot / name).symlink_to(f"../../blobs/{name}")
    return snapshot


def weights(tmp_path: Path, **tensors: float) -> bytes:
    path = tmp_path / "made.safetensors"
    save_file({name: torch.tensor([value]) for name, value in tensors.items()}, path)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("source", "revision"),
    [
        ("org/name", None),
        ("org/name", "main"),
        ("org/name@v1", None),
        ("org/name@v1", "v1"),
        (f"org/name@{SHA}", None),
    ],
)
def test_reads_from_the_cache(cache, tmp_path, source, revision) -> None:
    files = {"model.safetensors": weights(tmp_path, w=3.0), "config.json": b'{"a": 1}'}
    snapshot = add_to_cache(cache, files, ("main", "v1"))
    checkpoint = open_checkpoint(source, revision=revision)
    assert checkpoint.label == source and checkpoint.folder == snapshot
    assert checkpoint.config == {"a": 1}
    assert checkpoint.read("w", 0, 1, None) == 3.0
    checkpoint.verify_unchanged()


def test_reads_shards_from_the_cache(cache, tmp_path) -> None:
    index = {"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}
    files = {
        "1.safetensors": weights(tmp_path, a=1.0),
        "2.safetensors": weights(tmp_path, b=2.0),
        "model.safetensors.index.json": json.dumps(index).encode(),
    }
    snapshot = add_to_cache(cache, files)
    assert list(open_checkpoint("org/name").tensors) == ["a", "b"]
    (snapshot / "2.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"1 of 2 shards are missing: 2.safetensors"):
        open_checkpoint("org/name")


def test_local_folders_go_first(cache, tmp_path, monkeypatch) -> None:
    add_to_cache(cache, {"model.safetensors": weights(tmp_path, w=3.0)})
    monkeypatch.chdir(tmp_path)
    Path("org/name").mkdir(parents=True)
    save_file({"w": torch.tensor([5.0])}, "org/name/model.safetensors")
    assert open_checkpoint("org/name").read("w", 0, 1, None) == 5.0


def test_partial_cache(cache) -> None:
    snapshot = add_to_cache(cache, {"config.json": b"{}"})
    with pytest.raises(CheckpointError, match=rf"org/name \({snapshot}\): has no weights"):
        open_checkpoint("org/name")


def test_offline_and_not_cached(cache) -> None:
    message = (
        rf"org/name: no such local folder, and it is not in the cache \({cache}\) while "
        r"HF_HUB_OFFLINE is set; unset it, or download the model first"
    )
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint("org/name")
    assert "\n" not in str(caught.value)
    add_to_cache(cache, {"config.json": b"{}"})
    with pytest.raises(CheckpointError, match="org/name@v2: no such local folder, and it is not"):
        open_checkpoint("org/name@v2")


def test_two_revisions(cache) -> None:
    with pytest.raises(CheckpointError, match="names a revision, but revision 'v2' is given too"):
        open_checkpoint("org/name@v1", revision="v2")


RESPONSE = SimpleNamespace(headers={}, request=None)
ANSWERS = {
    "gated": (
        errors.GatedRepoError("no", response=RESPONSE),
        "org/name: is gated: accept its terms at https://.*/org/name and log in with `hf auth",
    ),
    "not found": (
        errors.RepositoryNotFoundError("no", response=RESPONSE),
        "org/name: no such local folder, and the Hub has no such model that you may see; check",
    ),
    "revision": (
        errors.RevisionNotFoundError("no", response=RESPONSE),
        "no such local folder, and org/name on the Hub has no revision 'v9'",
    ),
    "no network": (
        ConnectionError("name not known\nreally"),
        r"the Hub could not be asked \(name not known really\); try again, or give a local folder",
    ),
}


@pytest.mark.parametrize(("answer", "message"), ANSWERS.values(), ids=ANSWERS)
def test_answers_of_the_hub(cache, tmp_path, monkeypatch, answer, message) -> None:
    def model_info(*_: object, **__: object) -> None:
        raise answer

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    source = "org/name@v9" if "v9" in message else "org/name"
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(source)
    assert "\n" not in str(caught.value)
    add_to_cache(cache, {"model.safetensors": weights(tmp_path, w=3.0)}, ("main", "v9"))
    assert open_checkpoint(source).read("w", 0, 1, None) == 3.0


@pytest.fixture
def online(cache, monkeypatch):
    """A Hub whose model has the files given to it; what was downloaded is kept in `asked`."""
    asked: list[tuple[str | None, list[str]]] = []
    offered: dict[str, bytes] = {}

    def model_info(_: object, repo: str, **__: object) -> SimpleNamespace:
        assert repo == "org/name"
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in offered])

    def download(
        _: str, *, revision: str | None, allow_patterns: list[str], cache_dir: Path | None
    ) -> str:
        asked.append((revision, sorted(allow_patterns)))
        return str(add_to_cache(cache, {name: offered[name] for name in allow_patterns}))

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return SimpleNamespace(asked=asked, offered=offered)


SIDE = {"config.json": b"{}", "tokenizer.json": b"{}", "chat_template.jinja": b"", "x.py": b""}
OTHERS = {"README.md": b"", "original/a.pth": b"", "onnx/config.json": b"", "model.gguf": b""}


def test_downloads_weights_of_one_kind(online, tmp_path) -> None:
    data = weights(tmp_path, w=3.0)
    online.offered |= SIDE | OTHERS | {"model.safetensors": data, "pytorch_model.bin": b""}
    checkpoint = open_checkpoint("org/name@v1")
    assert online.asked == [("v1", sorted(["model.safetensors", *SIDE]))]
    assert checkpoint.read("w", 0, 1, None) == 3.0


def test_downloads_the_shards_that_the_index_names(online, tmp_path) -> None:
    index = {"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}
    online.offered |= SIDE | {
        "1.safetensors": weights(tmp_path, a=1.0),
        "2.safetensors": weights(tmp_path, b=2.0),
        "consolidated.safetensors": b"",
        "model.safetensors.index.json": json.dumps(index).encode(),
        "pytorch_model.bin.index.json": b"",
    }
    assert list(open_checkpoint("org/name").tensors) == ["a", "b"]
    assert online.asked == [
        (None, sorted(["model.safetensors.index.json", *SIDE])),
        (SHA, ["1.safetensors", "2.safetensors"]),
    ]


def test_downloads_nothing_of_what_it_cannot_read(online) -> None:
    online.offered |= SIDE | {"model-Q8_0.gguf": b""}
    with pytest.raises(
        CheckpointError, match="org/name on the Hub has weights of a kind that is n"
    ):
        open_checkpoint("org/name")
    online.offered |= {"adapter_config.json": b"{}"}
    with pytest.raises(CheckpointError, match="org/name on the Hub: is no LoRA adapter: it has no"):
        open_checkpoint("org/name")
    assert online.asked == []


@pytest.mark.parametrize("whole", [False, True], ids=["an adapter alone", "beside a model"])
def test_downloads_adapters(online, tmp_path, whole) -> None:
    save_file({"q.weight": torch.ones(2, 2)}, tmp_path / "base.safetensors")
    factors = {"q.lora_A.weight": torch.ones(1, 2), "q.lora_B.weight": torch.ones(2, 1)}
    save_file(factors, tmp_path / "made.safetensors")
    settings = {"peft_type": "LORA", "r": 1, "lora_alpha": 3}
    settings["base_model_name_or_path"] = str(tmp_path / "base.safetensors")
    adapter = {
        "adapter_config.json": json.dumps(settings).encode(),
        "adapter_model.safetensors": (tmp_path / "made.safetensors").read_bytes(),
    }
    online.offered |= adapter | {"tokenizer.json": b"{}", "README.md": b""}
    if whole:
        online.offered["model.safetensors"] = b""
        checkpoint = open_checkpoint(
            tmp_path / "base.safetensors", lora="org/name", lora_revision="v1"
        )
    else:
        checkpoint = open_checkpoint("org/name@v1")
    assert checkpoint.read("q.weight", 0, 4, None).tolist() == [4.0] * 4
    assert online.asked == [("v1", sorted([*adapter, "tokenizer.json"]))]


def test_gated_downloads(online, monkeypatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise errors.GatedRepoError("no", response=RESPONSE)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    online.offered |= {"model.safetensors": b""}
    with pytest.raises(CheckpointError, match="org/name: is gated: accept its terms"):
        open_checkpoint("org/name")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("org/name", ("org/name", None)),
        ("gpt2", ("gpt2", None)),
        ("Org_1/na.me-2@refs/pr/3", ("Org_1/na.me-2", "refs/pr/3")),
        ("a/b/c", None),
        ("./org", None),
        ("org/", None),
        ("org/a..b", None),
        ("org/model.safetensors", None),
        ("größe/name", None),
    ],
)
def test_parse_id(text, wanted) -> None:
    found = hub.parse_id(text, None)
    assert (found and (found.repo, found.revision)) == wanted
    assert found is None or str(found) == text


def test_another_cache_is_looked_into(cache, tmp_path, monkeypatch) -> None:
    other = tmp_path / "other"
    snapshot = add_to_cache(other, {"model.safetensors": weights(tmp_path, w=3.0)})
    assert open_checkpoint("org/name", cache=other).folder == snapshot
    with pytest.raises(CheckpointError, match="not in the cache"):
        open_checkpoint("org/name")
