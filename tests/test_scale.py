"""Models of very many tensors: planning takes steps in proportion, files open beyond the limit."""

from __future__ import annotations

import gc
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from headers import mixture, write_headers
from safetensors import safe_open

import mergekern
from mergekern.checkpoint import open_checkpoint
from mergekern.collector import collector_paused
from mergekern.errors import CheckpointError

TINY = {"hidden": 32, "width": 8}


def write(root: Path, tensors: int, shards: int, models: int = 3) -> list[str]:
    """A base and experts, as strings that recipes take."""
    names = ["base", *(f"expert{number}" for number in range(models - 1))]
    return [str(write_headers(root / name, tensors, shards, **TINY)) for name in names]


def test_made_folders_are_checkpoints_that_take_no_room(tmp_path) -> None:
    folder = write_headers(tmp_path / "model", 900, 7, hidden=64, width=512)
    assert len(mixture(900)) == 900
    assert [info.shape for info in open_checkpoint(folder).tensors.values()] == [
        shape for _, shape in mixture(900, 64, 512)
    ]
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) == 7
    names = []
    for file in files:
        with safe_open(file, framework="pt") as opened:
            names += opened.offset_keys()
    assert names == [name for name, _ in mixture(900)]
    held = sum(file.stat().st_blocks * 512 for file in files)
    assert held < sum(file.stat().st_size for file in files) / 50


def test_a_planned_merge_of_many_small_tensors_runs(tmp_path) -> None:
    base, *models = write(tmp_path, 500, 20)
    output = tmp_path / "out"
    arguments = {"base": base, "models": models, "density": 0.2, "max_shard_size": "10kB"}
    report = mergekern.merge("ties", **arguments, output=output)
    assert report.tensors == 500
    assert len(list(output.glob("*.safetensors"))) > 20
    assert list(open_checkpoint(output).tensors) == [name for name, _ in mixture(500)]


def bytecodes(run: Callable[[], Any]) -> int:
    """How many bytecodes of this package a call executes: its cost, without a clock."""
    count = 0
    package = str(Path(mergekern.__file__).parent)

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        if not frame.f_code.co_filename.startswith(package):
            return None
        frame.f_trace_opcodes = True
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        run()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize(
    "options",
    [
        {"recipe_or_method": "linear"},
        {"recipe_or_method": "ties", "density": 0.2},
        {"recipe_or_method": "ties", "density": 0.2, "scope": "model"},
    ],
    ids=["linear", "ties", "ties of the model"],
)
def test_planning_is_linear_in_tensors(tmp_path, options) -> None:
    def cost(tensors: int) -> int:
        base, *models = write(tmp_path / str(tensors), tensors, tensors // 10)
        inputs = {"models": [base, *models]}
        if options["recipe_or_method"] != "linear":
            inputs = {"base": base, "models": models}

        def run() -> None:
            plan = mergekern.plan(**options, **inputs, max_shard_size="20kB")
            assert len(plan.digest) == 64 and len(str(plan)) > 100
            assert len(plan.shards) > tensors // 50

        run()  # what is made once is made now
        return bytecodes(run)

    few, many = cost(200), cost(800)
    assert many < 4.1 * few


@pytest.fixture
def few_descriptors() -> Iterator[int]:
    """A soft limit that leaves room for a handful of files."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with open("/dev/null") as file:
        limit = file.fileno() + 16
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
    yield limit
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_opens_more_files_than_the_soft_limit(tmp_path, few_descriptors) -> None:
    base, *models = write(tmp_path, 100, 30)
    output = tmp_path / "out"
    report = mergekern.merge("linear", models=[base, *models], output=output, max_shard_size="1kB")
    assert report.tensors == 100
    assert len(list(output.glob("*.safetensors"))) > few_descriptors
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > few_descriptors


def test_the_hard_limit_is_named(tmp_path, few_descriptors, monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "setrlimit", refuse)
    folder = write_headers(tmp_path / "model", 100, 30, **TINY)
    message = rf"cannot be opened: all {few_descriptors} files .* are open; raise ulimit -n"
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(folder)
    monkeypatch.undo()


def test_the_collector_runs_again_after_planning() -> None:
    with pytest.raises(KeyError), collector_paused():
        assert not gc.isenabled()
        raise KeyError
    assert gc.isenabled()
    gc.disable()
    try:
        with collector_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
