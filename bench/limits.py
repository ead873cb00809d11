"""Every figure this package promises, beside its floor or peer: `python bench/limits.py`.

Each part runs in a process of its own and first checks that its results are right. Ratios are
between things measured in the same run, in turns; a figure is made of the least of each side's
times, and its spread over the rounds is printed with it. A whole run also writes
bench/results/limits.json.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import machine
from rows import Row, markdown, show
from settings import Settings

from mergekern.backends.cores import available_cores

PARTS = (
    *("fused", "exact", "selection", "dare", "mergekit"),
    *("streaming", "loadsave", "budget", "planning", "dispatch"),
)
RESULTS = Path(__file__).with_name("results") / "limits.json"


def run_part(name: str, settings: Settings) -> list[Row]:
    return importlib.import_module(f"parts.{name}").run(settings)


def in_child(name: str, settings: Settings) -> list[Row]:
    """A fresh process: what a part leaves in memory is gone with it."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        rows = pool.submit(run_part, name, settings).result()
    # Small sizes are all overhead: they show that a part runs, and are held against nothing.
    return [replace(row, wanted=None) for row in rows] if settings.quick else rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes: shows that all runs")
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="NAME", help=", ".join(PARTS))
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--scratch", type=Path, default=Path(".cache"), help="on the disk measured")
    parser.add_argument("--json", type=Path, help="where to; of a part or a quick run, only here")
    parser.add_argument("--table", type=Path, help="measure nothing: such a JSON file in Markdown")
    arguments = parser.parse_args()
    if arguments.table is not None:
        print(markdown(json.loads(arguments.table.read_text())))
        return
    # Huge pages for what torch allocates, the peers' temporaries and everybody's inputs.
    os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    settings = Settings(arguments.quick, arguments.threads, arguments.scratch.resolve())
    described = machine.describe()
    parts: dict[str, list[Row]] = {}
    for name in arguments.only or PARTS:
        started = time.monotonic()
        parts[name] = in_child(name, settings)
        print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr)
    print(", ".join(f"{key} {value}" for key, value in described.items()))
    show(parts)
    whole = not (arguments.quick or arguments.only)
    target = arguments.json or (RESULTS if whole else None)
    if target is not None:
        rows = {name: [row.as_json() for row in several] for name, several in parts.items()}
        found = {"machine": described, "threads": settings.threads, "parts": rows}
        target.parent.mkdir(exist_ok=True)
        target.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
