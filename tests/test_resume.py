"""Merges that were killed, interrupted or ran out of disk go on and give the same bytes."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from folders import METHODS, Watch, buffers, hashes, merge, unfinished
from folders import write_models as write
from killing import BUFFERS, environment, killed
from safetensors.torch import load_file

import mergekern
from mergekern import output as output_module
from mergekern import sampling
from mergekern.backends.cpu import CpuBackend
from mergekern.errors import MergeError, OutputError
from mergekern.journal import NAME as JOURNAL
from mergekern.journal import Journal


@pytest.mark.parametrize("name", METHODS)
def test_kill_at_any_moment(
    models: list[Path],
    wanted: dict[str, Path],
    tmp_path: Path,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    count = int(killed(models, tmp_path, name, [0]))
    assert hashes(tmp_path / "0") == hashes(wanted[name])
    middle = random.Random(0).sample(range(4, count - 12), 7)
    points = [*range(1, 4), *middle, *range(count - 11, count, 2), count]
    killed(models, tmp_path, name, points)
    resumed = 0
    for point in points:
        folder = tmp_path / str(point)
        assert unfinished(folder), point
        with monkeypatch.context() as patch:
            buffers(patch, random.Random(point).choice([2_200_000, BUFFERS, 9_000_000]))
            resumed += merge(models, folder, name).resumed
        assert hashes(folder) == hashes(wanted[name]), point
    assert resumed > len(points) // 3


def interrupted(models: list[Path], out: Path, name: str, steps: int) -> Watch:
    """A merge that is interrupted after some units have been merged."""
    left = [steps]

    def stop() -> None:
        left[0] -= "merge" in watch.phases
        if left[0] == 0:
            raise KeyboardInterrupt

    watch = Watch(stop)
    with pytest.raises(KeyboardInterrupt):
        merge(models, out, name, progress=watch)
    assert unfinished(out)
    return watch


def test_only_the_rest_is_merged(
    models: list[Path], wanted: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffers(monkeypatch, BUFFERS)
    whole = merge(models, tmp_path / "whole")
    interrupted(models, tmp_path / "out", "linear", 8)
    watch = Watch()
    report = merge(models, tmp_path / "out", progress=watch)
    assert hashes(tmp_path / "out") == hashes(wanted["linear"])
    assert 0 < report.bytes_read < whole.bytes_read
    assert 0 < report.bytes_written < whole.bytes_written
    assert watch.moved == watch.total and watch.done == watch.tensors
    assert watch.phases["resume"] == watch.total - report.bytes_read - report.bytes_written


def test_thresholds_of_the_model_are_found_once(
    models: list[Path], wanted: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffers(monkeypatch, BUFFERS)
    watch = Watch()
    merge(models, tmp_path / "whole", "breadcrumbs", progress=watch)
    assert watch.phases["thresholds"] > 0
    found = interrupted(models, tmp_path / "out", "breadcrumbs", 3).phases
    assert found["thresholds"] == watch.phases["thresholds"]
    again = Watch()
    merge(models, tmp_path / "out", "breadcrumbs", progress=again)
    assert "thresholds" not in again.phases
    assert hashes(tmp_path / "out") == hashes(wanted["breadcrumbs"])


def test_another_recipe_is_refused(models: list[Path], tmp_path: Path) -> None:
    interrupted(models, tmp_path / "out", "linear", 1)
    before = hashes(tmp_path / "out")
    with pytest.raises(OutputError, match=r"unfinished merge of another recipe.*remove the folder"):
        merge(models, tmp_path / "out", "ties")
    assert hashes(tmp_path / "out") == before


def test_changed_inputs_are_refused(tmp_path: Path) -> None:
    models = write(tmp_path)
    interrupted(models, tmp_path / "out", "linear", 1)
    os.utime(models[1] / "model.safetensors")
    with pytest.raises(OutputError, match="inputs whose files were changed since"):
        merge(models, tmp_path / "out")


def test_states_in_memory_are_not_trusted(models: list[Path], tmp_path: Path) -> None:
    """Nothing says whether a state dict is the one of the interrupted run: all is merged again."""

    def go(scale: float, watch: Watch) -> None:
        states = [load_file(folder / "model.safetensors") for folder in models[1:]]
        states = [
            {k: v * scale if v.is_floating_point() else v for k, v in s.items()} for s in states
        ]
        options = {"weight": [0.25, 0.75], "output": tmp_path / "out", "progress": watch}
        mergekern.merge("linear", models=states, **options)

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(2.0, Watch(stop))
    go(1.0, Watch())
    states = [load_file(folder / "model.safetensors") for folder in models[1:]]
    expected = mergekern.merge("linear", models=states, weight=[0.25, 0.75])
    found = load_file(tmp_path / "out/model.safetensors")
    assert isinstance(expected, dict)
    assert all(bool((found[name] == expected[name]).all()) for name in expected)


@pytest.mark.parametrize("where", ["first", "last"])
def test_damaged_ranges_are_merged_again(
    models: list[Path],
    wanted: dict[str, Path],
    tmp_path: Path,
    where: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    buffers(monkeypatch, BUFFERS)
    interrupted(models, tmp_path / "out", "linear", 10)
    journal = Journal(tmp_path / "out")
    ranges = journal.records.ranges
    journal.close()
    found = ranges[0] if where == "first" else ranges[-1]
    at = found.offset if where == "first" else found.offset + found.length - 1
    with open(tmp_path / "out" / ".model.safetensors.partial", "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))
    report = merge(models, tmp_path / "out")
    assert report.resumed
    assert hashes(tmp_path / "out") == hashes(wanted["linear"])


def test_a_finished_shard_that_was_damaged(models: list[Path], tmp_path: Path) -> None:
    """Shards that have their final name already are verified like the others."""
    merge(models, tmp_path / "whole", max_shard_size=500_000)
    out = tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        buffers(patch, BUFFERS)
        steps = len(list((tmp_path / "whole").glob("*.safetensors")))

        def stop() -> None:
            if len(list(out.glob("model-*.safetensors"))) > 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            merge(models, out, max_shard_size=500_000, progress=Watch(stop))
    shards = sorted(out.glob("model-*.safetensors"))
    assert 2 < len(shards) < steps
    with open(shards[0], "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"?")
    shards[1].unlink()
    merge(models, out, max_shard_size=500_000)
    assert hashes(out) == hashes(tmp_path / "whole")


def test_full_disk(
    models: list[Path], wanted: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffers(monkeypatch, BUFFERS)
    pwrite = os.pwrite
    calls = []

    def full(fd: int, data: memoryview, offset: int) -> int:
        calls.append(offset)
        if len(calls) > 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(fd, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(output_module.os, "pwrite", full)
        with pytest.raises(OutputError, match=r"No space left .* are free; make room, then run"):
            merge(models, tmp_path / "out")
    assert unfinished(tmp_path / "out")
    assert merge(models, tmp_path / "out").resumed
    assert hashes(tmp_path / "out") == hashes(wanted["linear"])


def test_the_limit_of_file_sizes(models: list[Path], tmp_path: Path) -> None:
    """A real refusal of the operating system, at allocation: nothing is left behind."""
    code = (
        "import folders, pathlib, resource, signal, sys\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "folders.merge([pathlib.Path(a) for a in sys.argv[2:]], pathlib.Path(sys.argv[1]))\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "out"), *map(str, models)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)
    assert "OutputError" in done.stderr and "File too large" in done.stderr
    assert not (tmp_path / "out").exists()


def test_ctrl_c(models: list[Path], wanted: dict[str, Path], tmp_path: Path) -> None:
    """SIGINT from outside, while the kernels work."""
    code = (
        "import folders, pathlib, sys, time\n"
        "from mergekern import engine\n"
        "from mergekern.backends.cpu import CpuBackend\n"
        "from mergekern.budget import MemoryEstimate\n"
        f"estimate = MemoryEstimate(0, 0, {BUFFERS}, 0, None, 1 << 26)\n"
        "engine.budget.memory_estimate = lambda *_: estimate\n"
        "fuse = CpuBackend.fuse_batch\n"
        "CpuBackend.fuse_batch = lambda *a: (time.sleep(2), fuse(*a))[1]\n"
        "folders.merge([pathlib.Path(a) for a in sys.argv[2:]], pathlib.Path(sys.argv[1]))\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "out"), *map(str, models)]
    process = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True)
    journal = tmp_path / "out" / JOURNAL
    deadline = time.monotonic() + 60
    while not journal.exists() or journal.read_bytes().count(b"\n") < 2:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0 and "KeyboardInterrupt" in errors
    assert unfinished(tmp_path / "out")
    assert merge(models, tmp_path / "out").resumed
    assert hashes(tmp_path / "out") == hashes(wanted["linear"])


def test_a_kernel_that_fails_leaves_what_is_done(
    models: list[Path], wanted: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffers(monkeypatch, BUFFERS)
    fuse = CpuBackend.fuse_batch
    calls = []

    def fail(*given: Any) -> object:
        calls.append(given)
        if len(calls) > 3:
            raise ZeroDivisionError
        return fuse(*given)

    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(CpuBackend, "fuse_batch", fail)
        merge(models, tmp_path / "out")
    assert unfinished(tmp_path / "out")
    merge(models, tmp_path / "out")
    assert hashes(tmp_path / "out") == hashes(wanted["linear"])


FAILING = ("pread", "preadv", "pwrite", "write", "fsync", "rename", "unlink", "ftruncate")


@pytest.mark.parametrize("name", FAILING)
def test_a_call_that_fails_is_said_and_resumed(
    models: list[Path],
    wanted: dict[str, Path],
    tmp_path: Path,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whichever call of the system it is: one of our errors, and the same bytes afterwards."""
    monkeypatch.setattr(sampling, "LEAST", 1 << 12)  # or nothing is left in doubt
    honest = getattr(os, name)
    calls, fails = [0], [0]

    def failing(*arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == fails[0]:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return honest(*arguments, **options)

    monkeypatch.setattr(os, name, failing)
    merge(models, tmp_path / "whole", "ties, model")
    every = calls[0]
    for number in sorted(
        {1, 2, every // 2, every - 4, every - 1, every} & set(range(1, every + 1))
    ):
        folder = tmp_path / str(number)
        calls[0], fails[0] = 0, number
        # What is read or written past the cache is tried again through it.
        with contextlib.suppress(MergeError):
            merge(models, folder, "ties, model")
        fails[0] = 0
        merge(models, folder, "ties, model")
        assert hashes(folder) == hashes(wanted["ties, model"]), number
