"""Whole merges, end to end: CPU time against the same merge in torch ops, peak memory against the
budget. `python bench/merge.py`; results also go to bench/results/merge.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from data import model
from timing import measure
from torch import Tensor

import mergekern
from mergekern.backends.cpu import available_cores

State = dict[str, Tensor]
Row = dict[str, object]
DENSITY = 0.2
RESULTS = Path(__file__).with_name("results")


# The same merges as sequences of torch ops, in fp32 like ours: delta, sort, mask, sign, consensus,
# sum, divide. Which of many equal magnitudes the sort keeps is arbitrary, ours keeps the first.


def ties_in_torch(base: Tensor, experts: list[Tensor]) -> Tensor:
    deltas = [x.float() - base.float() for x in experts]
    for d in deltas:
        order = d.abs().view(-1).argsort(descending=True)
        mask = torch.zeros_like(d)
        mask.view(-1)[order[: int(DENSITY * d.numel())]] = 1
        d.mul_(mask)
    stacked = torch.stack(deltas)
    majority = torch.where(stacked.sum(0) >= 0, 1.0, -1.0)
    agree = stacked.sign() == majority
    divisor = agree.sum(0).clamp(min=1)
    return (base.float() + (stacked * agree).sum(0) / divisor).to(base.dtype)


def dare_ties_in_torch(base: Tensor, experts: list[Tensor]) -> Tensor:
    deltas = [x.float() - base.float() for x in experts]
    for d in deltas:
        mask = torch.bernoulli(torch.full_like(d, DENSITY))
        d.mul_(mask).div_(DENSITY)
    stacked = torch.stack(deltas)
    majority = torch.where(stacked.sum(0) >= 0, 1.0, -1.0)
    agree = stacked.sign() == majority
    return (base.float() + (stacked * agree).sum(0)).to(base.dtype)


def whole_model(merge: Callable[[Tensor, list[Tensor]], Tensor], models: list[State]) -> State:
    base, *experts = models
    return {name: merge(base[name], [x[name] for x in experts]) for name in base}


def check(method: str, parameters: dict[str, object]) -> None:
    """The compiled merge equals the reference bit for bit, or nothing is measured."""
    base, *experts = model(3, (300, 1111), 4, seed=9)
    arguments = {"base": base, "models": experts, **parameters}
    got = mergekern.merge(method, **arguments)
    want = mergekern.merge(method, backend="reference", **arguments)
    for name, tensor in want.items():
        assert torch.equal(got[name].view(torch.int16), tensor.view(torch.int16)), name


def against_torch(tensors: int, shape: tuple[int, int], repetitions: int) -> list[Row]:
    base, *experts = models = model(tensors, shape, 4)
    numel = tensors * shape[0] * shape[1]
    cases: list[tuple[str, Callable[..., Tensor], dict[str, object]]] = [
        ("ties", ties_in_torch, {"density": DENSITY}),
        ("dare_ties", dare_ties_in_torch, {"density": DENSITY, "rescale": "drop_rate"}),
    ]
    rows = []
    for method, in_torch, parameters in cases:
        check(method, parameters)
        theirs = measure(lambda f=in_torch: whole_model(f, models), 1)
        for threads in sorted({1, available_cores()}):

            def ours(method=method, parameters=parameters, threads=threads) -> None:
                mergekern.merge(method, base=base, models=experts, threads=threads, **parameters)

            mine = measure(ours, repetitions)
            rows.append(
                {
                    "merge": f"{method}, {numel / 1e6:.0f} M x 4, {threads} thread(s)",
                    "torch_cpu_s": theirs.best_cpu,
                    "mergekern_cpu_s": mine.best_cpu,
                    "cpu_ratio": theirs.best_cpu / mine.best_cpu,
                    "cpu_ratio_of_median": theirs.best_cpu / sorted(mine.cpu)[repetitions // 2],
                    "wall_ratio": theirs.best / mine.best,
                    "ns_per_param_cpu": 1e9 * mine.best_cpu / numel,
                }
            )
    return rows


# A child of its own, so that nothing but the merge counts towards its peak; ru_maxrss would count
# what the parent held when it started the child.
CHILD = """
import json, resource, sys, time
import mergekern
method, budget, output, base, *models = sys.argv[1:]
parameters = json.loads(method)
started = time.perf_counter()
report = mergekern.merge(
    base=base, models=models, output=output, max_memory=int(budget), **parameters
)
used = resource.getrusage(resource.RUSAGE_SELF)
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps({
    "peak": int(status["VmHWM"].split()[0]) * 1024, "seconds": time.perf_counter() - started,
    "cpu": used.ru_utime + used.ru_stime, "bytes": report.bytes_read + report.bytes_written,
}))
"""


def write_checkpoint(folder: Path, state: State) -> None:
    from safetensors.torch import save_file

    folder.mkdir()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "dtype": "bfloat16"}))


def memory(tensors: int, budget: int) -> list[Row]:
    rows = []
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as scratch:
        folders = [Path(scratch, name) for name in ("base", "a", "b", "c", "d")]
        for folder, state in zip(folders, model(tensors, (4096, 4096), 4), strict=True):
            write_checkpoint(folder, state)
        size = sum(f.stat().st_size for f in Path(scratch).rglob("*.safetensors"))
        cases = {
            "task_arithmetic": {},
            "ties, tensor scope": {"density": DENSITY},
            "ties, model scope": {"density": DENSITY, "scope": "model", "ties": "keep"},
        }
        for number, (name, parameters) in enumerate(cases.items()):
            call = json.dumps({"recipe_or_method": name.split(",")[0], **parameters})
            paths = [str(folder) for folder in folders]
            command = [sys.executable, "-c", CHILD, call, str(budget), f"{scratch}/out{number}"]
            printed = subprocess.run([*command, *paths], check=True, capture_output=True, text=True)
            found = json.loads(printed.stdout.strip().splitlines()[-1])
            rows.append(
                {
                    "merge": f"{name}, {size / 2**30:.1f} GiB of inputs",
                    "budget_MiB": budget / 2**20,
                    "peak_MiB": found["peak"] / 2**20,
                    "over_budget_percent": 100 * (found["peak"] / budget - 1),
                    "GB_per_s": found["bytes"] / found["seconds"] / 1e9,
                    "cpu_s": found["cpu"],
                }
            )
    return rows


def show(rows: list[Row]) -> None:
    for row in rows:
        figures = "  ".join(f"{k} {v:.3g}" for k, v in row.items() if isinstance(v, float))
        print(f"{row['merge']:44s} {figures}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tensors", type=int, default=1, help="in memory, each of --shape")
    parser.add_argument("--shape", type=int, nargs=2, default=(25_000, 4_000))
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--budget", default="512MiB", help="of the streaming merges")
    arguments = parser.parse_args()
    from mergekern.sizes import parse_size

    print(f"{platform.processor() or platform.machine()}, {available_cores()} cores")
    streamed = memory(10, parse_size(arguments.budget, "budget"))
    show(streamed)
    compared = against_torch(arguments.tensors, tuple(arguments.shape), arguments.repetitions)
    show(compared)
    RESULTS.mkdir(exist_ok=True)
    found = {"cores": available_cores(), "streaming": streamed, "in_memory": compared}
    (RESULTS / "merge.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
