"""mergekit and mergekern side by side, as their users run them: `python bench/versus.py`.

Both merge the same recipes on Llama checkpoints in bf16 of 374 million parameters, or of as many
layers as asked for (88 are 1.2 billion), by their command lines, with two threads, in turns; the
figures are of the least of several rounds. All inputs lie in the page cache, read once before each
run: what is compared is the merging, not the disk's reading. Outputs are written to the disk that
holds the scratch folder.

Beside is what the machine takes to move the bytes alone, and how many times faster than mergekit a
tool would be that did nothing else: reading the inputs, cached, and writing as much as is written,
to the disk, by one thread.

Starting up, imports and all, is measured by the same recipe on a model without layers to speak of,
and shown beside: the wanted ratios are those of the whole commands. mergekit's peak memory counts
the input files that it maps. `make parity` sets up the environment that mergekit runs in. A whole
run writes bench/results/versus.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from command import Used, timed
from rows import Row, show

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results" / "versus.json"
MIB = 1 << 20
BUDGET = 1024 * MIB
THREADS = 2
LAYERS = 24

Parameters = Mapping[str, object]


@dataclass(frozen=True)
class Subject:
    """each: parameters of each model; shared: of the recipe; wanted: ratio of wall times."""

    wanted: float | None = None
    each: Parameters | None = None
    shared: Parameters | None = None
    models: tuple[str, ...] = ("a", "b")
    base: bool = True

    def recipe(self, method: str, folders: Path) -> str:
        """A JSON text is a YAML text."""
        entries = [{"model": str(folders / m), "parameters": self.each or {}} for m in self.models]
        recipe: dict[str, object] = {"merge_method": method, "models": entries}
        if self.base:
            recipe["base_model"] = str(folders / "base")
        return json.dumps(recipe | {"parameters": self.shared or {}, "dtype": "bfloat16"})


HALF = {"weight": 0.5}
DENSE = {"weight": 0.5, "density": 0.5}
SUBJECTS = {
    "linear": Subject(4, HALF, base=False),
    "slerp": Subject(8, shared={"t": 0.4}, models=("base", "a")),
    "task_arithmetic": Subject(8, HALF),
    "dare_ties": Subject(25, DENSE),
    "ties": Subject(60, DENSE),
    "breadcrumbs": Subject(60, DENSE | {"gamma": 0.01}),
    "sce": Subject(60, shared={"select_topk": 0.5}),
    "della": Subject(60, DENSE),
    "passthrough": Subject(models=("a",), base=False),
    "nuslerp": Subject(each=HALF, base=False),
    "multislerp": Subject(each=HALF, base=False),
    "karcher": Subject(base=False),
    "dare_linear": Subject(each=DENSE),
    "breadcrumbs_ties": Subject(each=DENSE),
    "della_linear": Subject(each=DENSE),
    "model_stock": Subject(),
    "nearswap": Subject(shared={"t": 0.001}, models=("a",)),
    "arcee_fusion": Subject(models=("a",)),
    "ram": Subject(),
    "ramplus_tl": Subject(),
}


class Tools:
    """The commands; `output` is removed before each."""

    def __init__(self, kit: Path, output: Path) -> None:
        self.kit, self.output = kit, output
        self.commands = {
            "mergekit": [
                *(str(kit / "mergekit-yaml"), "RECIPE", str(output)),
                *("--no-cuda", "--num-threads", str(THREADS), "--random-seed", "7", "--quiet"),
            ],
            "mergekern": self._mergekern(),
            "in 1 GiB": self._mergekern("--max-memory", "1GiB"),
        }

    def _mergekern(self, *more: str) -> list[str]:
        script = Path(sys.executable).with_name("mergekern")
        common = ["--threads", str(THREADS), "--device", "cpu", "--seed", "7", "--quiet"]
        return [str(script), "merge", "RECIPE", str(self.output), *common, *more]

    def run(self, tool: str, recipe: Path, folders: Path) -> Used:
        shutil.rmtree(self.output, ignore_errors=True)
        warm(folders)
        command = [str(recipe) if word == "RECIPE" else word for word in self.commands[tool]]
        # As installed for users, both have their compiled modules beside them, or write them once.
        environment = {"HF_HUB_OFFLINE": "1", "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": ""}
        if tool != "mergekit":
            environment["PYTHONPATH"] = str(ROOT)
        return timed(command, environment)


def warm(folders: Path) -> None:
    """Into the page cache, for both."""
    buffer = bytearray(8 * MIB)
    for path in folders.rglob("*.safetensors"):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def moving(inputs: Iterable[Path], nbytes: int, scratch: Path) -> float:
    """Seconds to read files, and to write so many bytes that stay."""
    buffer = bytearray(8 * MIB)
    began = time.perf_counter()
    for path in inputs:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    with scratch.open("wb", buffering=0) as file:
        for _ in range(nbytes // len(buffer)):
            file.write(buffer)
        os.fsync(file.fileno())
    taken = time.perf_counter() - began
    scratch.unlink()
    return taken


def least(rounds: list[dict[str, Used]], tool: str, what: str) -> float:
    return min(float(getattr(each[tool], what)) for each in rounds)


def rows_of(
    method: str,
    rounds: list[dict[str, Used]],
    starts: list[dict[str, Used]],
    moved: list[float],
    wanted: float | None,
) -> list[Row]:
    def ratio(what: str, tool: str = "mergekern") -> tuple[float, tuple[float, ...], str]:
        theirs, ours = least(rounds, "mergekit", what), least(rounds, tool, what)
        each = tuple(getattr(r["mergekit"], what) / getattr(r[tool], what) for r in rounds)
        return theirs / ours, each, f"{theirs:.2f} s against {ours:.2f} s"

    measured, each, beside = ratio("wall")
    rows = [Row(f"{method}, wall", "× faster", measured, each, wanted, beside=beside)]
    measured, each, beside = ratio("wall", "in 1 GiB")
    rows.append(Row(f"{method}, wall, in 1 GiB", "× faster", measured, each, wanted, beside=beside))
    measured, each, beside = ratio("cpu")
    rows.append(Row(f"{method}, CPU", "× less", measured, each, beside=beside))
    start = {tool: least(starts, tool, "wall") for tool in ("mergekit", "mergekern")}
    whole = {tool: least(rounds, tool, "wall") for tool in start}
    merging = {tool: whole[tool] - start[tool] for tool in start}
    if min(merging.values()) > 0:  # not lost in the noise
        measured = merging["mergekit"] / merging["mergekern"]
        beside = f"starts {start['mergekit']:.2f} s and {start['mergekern']:.2f} s left out"
        rows.append(
            Row(f"{method}, wall, merging alone", "× faster", measured, (measured,), beside=beside)
        )
    each = tuple(r["mergekit"].wall / seconds for r, seconds in zip(rounds, moved, strict=True))
    measured, over = (whole[tool] / min(moved) for tool in ("mergekit", "mergekern"))
    beside = f"bytes moved in {min(moved):.2f} s; mergekern takes {over:.1f} × that"
    rows.append(
        Row(f"{method}, wall, if nothing were computed", "× faster", measured, each, beside=beside)
    )
    peaks = tuple(r["in 1 GiB"].peak / BUDGET for r in rounds)
    kit, ours = (max(r[tool].peak for r in rounds) / MIB for tool in ("mergekit", "mergekern"))
    beside = f"without a budget {ours:.0f} MiB, mergekit {kit:.0f} MiB"
    rows.append(
        Row(f"{method}, peak", "of 1 GiB", max(peaks), peaks, 1.0, at_most=True, beside=beside)
    )
    return rows


def measure(method: str, big: Path, small: Path, tools: Tools, rounds: int) -> list[Row]:
    subject = SUBJECTS[method]
    recipe = tools.output.with_name("recipe.yml")

    def turns(folders: Path, count: int) -> list[dict[str, Used]]:
        recipe.write_text(subject.recipe(method, folders))
        return [
            {tool: tools.run(tool, recipe, folders) for tool in tools.commands}
            for _ in range(count)
        ]

    starts = turns(small, min(2, rounds))
    used = turns(big, rounds)
    models = {*subject.models, *(("base",) if subject.base else ())}
    inputs = [big / model / "model.safetensors" for model in sorted(models)]
    written = inputs[0].stat().st_size
    scratch = tools.output.with_name("moved")
    moved = [moving(inputs, written, scratch) for _ in range(rounds)]
    return rows_of(method, used, starts, moved, subject.wanted)


def make(folder: Path, layers: int) -> None:
    subprocess.run([sys.executable, str(ROOT / "bench/llama.py"), folder, str(layers)], check=True)


def known() -> set[str]:
    """Methods that mergekern has; asked in a process of its own: this one stays small."""
    code = "import mergekern; print(*(m.name for m in mergekern.methods()))"
    told = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return set(told.stdout.split())


def described() -> dict[str, object]:
    code = "import json, machine; print(json.dumps(machine.describe()))"
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'bench'}", "PATH": "/usr/bin:/bin"}
    told = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment
    )
    return dict(json.loads(told.stdout))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="two layers, once: shows that all runs"
    )
    parser.add_argument("--layers", type=int, default=LAYERS, help="of the models")
    parser.add_argument("--only", nargs="+", choices=SUBJECTS, metavar="METHOD")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scratch", type=Path, default=Path(".cache"), help="on the disk used")
    parser.add_argument("--mergekit", type=Path, default=ROOT / ".venv-parity/bin", metavar="BIN")
    parser.add_argument("--json", type=Path, help="where to; of a part or a quick run, only here")
    arguments = parser.parse_args()
    if not (arguments.mergekit / "mergekit-yaml").exists():
        parser.error(f"no mergekit-yaml in {arguments.mergekit}: `make parity` installs one")
    here = known()
    chosen = [name for name in arguments.only or SUBJECTS if name in here]
    arguments.scratch.mkdir(parents=True, exist_ok=True)
    machine = described()
    found: dict[str, list[Row]] = {}
    with tempfile.TemporaryDirectory(dir=arguments.scratch.resolve()) as scratch:
        root = Path(scratch)
        make(root / "big", 2 if arguments.quick else arguments.layers)
        make(root / "small", 0)
        tools = Tools(arguments.mergekit.absolute(), root / "out")
        for method in chosen:
            rounds = 1 if arguments.quick else arguments.rounds
            found[method] = measure(method, root / "big", root / "small", tools, rounds)
            print(f"{method}: {found[method][0].beside}", file=sys.stderr)
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    show(found)
    whole = not (arguments.quick or arguments.only or arguments.layers != LAYERS)
    target = arguments.json or (RESULTS if whole else None)
    if target is not None:
        parts = {name: [row.as_json() for row in rows] for name, rows in found.items()}
        told = {"machine": machine, "threads": THREADS, "layers": arguments.layers, "parts": parts}
        target.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
