"""Whole merges through the tables of a launch: in a device's memory, and staged through it."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from devices import DEVICES
from plain_kernels import PlainKernels
from reading import owner
from safetensors.torch import save_file

import mergekern
from mergekern import api
from mergekern.arrays import Array
from mergekern.backends.choose import get_backend
from mergekern.checkpoint import memory
from mergekern.checkpoint.memory import MemoryCheckpoint
from mergekern.errors import BudgetError

CASES: list[tuple[str, dict[str, Any]]] = [
    ("linear", {}),
    ("task_arithmetic", {"lambda_": 0.7}),
    ("ties", {"density": 0.2}),
    ("ties", {"density": 0.3, "scope": "model"}),
    ("ties", {"density": 0.5, "ties": "keep"}),
    ("localize_and_stitch", {"weight": [1.0, 0.5, 2.0]}),
    ("ram", {}),
    ("ramplus_tl", {}),
    ("consensus", {"tall_mask_lambda": [0.2, 0.4, 0.6], "lambda_": 0.4}),
    ("model_stock", {"filter_wise": True}),
    ("dare_linear", {"density": 0.1, "seed": 7}),
    ("dare_ties", {"density": 0.4, "seed": 7, "rescale": "l1"}),
    ("breadcrumbs", {"density": 0.9, "gamma": 0.01}),
    ("karcher", {}),
    ("model_stock", {}),
    ("varm", {}),
    ("varm", {"granularity": "layer"}),
]
State = dict[str, torch.Tensor]


def models() -> list[State]:
    """A base and three fine-tunes of it: large and small tensors, odd lengths, two dtypes."""
    shapes = {"large": (301, 1031), "norm": (77,), "one": (1,), "empty": (0, 3), "wide": (70_001,)}
    g = torch.Generator().manual_seed(0)
    base = {name: 0.02 * torch.randn(shape, generator=g) for name, shape in shapes.items()}
    states = []
    for number in range(4):
        state = {}
        for name, x in base.items():
            delta = 3e-4 * torch.randn(x.shape, generator=g) if number else torch.zeros(())
            state[name] = (x.bfloat16().float() + delta).to(
                torch.float32 if name == "wide" else torch.bfloat16
            )
        states.append(state)
    return states


@pytest.fixture(params=DEVICES, ids=lambda backend: type(backend).__name__)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every merge that names no backend runs there."""

    def chosen(name: str, *more: Any, **options: Any) -> Any:
        return request.param if name == "auto" else get_backend(name, *more, **options)

    monkeypatch.setattr(api, "get_backend", chosen)
    yield


@pytest.mark.parametrize(("method", "parameters"), CASES)
@pytest.mark.usefixtures("device")
def test_in_memory(method: str, parameters: dict[str, Any]) -> None:
    base, *experts = models()
    call = {"base": None if method == "linear" else base, "models": experts, **parameters}
    want = mergekern.merge(method, backend="cpu", **call)
    got = mergekern.merge(method, **call)
    assert all(torch.equal(got[name], x) for name, x in want.items())


def test_all_tensors_of_a_kind_are_one_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    launches, real = [], PlainKernels.fuse
    monkeypatch.setattr(api, "get_backend", lambda *a, **o: DEVICES[0])
    monkeypatch.setattr(
        PlainKernels, "fuse", lambda self, todo: (launches.append(todo), real(self, todo))
    )
    shapes = {f"w{n}": (n % 5 + 1, 7) for n in range(40)} | {f"norm{n}": (9,) for n in range(20)}
    base, *experts = (
        {
            name: torch.randn(shape).to(torch.float32 if len(shape) == 1 else torch.bfloat16)
            for name, shape in shapes.items()
        }
        for _ in range(4)
    )
    call = {"base": base, "models": experts}
    got = mergekern.merge("task_arithmetic", **call)
    assert sorted(len(todo.segments) for todo in launches) == [20, 40]
    want = mergekern.merge("task_arithmetic", backend="reference", **call)
    assert all(torch.equal(got[name], x) for name, x in want.items())


def test_strided_models_are_copied_tensor_by_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "get_backend", lambda *a, **o: DEVICES[0])
    base, *experts = ({f"w{n}": torch.randn(30, 20) for n in range(9)} for _ in range(3))
    strided = [{name: x.t().contiguous().t() for name, x in s.items()} for s in (base, *experts)]
    copies: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    alive, real = [], MemoryCheckpoint.read

    def read(self: MemoryCheckpoint, *where: Any) -> Array:
        copy = real(self, *where)
        copies.add(owner(copy))
        alive.append(len(copies))
        return copy

    monkeypatch.setattr(MemoryCheckpoint, "read", read)
    for method, parameters in CASES[1:3]:
        want = mergekern.merge(method, base=base, models=experts, **parameters)
        got = mergekern.merge(method, base=strided[0], models=strided[1:], **parameters)
        assert all(torch.equal(got[name], x) for name, x in want.items())
    assert 3 <= max(alive) <= 6  # those of one tensor, and of the next


@pytest.mark.parametrize(("method", "parameters"), CASES)
@pytest.mark.usefixtures("device")
def test_into_a_folder(method: str, parameters: dict[str, Any], tmp_path: Path) -> None:
    folders = []
    for number, state in enumerate(models()):
        folder = tmp_path / f"model{number}"
        folder.mkdir()
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text('{"model_type": "llama", "dtype": "bfloat16"}')
        folders.append(folder)
    base = None if method == "linear" else folders[0]
    call = {"base": base, "models": folders[1:], **parameters}
    written = []
    for backend in ("cpu", "auto"):
        mergekern.merge(method, output=tmp_path / backend, backend=backend, **call)
        files = sorted((tmp_path / backend).glob("*.safetensors"))
        written.append([file.read_bytes() for file in files])
    assert written[0] == written[1] != []


def test_models_on_a_device_are_read_into_the_buffers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """So that what the host holds of them is counted, as that of files is."""
    base, *experts = models()
    held = sum(x.nbytes for state in (base, *experts) for x in state.values())
    read = []
    for place in ("cpu", "xpu"):
        monkeypatch.setattr(memory, "_device", lambda *_, place=place: torch.device(place))
        call = {"base": base, "models": experts, "output": tmp_path / place, "backend": "cpu"}
        read.append(mergekern.merge("task_arithmetic", **call).bytes_read)
    assert read == [0, held]
    one, other = (next((tmp_path / p).glob("*.safetensors")) for p in ("cpu", "xpu"))
    assert one.read_bytes() == other.read_bytes()


@pytest.fixture
def elsewhere() -> Iterator[None]:
    """A default device that holds no numbers, as a GPU's memory holds none for the host."""
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize(("method", "parameters"), CASES[1:])
def test_the_default_device_is_left_alone(
    method: str, parameters: dict[str, Any], backend: str, request: pytest.FixtureRequest
) -> None:
    base, *experts = models()
    call = {"base": base, "models": experts, "backend": backend, **parameters}
    want = mergekern.merge(method, **call)
    request.getfixturevalue("elsewhere")
    got = mergekern.merge(method, **call)
    assert all(torch.equal(got[name], x) for name, x in want.items())


@pytest.mark.usefixtures("device")
def test_findings_are_reported() -> None:
    base, *experts = models()
    experts[1]["large"][300, 1030] = torch.nan
    with pytest.raises(mergekern.MergeError, match=r"large: NaN or Inf in"):
        mergekern.merge("ties", base=base, models=experts, density=0.2)


def test_a_stretch_has_to_fit() -> None:
    staged = DEVICES[1].__class__(DEVICES[0], get_backend("reference"), room=1 << 20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "get_backend", lambda *a, **o: staged)
        base, *experts = models()
        with pytest.raises(BudgetError, match=r"max_device_memory leaves .*: give more"):
            mergekern.merge("task_arithmetic", base=base, models=experts)


def test_a_launch_that_fails_leaves_nothing_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    staged = DEVICES[1].__class__(DEVICES[0], get_backend("reference"), room=4 << 20)
    monkeypatch.setattr(api, "get_backend", lambda *a, **o: staged)
    base, *experts = models()
    call = {"base": base, "models": experts}
    want = mergekern.merge("task_arithmetic", **call)
    launches, real = [], PlainKernels.fuse

    def failing(kernels: PlainKernels, todo: Any) -> None:
        launches.append(todo)
        if len(launches) == 2:
            raise RuntimeError("out of memory")
        real(kernels, todo)

    monkeypatch.setattr(PlainKernels, "fuse", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        mergekern.merge("task_arithmetic", **call)
    assert all(slot.land() is None for slot in staged._slots)
    got = mergekern.merge("task_arithmetic", **call)
    assert all(torch.equal(got[name], x) for name, x in want.items())
