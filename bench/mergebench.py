"""MergeBench's methods on five experts, as its users run them: `python bench/mergebench.py`.

Llama checkpoints in bf16 of 374 million parameters, a base and five experts, are merged by the
command line with two threads and --max-memory 2GiB; so are the statistics made that some methods
need, of 4 samples of 128 tokens. All inputs lie in the page cache. The floor is what the machine
takes to read the inputs and to write as much as is written, to the disk, by one thread. A whole run
writes bench/results/mergebench.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from command import Used, timed
from rows import Row, show
from versus import MIB, ROOT, THREADS, described, moving, warm

RESULTS = ROOT / "bench" / "results" / "mergebench.json"
BUDGET = 2048 * MIB
LAYERS, EXPERTS = 24, "abcde"
SAMPLES, TOKENS = 4, 128
PRESETS = {  # of each method's name, its statistics
    "model_soup": "",
    "task_arithmetic": "",
    "ties": "",
    "dare": "",
    "consensus": "",
    "localize_and_stitch": "",
    "fisher": "fisher",
    "regmean": "gram",
}


class Bench:
    """Models, their statistics and what merges them, in one scratch folder."""

    def __init__(self, root: Path, layers: int) -> None:
        self.root, self.output = root, root / "out"
        self.data = root / "data.jsonl"
        self.data.write_text(SAMPLES * (json.dumps({"text": "ab" * TOKENS}) + "\n"))
        made = [str(root / "models"), str(layers), str(len(EXPERTS))]
        subprocess.run([sys.executable, str(ROOT / "bench/llama.py"), *made], check=True)
        self.base = root / "models" / "base"
        self.experts = [root / "models" / name for name in EXPERTS]

    def statistics(self, kind: str, expert: Path) -> Path:
        return self.root / f"{expert.name}.{kind}.safetensors"

    def collect(self, kind: str, expert: Path) -> Used:
        output = self.statistics(kind, expert)
        options = ["--samples", SAMPLES, "--max-length", TOKENS, "--device", "cpu", "--quiet"]
        named = ["--model", expert, "--data", self.data, "--output", output]
        return self._timed("collect", kind, *named, *options)

    def merge(self, name: str) -> Used:
        shutil.rmtree(self.output, ignore_errors=True)
        command = ["merge", self.output, "--preset", f"mergebench/{name}", "--base", self.base]
        for expert in self.experts:
            command += ["--model", expert]
            if PRESETS[name]:
                command += ["--statistics", f"{expert}={self.statistics(PRESETS[name], expert)}"]
        limits = ["--threads", THREADS, "--max-memory", "2GiB", "--device", "cpu"]
        return self._timed(*command, *limits, "--seed", 7, "--quiet")

    def floor(self, name: str) -> float:
        """Seconds to read all inputs of a merge, cached, and to write its output to the disk."""
        kinds = [self.statistics(PRESETS[name], e) for e in self.experts] if PRESETS[name] else []
        weights = [folder / "model.safetensors" for folder in (self.base, *self.experts)]
        written = sum(path.stat().st_size for path in self.output.glob("*.safetensors"))
        return moving([*weights, *kinds], written, self.root / "moved")

    def _timed(self, *words: object) -> Used:
        warm(self.root)
        script = Path(sys.executable).with_name("mergekern")
        environment = {"PYTHONDONTWRITEBYTECODE": "", "HF_HUB_OFFLINE": "1"}
        environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(THREADS)}
        return timed([str(script), *map(str, words)], environment)


def merging(bench: Bench, name: str, rounds: int) -> list[Row]:
    used = [bench.merge(name) for _ in range(rounds)]
    floors = [bench.floor(name) for _ in range(rounds)]
    wall, floor = min(each.wall for each in used), min(floors)
    each = tuple(u.wall / f for u, f in zip(used, floors, strict=True))
    cpu = min(each.cpu for each in used)
    peaks = tuple(one.peak / BUDGET for one in used)
    beside = f"{wall:.2f} s, {cpu:.2f} s of CPU; floor {floor:.2f} s"
    of_budget = f"{max(one.peak for one in used) / MIB:.0f} MiB"
    return [
        Row(f"{name}, wall", "× the floor", wall / floor, each, beside=beside),
        Row(f"{name}, peak", "of 2 GiB", max(peaks), peaks, 1.0, at_most=True, beside=of_budget),
    ]


def collecting(bench: Bench, kind: str) -> list[Row]:
    """All experts' files; the figures are of the least and of the largest."""
    used = [bench.collect(kind, expert) for expert in bench.experts]
    stored = bench.statistics(kind, bench.experts[0]).stat().st_size
    rates = tuple(SAMPLES * TOKENS / each.wall for each in used)
    peaks = tuple(float(each.peak / MIB) for each in used)
    beside = f"{min(each.wall for each in used):.1f} s, a file of {stored / MIB:.0f} MiB"
    weights = (bench.base / "model.safetensors").stat().st_size
    return [
        Row(f"collect {kind}", "tokens/s", max(rates), rates, beside=beside),
        Row(
            f"collect {kind}, peak",
            "MiB",
            max(peaks),
            peaks,
            beside=f"the model's weights are {weights / MIB:.0f} MiB",
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two layers: shows that all runs")
    parser.add_argument("--only", nargs="+", choices=PRESETS, metavar="METHOD")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scratch", type=Path, default=Path(".cache"), help="on the disk used")
    arguments = parser.parse_args()
    chosen = list(arguments.only or PRESETS)
    arguments.scratch.mkdir(parents=True, exist_ok=True)
    machine = described()
    found: dict[str, list[Row]] = {}
    with tempfile.TemporaryDirectory(dir=arguments.scratch.resolve()) as scratch:
        bench = Bench(Path(scratch), 2 if arguments.quick else LAYERS)
        for kind in dict.fromkeys(PRESETS[name] for name in chosen if PRESETS[name]):
            found[f"collect {kind}"] = collecting(bench, kind)
        for name in chosen:
            found[name] = merging(bench, name, 1 if arguments.quick else arguments.rounds)
            print(f"{name}: {found[name][0].beside}", file=sys.stderr)
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    show(found)
    if not (arguments.quick or arguments.only):
        parts = {name: [row.as_json() for row in rows] for name, rows in found.items()}
        told = {"machine": machine, "threads": THREADS, "layers": LAYERS, "parts": parts}
        RESULTS.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
