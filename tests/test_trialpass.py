"""Whole-model trimming streams in one pass: the bytes of two passes, also after a kill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from folders import Watch, buffers, hashes, load, write_model

import mergekern
from mergekern import output, sampling, speculation, trialpass, trimming
from mergekern.checkpoint import direct
from mergekern.journal import Journal
from mergekern.keys import Key

SIZES = {"a": 400_000, "b": 65_536, "c": 33, "d": 700_001, "e": 1}  # in the order of the files
BUFFERS = 3_000_000
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def model(dtype: torch.dtype, near: dict[str, torch.Tensor] | None, seed: int) -> Any:
    g = torch.Generator().manual_seed(seed)
    state = {}
    for name, numel in SIZES.items():
        x = torch.randn(numel, generator=g)
        state[name] = (near[name].float() + 3e-4 * x if near else 0.02 * x).to(dtype)
    return state


@pytest.fixture(scope="module", params=DTYPES)
def states(request) -> list[dict[str, torch.Tensor]]:
    """fp32 has few equal magnitudes, so that elements are left in doubt; bf16 has masses."""
    base = model(DTYPES[request.param], None, 0)
    return [base, *(model(DTYPES[request.param], base, seed) for seed in (1, 2, 3))]


@pytest.fixture
def folders(states, tmp_path: Path) -> list[str]:
    return [str(write_model(tmp_path / f"m{i}", s)) for i, s in enumerate(states)]


def options(ties: str, **more: Any) -> dict[str, Any]:
    return {"density": [0.2, 0.5, 1.0], "scope": "model", "ties": ties} | more


def stream(folders: list[str], out: Path, ties: str, **more: Any) -> Any:
    base, *models = folders
    given = options(ties, **more)
    return mergekern.merge("ties", base=base, models=models, output=str(out), **given)


def assert_merged(states, out: Path, ties: str) -> None:
    """What counting gives, on tensors in memory."""
    base, *models = states
    want = mergekern.merge("ties", base=base, models=models, backend="reference", **options(ties))
    found = load(out)
    for name, tensor in want.items():
        assert torch.equal(found[name], tensor), name


def stopping_after(units: int) -> Watch:
    left = [units]

    def stop() -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt

    return Watch(stop)


@pytest.mark.parametrize("ties", ["index", "keep"])
@pytest.mark.parametrize("past_the_cache", [True, False])
@pytest.mark.parametrize("threads", [1, 2, 8])
def test_one_read(states, folders, tmp_path, ties, past_the_cache, threads, monkeypatch) -> None:
    buffers(monkeypatch, BUFFERS)
    monkeypatch.setattr(direct, "forced", past_the_cache)
    monkeypatch.setattr(sampling, "LEAST", 1 << 12)  # as small beside these models as beside others
    watch = Watch()
    report = stream(folders, tmp_path / "out", ties, threads=threads, progress=watch)
    assert_merged(states, tmp_path / "out", ties)
    inputs = sum(x.nbytes for state in states for x in state.values())
    assert report.bytes_read < 1.25 * inputs  # small models, large sample
    assert watch.moved == watch.total and watch.done == watch.tensors
    assert not list((tmp_path / "out").glob(".*"))


@pytest.mark.parametrize("ties", ["index", "keep"])
@pytest.mark.parametrize("why", ["misled", "too much open"])
def test_a_lost_trial_merges_all_again(states, folders, tmp_path, ties, why, monkeypatch) -> None:
    buffers(monkeypatch, BUFFERS)
    honest = trimming.guess

    def mislead(*arguments, **named):
        guesses = honest(*arguments, **named).items()
        return {wanted: (Key(high.magnitude + 99, 0),) * 2 for wanted, (high, _) in guesses}

    if why == "misled":
        monkeypatch.setattr(trimming, "guess", mislead)
    else:

        def apart(*arguments, **named):
            return {
                w: (Key(high.magnitude + 1, -1), Key(0, 1 << 60))
                for w, (high, _) in honest(*arguments, **named).items()
            }

        monkeypatch.setattr(trimming, "guess", apart)
    watch = Watch()
    stream(folders, tmp_path / "out", ties, progress=watch)
    assert_merged(states, tmp_path / "out", ties)
    assert watch.moved == watch.total


@pytest.mark.parametrize("ties", ["index", "keep"])
@pytest.mark.parametrize("units", [1, 3, 6])
def test_a_trial_that_was_interrupted_goes_on(
    states, folders, tmp_path, ties, units, monkeypatch
) -> None:
    buffers(monkeypatch, BUFFERS)
    monkeypatch.setattr(sampling, "LEAST", 1 << 12)
    with pytest.raises(KeyboardInterrupt):
        stream(folders, tmp_path / "out", ties, progress=stopping_after(units))
    seen = []
    honest = trialpass.go_on_with_trial

    def go_on(*arguments):
        seen.append(arguments)
        return honest(*arguments)

    monkeypatch.setattr(trialpass, "go_on_with_trial", go_on)
    whole = stream(folders, tmp_path / "whole", ties)
    report = stream(folders, tmp_path / "out", ties)
    assert len(seen) == 1
    assert report.bytes_read < whole.bytes_read
    assert_merged(states, tmp_path / "out", ties)
    lock = "mergekern.lock.json"
    same = [{k: v for k, v in hashes(tmp_path / x).items() if k != lock} for x in ("out", "whole")]
    assert same[0] == same[1]


def test_a_trial_goes_on_with_less_memory(states, folders, tmp_path, monkeypatch) -> None:
    """What was written at a time before does not fit the buffers now."""
    monkeypatch.setattr(sampling, "LEAST", 1 << 12)
    buffers(monkeypatch, 32_000_000)
    with pytest.raises(KeyboardInterrupt):
        stream(folders, tmp_path / "out", "index", progress=stopping_after(1))
    buffers(monkeypatch, BUFFERS // 2)
    stream(folders, tmp_path / "out", "index")
    assert_merged(states, tmp_path / "out", "index")


@pytest.mark.parametrize("units", [1, 3, 6])
def test_an_overflow_is_not_forgotten_by_an_interruption(tmp_path, units, monkeypatch) -> None:
    buffers(monkeypatch, BUFFERS)
    monkeypatch.setattr(sampling, "LEAST", 1 << 12)
    base = model(torch.float16, None, 0)
    tuned = model(torch.float16, base, 1)
    base["a"][5], tuned["a"][5] = 30_000, 60_000
    paths = [str(write_model(tmp_path / f"m{i}", s)) for i, s in enumerate((base, tuned))]
    more = {"density": 0.2, "lambda_": 2.0}
    with pytest.raises(KeyboardInterrupt):
        stream(paths, tmp_path / "out", "index", progress=stopping_after(units), **more)
    with pytest.raises(mergekern.MergeError, match=r"a: the result is too large for float16"):
        stream(paths, tmp_path / "out", "index", **more)


def test_a_model_whose_trimmed_tensors_are_empty(tmp_path) -> None:
    """The one expert that is trimmed has only an empty tensor: there is nothing to rank."""
    g = torch.Generator().manual_seed(0)
    base = {"a": torch.randn(70_000, generator=g), "none": torch.zeros(0, 4)}
    full = {"a": base["a"] + 0.01, "none": torch.zeros(0, 4)}
    states = [base, full, {"none": torch.zeros(0, 4)}]
    paths = [str(write_model(tmp_path / f"m{i}", s)) for i, s in enumerate(states)]
    more = {"density": [1.0, 0.2], "mismatch": "skip-model"}
    stream(paths, tmp_path / "out", "index", **more)
    want = mergekern.merge(
        "ties", base=base, models=states[1:], scope="model", backend="reference", **more
    )
    found = load(tmp_path / "out")
    assert found.keys() == want.keys()
    assert all(torch.equal(found[name], want[name]) for name in want)


@pytest.mark.parametrize("ties", ["index", "keep"])
def test_a_lost_trial_that_was_interrupted(states, folders, tmp_path, ties, monkeypatch) -> None:
    """What a pass that has lost saw last is not all there: who goes on must not build on it."""
    buffers(monkeypatch, BUFFERS)
    monkeypatch.setattr(sampling, "LEAST", 1 << 12)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(speculation, "most_open", lambda *_: -1)
        context.setattr(trialpass, "outcome", interrupt)
        with pytest.raises(KeyboardInterrupt):
            stream(folders, tmp_path / "out", ties)
    journal = Journal(tmp_path / "out")
    journal.close()
    assert journal.records.bets and not journal.records.tried
    stream(folders, tmp_path / "out", ties)
    assert_merged(states, tmp_path / "out", ties)


def test_what_was_left_open_before_an_interruption_counts(
    states, folders, tmp_path, monkeypatch
) -> None:
    """The room for open elements is that of a pass, however often it was begun."""
    buffers(monkeypatch, BUFFERS)
    monkeypatch.setattr(sampling, "LEAST", 1 << 12)
    with pytest.raises(KeyboardInterrupt):
        stream(folders, tmp_path / "out", "index", progress=stopping_after(6))
    journal = Journal(tmp_path / "out")
    journal.close()
    opened = sum(entry.count for tried in journal.records.tried for entry in tried.doubts)
    assert opened or states[0]["a"].dtype == torch.bfloat16
    monkeypatch.setattr(speculation, "most_open", lambda *_: opened - 1)
    restored = []
    honest = trialpass.go_on_with_trial

    def go_on(*arguments):
        restored.append(honest(*arguments))
        return restored[-1]

    monkeypatch.setattr(trialpass, "go_on_with_trial", go_on)
    stream(folders, tmp_path / "out", "index")
    assert restored[0].lost and not restored[0].doubts.fresh()
    assert_merged(states, tmp_path / "out", "index")


def test_the_disk_has_to_hold_what_is_left_open(folders, tmp_path, monkeypatch) -> None:
    stream(folders, tmp_path / "whole", "index")
    size = sum(path.stat().st_size for path in (tmp_path / "whole").glob("*.safetensors"))
    usage = output.shutil.disk_usage(tmp_path)._replace(free=size + 1000)
    monkeypatch.setattr(output.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(mergekern.MergeError, match=rf"only {size + 1000} are free"):
        stream(folders, tmp_path / "out", "index")
    assert not (tmp_path / "out").exists()
    stream(folders, tmp_path / "tensors", "index", scope="tensor")
