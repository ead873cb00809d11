"""The statistics of the experts, for the methods that need data: on each expert's own examples."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Collection
from itertools import islice
from pathlib import Path
from typing import Any

import mergekern
from mergekern.collect import collect_along
from mergekern.collect.choices import Kind
from mergekern.lab.data import training_stream
from mergekern.lab.lab import Lab, write_text
from mergekern.spec import Statistics

SAMPLES = 256
# RegMean++ merges while it collects, by the parameters that its merge has afterwards.
ALONG: dict[str, Any] = {"reduction": 0.9, "rest": "mean"}
TRAINED: dict[str, Any] = {"sparsity": 0.3, "rate": 1e7}


def path_of(lab: Lab, domain: str, kind: Statistics) -> Path:
    """Where an expert's statistics lie."""
    return lab.folder / "statistics" / f"{domain}.{kind}.safetensors"


def collect_missing(lab: Lab, wanted: Collection[Path], tell: Callable[[str], None]) -> None:
    """Collect those of a trained lab's experts that are wanted and not there yet."""
    # Embeddings are as large a part of these models as layers are, and change with them.
    options: dict[Kind, dict[str, Any]] = {
        "fisher": {"embeddings": True},
        "gram": {},
        "masks": {"base": lab.base, "embeddings": True, **TRAINED},
    }
    common: dict[str, Any] = {"samples": SAMPLES, "device": "cpu"}
    for domain, expert in lab.experts.items():
        for kind, own in options.items():
            path = path_of(lab, domain, kind)
            if path in wanted and not path.is_file():
                path.parent.mkdir(exist_ok=True)
                data = _examples(lab, domain)
                mergekern.collect(kind, expert, data, output=path, **own, **common)
                tell(f"collected {kind} of {domain}")
    along = [path_of(lab, domain, "regmean_plusplus") for domain in lab.experts]
    if set(along) & set(wanted) and not all(path.is_file() for path in along):
        along[0].parent.mkdir(exist_ok=True)
        examples = [_examples(lab, domain) for domain in lab.experts]
        models, output = list(lab.experts.values()), along[0].parent
        collect_along(models, examples, base=lab.base, output=output, **ALONG, **common)
        tell("collected regmean_plusplus along the merge of all")


def _examples(lab: Lab, domain: str) -> Path:
    """What the expert was taught of its domain, as `mergekern collect` reads it."""
    stream = training_stream(domain, random.Random(f"{lab.settings.seed}-statistics"), 0.0)
    rows = ({"prompt": e.prompt, "response": e.answer} for e in islice(stream, SAMPLES))
    path = lab.folder / "data" / f"{domain}.jsonl"
    path.parent.mkdir(exist_ok=True)
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path
