"""The runs over a lab, as `mergekern suite` reads them: which methods, with which values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from mergekern.lab.lab import Lab, write_text
from mergekern.lab.statistics import ALONG, path_of
from mergekern.methods import get_method

Run = dict[str, Any]
# The grids lie around the values of the papers, for task vectors as large as the lab's.
METHODS: Run = {
    "soup": {"merge_method": "linear"},
    "task_arithmetic": {
        "merge_method": "task_arithmetic",
        "grid": {"lambda": [0.3, 0.4, 0.5, 0.6]},
    },
    "ties": {
        "merge_method": "ties",
        "preset": "paper",
        "grid": {"density": [0.2, 0.5], "lambda": [0.6, 1.0, 1.4]},
    },
    "dare": {
        "merge_method": "dare_linear",
        "preset": "paper",
        "grid": {"density": [0.1, 0.5], "lambda": [0.2, 0.3, 0.4]},
    },
    "consensus": {
        "merge_method": "consensus",
        "grid": {"tall_mask_lambda": [0.2, 0.4], "lambda": [0.3, 0.4, 0.6]},
    },
    "localize_and_stitch": {
        "merge_method": "localize_and_stitch",
        "grid": {"density": [0.05, 0.1, 0.3], "lambda": [0.7, 1.0]},
    },
    "breadcrumbs": {
        "merge_method": "breadcrumbs",
        "parameters": {"density": 0.7, "gamma": 0.05},
        "grid": {"lambda": [0.3, 0.4, 0.5]},
    },
    "model_stock": {"merge_method": "model_stock"},
    "sce": {"merge_method": "sce", "parameters": {"select_topk": 0.3}},
}
INFORMED: Run = {  # embeddings, which have no Gram matrices, are averaged
    "fisher": {},
    "regmean": {"parameters": {"rest": "mean"}, "grid": {"reduction": [0.5, 0.7, 0.9]}},
    "regmean_plusplus": {"parameters": ALONG},
    "stitch": {},
}
COMPARED = ("soup", "task_arithmetic", "ties")  # over the weaker base


def lab_run(lab: Lab, limit: int | None = None, weaker: str | None = None) -> Run:
    """All methods over all experts, and soups of fewer of them.

    limit:  items of each task; all of them when not given
    weaker: the run file over the weaker base, if there is one
    """
    entries = {**METHODS, **_with_statistics(lab), **_fewer(lab)}
    return {
        **_models(lab, "lab", limit),
        "plain": "soup",
        **({} if weaker is None else {"weaker": weaker}),
        "methods": entries,
        "surrogate": _judged("local-surrogate", lab, limit),
        "forgetting": {"suite": "local-forgetting", "limit": limit},
    }


def weaker_run(lab: Lab, limit: int | None = None) -> Run:
    """What the other run is compared with."""
    return {
        **_models(lab, "weaker", limit),
        "plain": "soup",
        "methods": {name: METHODS[name] for name in COMPARED},
        "surrogate": _judged("local-surrogate", lab, limit),
    }


def demo_run(lab: Lab, limit: int | None = None) -> Run:
    """Three merges with values that were fixed beforehand."""
    return {
        **_models(lab, "demo", limit),
        "plain": "soup",
        "methods": {
            "soup": {"merge_method": "linear"},
            "task_arithmetic": {"merge_method": "task_arithmetic", "parameters": {"lambda": 0.5}},
            "ties": {
                "merge_method": "ties",
                "parameters": {"weight": 1.0, "density": 0.3, "lambda": 1.0},
            },
        },
    }


def statistics_of(run: Run) -> set[Path]:
    """The files that a run's methods need."""
    files = (entry.get("statistics", {}).values() for entry in run["methods"].values())
    return {Path(path) for paths in files for path in paths}


def write_run(run: Run, path: Path) -> Path:
    """Write a run file."""
    text = yaml.safe_dump(run, sort_keys=False, allow_unicode=True, width=100)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    return path


def _models(lab: Lab, output: str, limit: int | None) -> Run:
    return {
        "base": str(lab.base),
        "experts": {domain: str(folder) for domain, folder in lab.experts.items()},
        "evaluation": _judged("local", lab, limit),
        "whole_experts": True,
        "output": output,
        # Widened to fp32, so that a score does not hang on how a batch was padded.
        "evaluate": {"device": "cpu", "dtype": "float32"},
    }


def _judged(suite: str, lab: Lab, limit: int | None) -> Run:
    return {"suite": suite, "domains": list(lab.settings.domains), "limit": limit}


def _with_statistics(lab: Lab) -> Run:
    """Methods that need data, each with the files of its kind."""
    found = {}
    for name, asked in INFORMED.items():
        kind = get_method(name).statistics
        files = {domain: str(path_of(lab, domain, kind)) for domain in lab.settings.domains}
        found[name] = {"merge_method": name, "base": True, **asked, "statistics": files}
    return found


def _fewer(lab: Lab) -> Run:
    """Soups of two experts and more, short of all: of each size as many as there are experts, each
    of which is in equally many."""
    domains = lab.settings.domains
    ring = [*domains, *domains]
    return {
        f"soup-{size}-{first + 1}": {
            "merge_method": "linear",
            "experts": ring[first : first + size],
        }
        for size in range(2, len(domains))
        for first in range(len(domains))
    }
