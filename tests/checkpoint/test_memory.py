"""State dicts and modules: views where memory allows, aliases found, all else refused by name."""

from __future__ import annotations

import pytest
import torch
from reading import owner, part, whole

from mergekern.arrays import address
from mergekern.checkpoint import open_checkpoint
from mergekern.errors import CheckpointError


def test_reads_are_views() -> None:
    weights = torch.randn(6, 5)
    checkpoint = open_checkpoint({"w": weights, "scalar": torch.tensor(3.0)})
    assert torch.equal(part(checkpoint, "w", 7, 22), weights.view(-1)[7:22])
    assert address(checkpoint.read("w", 7, 22, None)) == weights.data_ptr() + 7 * 4
    assert torch.equal(whole(checkpoint, "scalar"), torch.tensor(3.0))
    assert (checkpoint.on_disk, checkpoint.folder, checkpoint.fingerprint) == (False, None, {})
    assert checkpoint.label == "state dict" and checkpoint.config == {}
    checkpoint.verify_unchanged()
    checkpoint.close()


STRIDED = {
    "transposed": torch.arange(30.0).view(5, 6).t(),
    "sliced": torch.arange(60.0).view(6, 10)[:, 2:7],
    "stepped": torch.arange(40.0)[::3],
    "expanded": torch.arange(5.0).expand(4, 5),
    "permuted": torch.arange(60.0).view(3, 4, 5).permute(2, 0, 1),
    "channels last": torch.arange(96.0).view(2, 3, 4, 4).to(memory_format=torch.channels_last),
    "empty": torch.empty(3, 0).t(),
    "one row": torch.arange(12.0)[::2].view(1, 6),
}


@pytest.mark.parametrize("tensor", STRIDED.values(), ids=STRIDED)
def test_strided_memory_reads_in_order(tensor) -> None:
    checkpoint = open_checkpoint({"w": tensor})
    flat = tensor.contiguous().view(-1)
    for start in range(0, tensor.numel() + 1):
        for stop in range(start, tensor.numel() + 1):
            found = part(checkpoint, "w", start, stop)
            assert found.is_contiguous() and torch.equal(found, flat[start:stop])


def test_where_tensors_lie() -> None:
    placed = open_checkpoint(STRIDED).placed
    for tensor, begin, end, in_order in zip(
        STRIDED.values(), placed.begin, placed.end, placed.in_order, strict=True
    ):
        places = torch.arange(tensor.untyped_storage().nbytes() // 4).as_strided(
            tensor.shape, tensor.stride(), tensor.storage_offset()
        )
        last = int(places.max()) + 1 if tensor.numel() else 0
        first = int(places.min()) if tensor.numel() else 0
        assert begin == tensor.data_ptr() and end - begin == 4 * (last - first)
        assert in_order == tensor.is_contiguous()


def test_models_that_look_alike_share_what_is_said_of_them() -> None:
    one, other = ({"w": torch.zeros(2, 3), "v": torch.ones(4)} for _ in range(2))
    assert open_checkpoint(one).tensors is open_checkpoint(other).tensors
    for different in (
        {"w": torch.zeros(3, 2), "v": torch.ones(4)},
        {"w": torch.zeros(2, 3, dtype=torch.int32), "v": torch.ones(4)},
        {"v": torch.ones(4), "w": torch.zeros(2, 3)},
    ):
        assert list(open_checkpoint(different).tensors) == list(different)
        assert open_checkpoint(one).tensors is not open_checkpoint(different).tensors


def test_reading_a_part_copies_few_rows() -> None:
    """A tile of a transposed matrix must not cost the memory of the whole."""
    checkpoint = open_checkpoint({"w": torch.zeros(8, 1000).t()})
    found = checkpoint.read("w", 4003, 4010, None)
    assert owner(found).untyped_storage().nbytes() == 2 * 8 * 4


def test_negated_views_read_as_they_look() -> None:
    negated = torch.imag(torch.tensor([1 + 2j, 3 + 4j]).conj())
    assert negated.is_neg()
    for view in (negated, torch._neg_view(torch.tensor([2.0, 4.0]))):
        check_negated(view)


def test_parameters_read_without_their_graph() -> None:
    checkpoint = open_checkpoint({"w": torch.nn.Parameter(torch.ones(2))})
    assert not part(checkpoint, "w", 0, 2).requires_grad


def check_negated(negated: torch.Tensor) -> None:
    found = whole(open_checkpoint({"w": negated}), "w")
    assert not found.is_neg() and torch.equal(found, torch.tensor([-2.0, -4.0]))


def test_aliases() -> None:
    storage = torch.randn(4, 4)
    state = {
        "first": storage,
        "again": storage.view(4, 4),
        "turned": storage.t(),
        "upper half": storage[:2],
        "row": storage[0],
        "same row": storage[0],
        "bits": storage.view(torch.int32),
        "copy": storage.clone(),
        "none": torch.empty(0),
        "none too": torch.empty(0),
    }
    checkpoint = open_checkpoint(state)
    assert checkpoint.shared == {"again": "first", "same row": "row"}
    assert list(checkpoint.tensors) == list(state)


def test_modules(tied_llama) -> None:
    checkpoint = open_checkpoint(tied_llama.to(torch.bfloat16))
    assert checkpoint.label == "LlamaForCausalLM"
    assert checkpoint.shared == {"lm_head.weight": "model.embed_tokens.weight"}
    assert checkpoint.config["architectures"] == ["LlamaForCausalLM"]
    assert checkpoint.config["hidden_size"] == 32
    assert not part(checkpoint, "lm_head.weight", 0, 4).requires_grad
    assert open_checkpoint(torch.nn.Linear(2, 2), label="probe").config == {}
    assert open_checkpoint(torch.nn.Linear(2, 2), label="probe").label == "probe"


class Subclass(torch.Tensor):
    pass


REFUSED = {
    "nothing": ({}, "state dict: holds no tensors"),
    "a number": ({"w": torch.ones(1), "step": 3}, "not tensors: step \\(the first of type int\\)"),
    "nested": (
        {"model": {"w": torch.ones(1)}},
        "not tensors: model \\(the first of type dict\\); take",
    ),
    "key": ({3: torch.ones(1)}, "key 3 is not a tensor's name"),
    "meta": ({"w": torch.ones(1, device="meta")}, "tensor 'w': is on the meta device"),
    "sparse": ({"w": torch.ones(2, 2).to_sparse()}, "tensor 'w': is a sparse tensor, wanted"),
    "packed": (
        {"w": torch.ones(1, dtype=torch.uint8).view(torch.bits8)},
        "tensor 'w': has dtype bits8, which cannot be read: convert it",
    ),
    "subclass": ({"w": torch.ones(1).as_subclass(Subclass)}, "tensor 'w': is a Subclass, wanted"),
}


@pytest.mark.parametrize(("state", "message"), REFUSED.values(), ids=REFUSED)
def test_refuses(state, message) -> None:
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(state)


@pytest.mark.filterwarnings("ignore")  # torch has deprecated its own quantised tensors
def test_refuses_quantised_tensors() -> None:
    quantised = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)
    with pytest.raises(CheckpointError, match=r"tensor 'w': is quantised .* dequantise it first"):
        open_checkpoint({"w": quantised})


def test_refuses_other_devices() -> None:
    class Elsewhere(torch.Tensor):
        device = torch.device("xpu:1")

    from mergekern.checkpoint import memory

    tensor = torch.ones(1).as_subclass(Elsewhere)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "_plain_types", lambda: (Elsewhere,))
        with pytest.raises(CheckpointError, match="tensor 'w': is on xpu:1: move it to the CPU"):
            open_checkpoint({"w": tensor})
