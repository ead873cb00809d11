"""The statistics of the experts, for the methods that need data: on each expert's own examples."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Collection
from itertools import islice
from pathlib import Path

import mergekern
from mergekern.collect.run import Kind
from mergekern.lab.data import training_stream
from mergekern.lab.lab import Lab, write_text

KINDS: tuple[Kind, ...] = ("fisher", "gram")
SAMPLES = 256


def path_of(lab: Lab, domain: str, kind: Kind) -> Path:
    """Where an expert's statistics lie."""
    return lab.folder / "statistics" / f"{domain}.{kind}.safetensors"


def collect_missing(lab: Lab, wanted: Collection[Path], tell: Callable[[str], None]) -> None:
    """Collect those of a trained lab's experts that are wanted and not there yet."""
    for domain, expert in lab.experts.items():
        for kind in KINDS:
            path = path_of(lab, domain, kind)
            if path not in wanted or path.is_file():
                continue
            path.parent.mkdir(exist_ok=True)
            data = _examples(lab, domain)
            mergekern.collect(
                kind,
                expert,
                data,
                samples=SAMPLES,
                output=path,
                embeddings=kind == "fisher",
                device="cpu",
            )
            tell(f"collected {kind} of {domain}")


def _examples(lab: Lab, domain: str) -> Path:
    """What the expert was taught of its domain, as `mergekern collect` reads it."""
    stream = training_stream(domain, random.Random(f"{lab.settings.seed}-statistics"), 0.0)
    rows = ({"prompt": e.prompt, "response": e.answer} for e in islice(stream, SAMPLES))
    path = lab.folder / "data" / f"{domain}.jsonl"
    path.parent.mkdir(exist_ok=True)
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path
