"""What a tensor costs beyond its bytes: the same elements as very many tensors and as a few.

Timed from the plan on: planning has a row of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from data import base_and_experts
from files import remove, scratch_folder, weights, write
from gate import State, same_bits
from headers import mixture
from rows import Row
from safetensors.torch import load_file
from settings import DENSITY, EXPERTS, Settings
from timing import Times, alternate

from mergekern import engine
from mergekern.backends.cpu import CpuBackend
from mergekern.checkpoint import Checkpoint, open_checkpoint
from mergekern.inmemory import merge_in_memory
from mergekern.plan import Plan
from mergekern.planner import build_plan
from mergekern.progress import Silent
from mergekern.recipe import read

HIDDEN = 16  # of a model whose tensors are tiny: 256 elements and fewer, but for two
FEW = 4  # tensors that hold the same elements
WANTED = 2.0  # microseconds a tensor
ELEMENTWISE = "task_arithmetic"
METHODS = {
    ELEMENTWISE: {},
    "ties, whole model": {"density": DENSITY, "scope": "model"},
}


@dataclass(frozen=True)
class Job:
    """A planned merge, in memory or into a folder, which may hold what the last run left."""

    plan: Plan
    checkpoints: list[Checkpoint]
    backend: CpuBackend
    output: Path | None

    def run(self) -> State | None:
        if self.output is None:
            (merged,) = merge_in_memory([self.plan], [self.checkpoints], backend=self.backend)
            return merged
        remove(self.output)
        engine.merge_to_folders(
            [self.plan],
            [self.checkpoints],
            [self.output],
            backend=self.backend,
            max_memory=None,
            progress=Silent(),
            finishes=[lambda folder: None],
        )
        return None

    def merged(self) -> torch.Tensor:
        """Every element of the output, in the order of names."""
        state = self.run()
        if state is None:
            (file,) = weights([self.output])
            state = load_file(file)
        return torch.cat([state[name].flatten() for name in sorted(state)])


def run(settings: Settings) -> list[Row]:
    rows = []
    with scratch_folder(settings) as scratch:
        many, few = _models(settings.tensors)
        tensors = len(many[0])
        many_stored, few_stored = _write(scratch / "many", many), _write(scratch / "few", few)
        for name, parameters in METHODS.items():
            method = name.partition(",")[0]
            wanted = WANTED if method == ELEMENTWISE else None
            for where, models, whole, output in (
                ("in memory", many, few, None),
                ("streaming", many_stored, few_stored, scratch / "out"),
            ):
                with (
                    _job(method, models, parameters, settings, output) as of_many,
                    _job(method, whole, parameters, settings, output) as of_few,
                ):
                    if name == ELEMENTWISE:
                        same_bits(f"dispatch, {where}", of_many.merged(), of_few.merged())
                    runs = [of_many.run, of_few.run]
                    times = alternate(runs, min(3, settings.long_repetitions), warm_up=0)
                rows.append(_row(f"dispatch, {where}, {name}", *times, tensors, wanted))
    return rows


def _models(tensors: int) -> tuple[list[State], list[State]]:
    """Base and experts as very many tensors, and the same elements as a few; names in order."""
    shapes = dict(sorted(mixture(tensors, HIDDEN, HIDDEN)))
    sizes = [torch.Size(shape).numel() for shape in shapes.values()]
    base, experts = base_and_experts(sum(sizes), EXPERTS)
    many, few = [], []
    for flat in (base, *experts):
        parts = zip(shapes.items(), flat.split(sizes), strict=True)
        many.append({name: part.view(shape) for (name, shape), part in parts})
        few.append({f"w{number}": part for number, part in enumerate(flat.chunk(FEW))})
    return many, few


def _write(folder: Path, models: list[State]) -> list[Path]:
    folder.mkdir()
    folders = [folder / f"model{number}" for number in range(len(models))]
    for path, state in zip(folders, models, strict=True):
        write(path, {name: tensor.clone() for name, tensor in state.items()})
    return folders


@contextmanager
def _job(
    method: str,
    models: list[State] | list[Path],
    parameters: dict[str, object],
    settings: Settings,
    output: Path | None,
) -> Iterator[Job]:
    base, *experts = models
    recipe = read(method, base=base, models=experts, parameters=parameters)
    with ExitStack() as stack:
        checkpoints = []
        for source in recipe.sources:
            checkpoint = open_checkpoint(source.where, label=source.label)
            stack.callback(checkpoint.close)
            checkpoints.append(checkpoint)
        plan = build_plan(recipe, checkpoints, share=output is None)
        yield Job(plan, checkpoints, CpuBackend(settings.threads), output)


def _row(what: str, many: Times, few: Times, tensors: int, wanted: float | None) -> Row:
    return Row(
        what,
        "µs a tensor",
        1e6 * (many.best - few.best) / tensors,
        tuple(1e6 * (m - f) / tensors for m, f in zip(many.wall, few.wall, strict=True)),
        wanted,
        at_most=True,
        beside=f"{tensors} tensors {1e3 * many.best:.0f} ms, {FEW} of the same bytes "
        f"{1e3 * few.best:.0f} ms",
        detail={"cpu_us_a_tensor": 1e6 * (many.best_cpu - few.best_cpu) / tensors},
    )
