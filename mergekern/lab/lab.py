"""The lab: a cached folder with a base model and its experts, trained when they are missing.

    LAB/settings.json  LAB/base/  LAB/math/ …  LAB/data/math.jsonl …  LAB/statistics/

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
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from mergekern.errors import MergeError
from mergekern.lab.domains import DOMAINS

HERE = Path(__file__).parent
SOURCES = ("example.py", "data.py", "model.py", "train.py", "lab.py", "domains/*.py")
TAIL = 2000
Report = Callable[[str, int], None]


@dataclass(frozen=True)
class Settings:
    """Everything the models depend on besides the sources and the number of threads.

    general_share: of the base's examples, general knowledge
    carelessness:  share of the hard examples that the base sees answered wrongly
    own_share:     of an expert's examples, its own domain's; the rest replays the others
    """

    domains: tuple[str, ...] = DOMAINS
    seed: int = 0
    vocabulary: int = 1024
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    general_share: float = 0.15
    carelessness: float = 0.6
    own_share: float = 0.6
    base_steps: int = 900
    base_batch: int = 64
    base_rate: float = 3e-3
    expert_steps: int = 160
    expert_batch: int = 64
    expert_rate: float = 1e-3

    @property
    def taught(self) -> tuple[str, ...]:
        """All that the base is taught."""
        return (*self.domains, "general")

    def schedule(self, name: str) -> tuple[int, int, float]:
        """(steps, batch size, learning rate) of one model."""
        if name == "base":
            return self.base_steps, self.base_batch, self.base_rate
        return self.expert_steps, self.expert_batch, self.expert_rate


@dataclass(frozen=True)
class Lab:
    """Where a lab keeps its models."""

    folder: Path
    settings: Settings

    @property
    def base(self) -> Path:
        return self.folder / "base"

    @property
    def experts(self) -> dict[str, Path]:
        return {domain: self.folder / domain for domain in self.settings.domains}

    def missing(self) -> list[str]:
        """The models that have not been trained yet."""
        return [
            name for name in ("base", *self.settings.domains) if not (self.folder / name).is_dir()
        ]


def default_cache() -> Path:
    """The user's cache folder for labs, as the XDG convention has it."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "mergekern" / "lab"


def open_lab(cache: Path, settings: Settings) -> Lab:
    """The lab of these settings inside `cache`; models may be missing."""
    digest = hashlib.sha256(_json(settings).encode())
    for source in sorted(path for pattern in SOURCES for path in HERE.glob(pattern)):
        digest.update(source.read_bytes())
    lab = Lab(cache / digest.hexdigest()[:16], settings)
    lab.folder.mkdir(parents=True, exist_ok=True)
    write_text(lab.folder / "settings.json", _json(settings))
    return lab


def read_settings(folder: Path) -> Settings:
    """Those that a lab was opened with."""
    found = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    return Settings(**{**found, "domains": tuple(found["domains"])})


def train_missing(lab: Lab, threads: int, report: Report) -> None:
    """Train what the lab lacks: first the base, on two threads, then the experts side by side.

    An expert is too small for two threads to pay as well as two experts do. `report(name, step)` is
    called after every step, from any thread.
    """
    if not lab.base.is_dir():
        _run_workers(lab, ["base"], min(threads, 2), 1, report)
    _run_workers(lab, [name for name in lab.missing() if name != "base"], 1, threads, report)


def write_text(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all; an equal one is left untouched."""
    if path.is_file() and path.read_text() == text:
        return
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text(text)
    os.replace(unfinished, path)


def _json(settings: Settings) -> str:
    return json.dumps(dataclasses.asdict(settings), indent=2, sort_keys=True)


def _run_workers(
    lab: Lab, names: Sequence[str], threads: int, at_once: int, report: Report
) -> None:
    """A process for each model, so many at once; a failure ends those that are running."""
    running: list[subprocess.Popen[str]] = []

    def run(name: str) -> None:
        with tempfile.NamedTemporaryFile("r", errors="replace") as log:
            worker = _start(lab, name, threads, Path(log.name))
            running.append(worker)
            _follow(name, worker, report)
            if worker.wait() != 0 or not (lab.folder / name).is_dir():
                raise MergeError(f"training the lab's {name} model failed:\n{log.read()[-TAIL:]}")

    with ThreadPoolExecutor(at_once) as pool:
        jobs = [pool.submit(run, name) for name in names]
        try:
            for job in as_completed(jobs):
                job.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in running:
                worker.terminate()
            raise


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
    command = [sys.executable, "-m", "mergekern.lab.train", str(lab.folder), name, str(threads)]
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
