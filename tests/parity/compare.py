"""`make parity`: mergekit and mergekern run the same recipes on the same small models.

Prints method × architecture, a table per dtype. A cell is the largest difference, in ulps of the
output dtype at the largest of an element's operands; the share of elements more than one ulp off at
the output itself; and the reasons of those beyond the limit. Ends with 1 where there is none.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from architectures import ARCHITECTURES, EVERYWHERE, SEEDS, Size, write_models
from difference import REASONS, Difference, difference
from edges import edges
from folders_alike import config_faults, in_order, load, logits_fault, places, with_fused_experts
from random_drop import by_the_rule, drop_faults
from recipes import METHODS, Case
from structures import STRUCTURES

import mergekern

HERE = Path(__file__).parent
KIT = Path(".venv-parity/bin/python")
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
# Methods that look at one element at a time: for these it does not matter what lies in one tensor.
ELEMENTWISE = ("linear", "task_arithmetic", "passthrough", "nearswap", "ram")
# Ulps that an output may miss its rule by, given what it kept: mergekit sums magnitudes in fp32.
RULED = {"mergekern": 4.0, "mergekit": 32.0}


@dataclass
class Run:
    """One recipe on one architecture's models, by both tools."""

    case: Case
    architecture: str
    dtype: str
    models: Mapping[str, Path]
    folder: Path
    structural: bool
    error: str = ""  # mergekit's
    refused: bool = False  # by mergekern
    found: Difference = field(default_factory=Difference)

    @property
    def kit(self) -> Path:
        return self.folder / "mergekit"

    @property
    def exact(self) -> Path:
        return self.folder / "exact"

    @property
    def ours(self) -> Path:
        return self.folder / "mergekern"

    def ready(self) -> bool:
        return not self.refused and not self.error


def planned(root: Path, only: Sequence[str], architectures: Sequence[str]) -> list[Run]:
    """Every run that was asked for, its models written."""
    runs = []
    for architecture in architectures:
        for dtype, torch_dtype in DTYPES.items():
            here = root / architecture / dtype
            wide = architecture == "llama" and dtype == "float32"
            cases = [(c, False) for c in METHODS if c.main or architecture == "llama"]
            cases += [(c, True) for c in STRUCTURES if architecture in c.on and _suits(c, dtype)]
            cases = [(c, s) for c, s in cases if not only or c.method in only]
            if not cases:
                continue
            names = SEEDS if wide else EVERYWHERE
            models = write_models(here, architecture, torch_dtype, Size(), names)
            for number, (case, structural) in enumerate(cases):
                folder = here / "runs" / str(number)
                runs.append(Run(case, architecture, dtype, models, folder, structural))
    return runs


def _suits(case: Case, dtype: str) -> bool:
    """Structures are compared in fp32; what says a dtype, with models in bf16."""
    cast = any("dtype" in key for document in case.documents for key in document)
    return dtype == ("bfloat16" if cast else "float32")


def run_mergekit(runs: Iterable[Run], exact: bool = False) -> None:
    """In one process. exact: in float64, which tells its rounding from a difference in meaning."""
    runs = list(runs)
    more = {"dtype": "float64", "out_dtype": "float64"} if exact else {}
    jobs = [
        {"recipe": r.case.text(r.models, **more), "output": str(r.exact if exact else r.kit)}
        for r in runs
    ]
    given, told = runs[0].folder.parent / "jobs.json", runs[0].folder.parent / "results.json"
    given.parent.mkdir(parents=True, exist_ok=True)
    given.write_text(json.dumps(jobs))
    # Without a seed for hashes, which model gives config and tokenizer changes from run to run.
    environment = {**os.environ, "PYTHONHASHSEED": "0", "HF_HUB_OFFLINE": "1"}
    command = [str(KIT), str(HERE / "mergekit_side.py"), str(given), str(told)]
    with (given.parent / "mergekit.log").open("w") as log:
        subprocess.run(command, check=True, env=environment, stdout=log, stderr=log)
    if not exact:
        for run, result in zip(runs, json.loads(told.read_text()), strict=True):
            run.error = result["error"]


def run_mergekern(run: Run) -> None:
    try:
        mergekern.merge(run.case.ours(run.models), output=str(run.ours), seed=7, threads=1)
    except mergekern.MergeError as error:
        run.refused = True
        run.found.faults.append(f"mergekern refuses it: {error}")


def compare(run: Run) -> None:
    """What the outputs of a run differ by."""
    run.found = Difference()
    got, want = (with_fused_experts(load(folder)) for folder in (run.ours, run.kit))
    exact = with_fused_experts(load(run.exact)) if run.exact.exists() else {}
    order = None
    if run.structural:
        order, faults = places(run.ours, run.kit)
        run.found.faults += faults + config_faults(run.ours, run.kit)
    if order is not None and len(order) != len(torch.unique(order)):
        order = None
    if order is not None:
        rows = want[_embedding(want)].shape[0] if _embedding(want) else len(order)
        got = in_order(got, order, rows)
    inputs = {n: with_fused_experts(load(f)) for n, f in run.models.items() if n in _models(run)}
    for name in sorted(got.keys() ^ want.keys()):
        run.found.faults.append(f"{name}: only {'mergekern' if name in got else 'mergekit'} has it")
    for name in sorted(got.keys() & want.keys()):
        run.found.add(_tensor(run, name, got[name], want[name], exact.get(name), inputs))
    if run.case.random and len(run.case.documents[0]["models"]) == 1:
        _check_drop(run, inputs, {"mergekern": got, "mergekit": want})
    if run.structural and run.dtype == "float32" and not run.found.faults:
        run.found.faults += logits_fault(run.architecture, run.ours, run.kit, order)


def _tensor(
    run: Run,
    name: str,
    got: torch.Tensor,
    want: torch.Tensor,
    exact: torch.Tensor | None,
    inputs: Mapping[str, Mapping[str, torch.Tensor]],
) -> Difference:
    if got.shape != want.shape:
        shapes = f"{list(got.shape)}, mergekit {list(want.shape)}"
        return Difference(faults=[f"{name}: shape {shapes}"])
    found = Difference()
    dtype = want.dtype
    if got.dtype != want.dtype:
        widened = run.case.method in ("arcee_fusion", "ramplus_tl")
        text = f"mergekit writes {want.dtype}, mergekern {got.dtype}".replace("torch.", "")
        (found.notes.add if widened else found.faults.append)(
            text if widened else f"{name}: {text}"
        )
        dtype = got.dtype
    if run.case.random:
        return found
    own = {model: tensors[name] for model, tensors in inputs.items() if name in tensors}
    aligned = not run.structural and len(own) == len(inputs)
    hang = edges(run.case, own) if aligned else {}
    if "experts" in name and run.architecture == "qwen3-moe" and run.case.method not in ELEMENTWISE:
        hang["f"] = torch.ones(want.shape, dtype=torch.bool).numpy()
    operands = operands_of(run.case, own, want) if aligned else []
    each = difference(got, want, operands=operands, exact=exact, edges=hang, dtype=dtype)
    found.add(each)
    return found


def operands_of(
    case: Case, inputs: Mapping[str, torch.Tensor], want: torch.Tensor
) -> list[torch.Tensor]:
    """The numbers that an element is made of: the inputs, what is added to the base, and the sum of
    its terms, which weights and rescaling (by 1/density at the most) may make larger than these."""
    operands = list(inputs.values())
    if "base" not in inputs:
        return operands
    base = inputs["base"].double()
    operands.append(want.double() - base)
    rescaled = case.documents[0].get("parameters", {}).get("rescale")
    total = torch.zeros_like(base)
    for entry in case.documents[0]["models"]:
        given = entry.get("parameters", {})
        scale = given.get("weight", 1.0) / ((given.get("density") or 1.0) if rescaled else 1.0)
        total += (scale * (inputs[entry["model"]].double() - base)).abs()
    return [*operands, total]


def _models(run: Run) -> set[str]:
    if run.structural:
        return set()
    recipe = run.case.documents[0]
    return {entry["model"] for entry in recipe["models"]} | {recipe.get("base_model")} - {None}


def _embedding(tensors: Mapping[str, Any]) -> str:
    return next((name for name in tensors if name.endswith("embed_tokens.weight")), "")


def _check_drop(run: Run, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
    for tool, out in outputs.items():
        faults = drop_faults(run.case, inputs["base"], inputs["a"], out)
        if run.dtype == "float32":
            ruled = by_the_rule(run.case, inputs["base"], inputs["a"], out, RULED[tool])
            faults += ruled.faults
            if tool == "mergekern":
                run.found.at_operand, run.found.elements = ruled.at_operand, ruled.elements
        run.found.faults += [f"{tool}: {fault}" for fault in faults]


def tables(runs: Sequence[Run]) -> str:
    """Per dtype: a line per method (its worst over options), a column per architecture."""
    architectures = list(dict.fromkeys(run.architecture for run in runs))
    lines = []
    for dtype in DTYPES:
        chosen = [run for run in runs if run.dtype == dtype and not run.structural]
        methods = dict.fromkeys(run.case.method for run in chosen)
        rows = [[dtype, *architectures]]
        for method in methods:
            row = [method]
            for architecture in architectures:
                here = [
                    r for r in chosen if (r.case.method, r.architecture) == (method, architecture)
                ]
                row.append(_cell(here))
            rows.append(row)
        lines += [*_columns(rows), ""]
    rows = [["recipe", "architecture", ""]]
    rows += [[r.case.name, r.architecture, _cell([r])] for r in runs if r.structural]
    return "\n".join([*lines, *_columns(rows)])


def _cell(runs: Sequence[Run]) -> str:
    total = Difference()
    for run in runs:
        total.add(run.found)
    done = [run for run in runs if run.ready()]
    if total.faults:
        return "FAULT"
    if not done:
        return "mergekit fails"
    if all(run.case.random for run in done):
        return "by share" + (f", rule {total.at_operand:.2g}" if total.elements else "")
    return total.cell


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def told(runs: Sequence[Run]) -> list[str]:
    """Faults and notes, one line for each kind."""
    lines: dict[str, list[str]] = {}
    for run in runs:
        where = f"{run.case.name} on {run.architecture} in {run.dtype}"
        if run.error:
            lines.setdefault(f"mergekit fails: {run.error}", []).append(where)
        for note in run.found.notes:
            lines.setdefault(f"note: {note}", []).append(where)
        for fault in run.found.faults[:3]:
            lines.setdefault(f"FAULT {where}: {fault}", []).append("")
        if run.found.why["?"]:
            lines.setdefault(f"FAULT {where}: {run.found.why['?']} elements unexplained", [])
    return [
        text
        + (
            f" ({places[0]}{f' and {len(places) - 1} more' if places[1:] else ''})"
            if places and places[0]
            else ""
        )
        for text, places in lines.items()
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", default=[], metavar="METHOD")
    parser.add_argument("--on", nargs="+", default=list(ARCHITECTURES), metavar="ARCHITECTURE")
    parser.add_argument("--scratch", type=Path, default=Path(".cache/parity"))
    parser.add_argument("--json", type=Path, help="every run's figures")
    arguments = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    started = time.monotonic()
    shutil.rmtree(arguments.scratch, ignore_errors=True)
    runs = planned(arguments.scratch.resolve(), arguments.only, arguments.on)
    print(f"{len(runs)} runs; models {time.monotonic() - started:.0f} s", file=sys.stderr)
    run_mergekit(runs)
    print(f"mergekit {time.monotonic() - started:.0f} s", file=sys.stderr)
    for run in runs:
        run_mergekern(run)
    print(f"mergekern {time.monotonic() - started:.0f} s", file=sys.stderr)
    for run in (run for run in runs if run.ready()):
        compare(run)
    unclear = [run for run in runs if run.ready() and +run.found.why]
    if unclear:
        run_mergekit(unclear, exact=True)
        for run in unclear:
            compare(run)
    print(f"compared {time.monotonic() - started:.0f} s", file=sys.stderr)
    print(tables(runs), "", *told(runs), "", sep="\n")
    print(*(f"{letter}  {reason}" for letter, reason in REASONS.items()), sep="\n")
    if arguments.json:
        arguments.json.write_text(json.dumps([_as_json(run) for run in runs], indent=1))
    return int(any(not run.found.settled for run in runs))


def _as_json(run: Run) -> dict[str, Any]:
    found = {**vars(run.found), "notes": sorted(run.found.notes)}
    keys = {"case": run.case.name, "architecture": run.architecture, "dtype": run.dtype}
    return keys | {"state": run.state or run.error} | found


if __name__ == "__main__":
    sys.exit(main())
