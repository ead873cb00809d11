"""Merges in a process of their own, so that its time and peak memory are those of the merges.

    python -m mergekern.suite.merging JOB.json

merges what the job says, and writes what it took and noted to the file that the job names.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergekern.errors import MergeError

TAIL = 2000


@dataclass(frozen=True)
class Used:
    """seconds: of the wall clock, starting up included; peak: bytes that the process held; notes:
    of each merge."""

    seconds: float
    peak: int
    notes: Sequence[Sequence[str]]


def merge_apart(
    recipes: Sequence[Mapping[str, Any]],
    outputs: Sequence[Path],
    options: Mapping[str, Any],
    log: Path,
) -> Used:
    """merge_many() in a process of its own. Raises MergeError with what it said last; all that it
    said goes to the log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        given, told = Path(scratch) / "job.json", Path(scratch) / "told.json"
        job = {
            "recipes": recipes,
            "outputs": [str(output) for output in outputs],
            "options": options,
            "told": str(told),
        }
        given.write_text(json.dumps(job), encoding="utf-8")
        began = time.monotonic()
        with log.open("ab") as said:
            before = said.tell()
            done = subprocess.run(
                [sys.executable, "-m", __name__, str(given)],
                stdout=said,
                stderr=subprocess.STDOUT,
            )
        seconds = time.monotonic() - began
        if done.returncode:
            own = log.read_bytes()[before:].decode("utf-8", errors="replace")
            words = " ".join(own[-TAIL:].split())
            raise MergeError(words or f"the merge ended with {done.returncode}; see {log}")
        return Used(seconds, **json.loads(told.read_text(encoding="utf-8")))


def peak_memory() -> int:
    """Bytes that this process has held at the most.

    Linux counts towards ru_maxrss what the parent held when the process was started.
    """
    if sys.platform != "linux":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    lines = Path("/proc/self/status").read_text().splitlines()
    status = dict(line.split(":", 1) for line in lines)
    return int(status["VmHWM"].split()[0]) * 1024


def main(path: str) -> None:
    """The process of its own: see the module."""
    import mergekern

    job = json.loads(Path(path).read_text(encoding="utf-8"))
    try:
        done: Sequence[Any] = mergekern.merge_many(job["recipes"], job["outputs"], **job["options"])
        for output, report in zip(job["outputs"], done, strict=True):
            sys.stdout.writelines(f"{output}: note: {note}\n" for note in report.notes)
    except MergeError as error:
        sys.exit(str(error))
    told = {"peak": peak_memory(), "notes": [each.notes for each in done]}
    Path(job["told"]).write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
