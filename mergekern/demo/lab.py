"""The lab of the demo: a cached folder with a base model, three experts and their test items.

    LAB/settings.json  LAB/data/DOMAIN.jsonl  LAB/base/  LAB/math/  LAB/coding/  LAB/safety/

The folder's name is a digest of the settings and of the sources that use them, so a changed recipe
never meets old models. Whatever stands under its final name is complete.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mergekern.demo import data
from mergekern.errors import MergeError

HERE = Path(__file__).parent
SOURCES = ("data.py", "words.py", "model.py", "train.py", "lab.py")
TAIL = 2000
Report = Callable[[str, int], None]


@dataclass(frozen=True)
class Settings:
    """Everything the models depend on besides the sources and the number of threads."""

    seed: int = 0
    vocabulary: int = 512
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    carelessness: float = 0.6
    own_share: float = 0.6
    base_steps: int = 320
    base_batch: int = 64
    base_rate: float = 3e-3
    expert_steps: int = 120
    expert_batch: int = 48
    expert_rate: float = 1e-3
    tested: int = 200

    def schedule(self, name: str) -> tuple[int, int, float]:
        """(steps, batch size, learning rate) of one model."""
        if name == "base":
            return self.base_steps, self.base_batch, self.base_rate
        return self.expert_steps, self.expert_batch, self.expert_rate


@dataclass(frozen=True)
class Lab:
    """Where a finished lab keeps its models and test items."""

    folder: Path
    settings: Settings

    @property
    def base(self) -> Path:
        return self.folder / "base"

    @property
    def experts(self) -> dict[str, Path]:
        return {domain: self.folder / domain for domain in data.DOMAINS}

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def missing(self) -> list[str]:
        """The models that have not been trained yet."""
        return [name for name in ("base", *data.DOMAINS) if not (self.folder / name).is_dir()]


def default_cache() -> Path:
    """The user's cache folder for the demo, as the XDG convention has it."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "mergekern" / "demo"


def open_lab(cache: Path, settings: Settings) -> Lab:
    """The lab of these settings inside `cache`, with its test items; models may be missing."""
    digest = hashlib.sha256(_json(settings).encode())
    for source in SOURCES:
        digest.update((HERE / source).read_bytes())
    lab = Lab(cache / digest.hexdigest()[:16], settings)
    lab.data.mkdir(parents=True, exist_ok=True)
    write_text(lab.folder / "settings.json", _json(settings))
    for domain in data.DOMAINS:
        items = data.test_items(domain, settings.tested, settings.seed)
        lines = "".join(json.dumps(item) + "\n" for item in items)
        write_text(lab.data / f"{domain}.jsonl", lines)
    return lab


def train_missing(lab: Lab, threads: int, report: Report) -> None:
    """Train what the lab lacks: first the base, on two threads, then the experts side by side.

    An expert is too small for two threads to pay as well as two experts do; three of them on two
    cores simply take turns. `report(name, step)` is called after every step, from any thread.
    """
    if not lab.base.is_dir():
        _run_workers(lab, ["base"], min(threads, 2), report)
    experts = [name for name in lab.missing() if name != "base"]
    at_once = len(data.DOMAINS) if threads > 1 else 1
    for first in range(0, len(experts), at_once):
        _run_workers(lab, experts[first : first + at_once], 1, report)


def write_text(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all; an equal one is left untouched."""
    if path.is_file() and path.read_text() == text:
        return
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text(text)
    os.replace(unfinished, path)


def _json(settings: Settings) -> str:
    return json.dumps(dataclasses.asdict(settings), indent=2, sort_keys=True)


def _run_workers(lab: Lab, names: list[str], threads: int, report: Report) -> None:
    """One process per model; a failure is reported and ends those still running."""
    with tempfile.TemporaryDirectory() as scratch:
        logs = {name: Path(scratch) / name for name in names}
        workers = {name: _start(lab, name, threads, logs[name]) for name in names}
        readers = [
            threading.Thread(target=_follow, args=(name, worker, report), daemon=True)
            for name, worker in workers.items()
        ]
        try:
            for reader in readers:
                reader.start()
            for name, worker in workers.items():
                if worker.wait() != 0 or not (lab.folder / name).is_dir():
                    end = logs[name].read_text(errors="replace")[-TAIL:]
                    raise MergeError(f"training the demo's {name} model failed:\n{end}")
        finally:
            for worker in workers.values():
                if worker.poll() is None:
                    worker.terminate()
                worker.wait()
            for reader in readers:
                reader.join()


def _start(lab: Lab, name: str, threads: int, log: Path) -> subprocess.Popen[str]:
    root = str(HERE.parents[1])
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])),
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "passive",  # spinning threads would take the cores of the others
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    command = [sys.executable, "-m", "mergekern.demo.train", str(lab.folder), name, str(threads)]
    with log.open("w") as errors:
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
        )


def _follow(name: str, worker: subprocess.Popen[str], report: Report) -> None:
    assert worker.stdout is not None
    with worker.stdout as lines:
        for line in lines:
            if line.strip().isdigit():
                report(name, int(line))
