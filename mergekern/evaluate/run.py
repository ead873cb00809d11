"""Evaluating a model: every task of a suite that is not finished yet, one after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mergekern.errors import EvaluationError
from mergekern.evaluate import lmeval
from mergekern.evaluate.bigcode import BigCode
from mergekern.evaluate.evaluation import Cell, Evaluation
from mergekern.evaluate.imports import require
from mergekern.evaluate.lmeval import LmEval
from mergekern.evaluate.offline import offline_without_network
from mergekern.evaluate.options import HOURS, Engine, EvaluationOptions
from mergekern.evaluate.outside import Outside
from mergekern.evaluate.results import Store, cell_key
from mergekern.evaluate.safety import Safety
from mergekern.evaluate.subject import Subject, subject_of
from mergekern.evaluate.suites import Suite, Task, load_suite, suite_of

RESULTS = "mergekern-results"
OFFLINE = "no network, or HF_HUB_OFFLINE is set: data are taken from caches alone"
Tell = Callable[[str], None]
Harnesses = Mapping[str, LmEval | Outside]


def evaluate(
    model: Any,
    *,
    suite: str | Path | Suite | None = None,
    tasks: str | Sequence[str] | None = None,
    output: str | Path = RESULTS,
    like: str | Path | None = None,
    limit: int | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    dtype: str = "auto",
    engine: Engine = "auto",
    chat_template: bool = False,
    include: Sequence[str | Path] = (),
    allow_code_execution: bool = False,
    timeout: float | None = 12 * HOURS,
    environments: Mapping[str, str | Path] | None = None,
    cache: str | Path | None = None,
    dry_run: bool = False,
    tell: Tell | None = None,
) -> Evaluation:
    """Score a model on the tasks of a suite, or on tasks of lm-eval's; not on finished ones again.

    model:    a folder, a Hub id, "base+adapter"; a recipe (a file, a mapping), which is merged in
              memory; a module or a state dict, with `like`
    suite:    a name (see suite_names()), a YAML file or a Suite
    tasks:    names of lm-eval's tasks or groups, in place of a suite
    output:   the folder of results, as lm-eval lays them out
    like:     for tensors in memory: a folder or Hub id with their config and tokenizer
    limit:    items of each task; the first ones
    device:   auto, cpu, cuda or cuda:1
    batch_size: in place of the suite's
    dtype:    that weights are loaded as; auto: as they are stored
    engine:   of lm-eval: hf, vllm (which reads folders), or auto: vllm where it is installed and a
              GPU is there
    chat_template: whether prompts go through the model's
    include:  folders with task files of one's own, for lm-eval
    allow_code_execution: lets tasks run what the model has written, in their harness's sandbox
    timeout:  seconds that a task of a harness in its own environment may take
    environments: harness (bigcode, safety) -> folder of its environment, where not the default one
    cache:    the folder that Hub models are downloaded to
    dry_run:  nothing is run; the result says what would be, and what is finished
    tell:     gets a line when a task begins or ends
    A task that fails, or whose harness is not here, says why in its cell, and the others go on.
    Raises EvaluationError, before anything is run, for names and values that make no sense;
    CheckpointError and RecipeError for a model that cannot be read.
    """
    require("lm_eval", "transformers")
    chosen = choose_suite(suite, tasks)
    how = EvaluationOptions(
        limit=limit,
        device=device,
        batch_size=batch_size,
        dtype=dtype,
        engine=engine,
        chat_template=chat_template,
        include=tuple(Path(folder).expanduser().absolute() for folder in include),
        allow_code_execution=allow_code_execution,
        timeout=timeout,
        environments={k: Path(v).expanduser() for k, v in (environments or {}).items()},
    )
    store = Store(Path(output).expanduser().absolute())
    names = [task.task for _, task in chosen.tasks if task.harness == "lm-eval"]
    foreign = not all(map(lmeval.is_ours, names))
    with offline_without_network(foreign) as offline:
        lmeval.check_names(names, how.include)
        where = None if cache is None else Path(cache).expanduser()
        subject = subject_of(model, like=like, cache=where)
        harnesses = _harnesses(subject, how, store, loud=tell is not None)
        cells = _cells(chosen, subject, harnesses, store)
        if not dry_run:
            store.check()
            cells = list(_run(cells, subject, harnesses, store, tell or (lambda line: None)))
    notes = (OFFLINE,) if offline and foreign else ()
    return Evaluation(subject.label, subject.identity, chosen, tuple(cells), notes)


def _harnesses(subject: Subject, how: EvaluationOptions, store: Store, loud: bool) -> Harnesses:
    logs = store.folder / "logs"
    return {
        "lm-eval": LmEval(subject, how, loud),
        "bigcode": Outside(BigCode(), subject, how, logs),
        "safety": Outside(Safety(), subject, how, logs),
    }


def choose_suite(suite: str | Path | Suite | None, tasks: str | Sequence[str] | None) -> Suite:
    """The suite that is meant by one of both. Raises EvaluationError unless one is given."""
    if (suite is None) == (tasks is None):
        raise EvaluationError("give a suite or tasks, one of them")
    if tasks is not None:
        return suite_of(tasks.split(",") if isinstance(tasks, str) else tasks)
    return suite if isinstance(suite, Suite) else load_suite(str(suite))


def _cells(suite: Suite, subject: Subject, harnesses: Harnesses, store: Store) -> list[Cell]:
    """What is finished, what cannot be run here, and what is left to do."""
    cells = []
    finished = store.finished(subject)
    for domain, task in suite.tasks:
        harness = harnesses[task.harness]
        stored = finished.get(cell_key(subject, harness.settings(task)))
        if stored is not None:
            cells.append(_with_score(Cell(domain, task, "found", stored=stored)))
        elif why := harness.obstacle(task):
            cells.append(Cell(domain, task, "missing", why))
        else:
            cells.append(Cell(domain, task, "planned"))
    return cells


def _run(
    cells: Sequence[Cell], subject: Subject, harnesses: Harnesses, store: Store, tell: Tell
) -> Iterator[Cell]:
    for number, cell in enumerate(cells, 1):
        place = f"[{number}/{len(cells)}] {cell.task.task}"
        if cell.status != "planned":
            tell(f"{place}: {cell.reason or 'finished before'}")
            yield cell
            continue
        harness = harnesses[cell.task.harness]
        tell(f"{place}: {cell.task.harness} …")
        harness.prepare()
        done = _finish(cell, subject, harness, store)
        tell(f"{place}: {_ending(done)}")
        yield done


def _finish(cell: Cell, subject: Subject, harness: LmEval | Outside, store: Store) -> Cell:
    """Run a task and store its result; whatever goes wrong is the cell's, and not the run's."""
    task: Task = cell.task
    began = time.monotonic()
    try:
        found = harness.run(task)
    except EvaluationError as error:
        return Cell(cell.domain, task, "failed", str(error), seconds=time.monotonic() - began)
    except Exception as error:  # lm-eval, its tasks and the libraries of data raise anything
        reason = f"{type(error).__name__}: {' '.join(str(error).split()):.300}"
        return Cell(cell.domain, task, "failed", reason, seconds=time.monotonic() - began)
    stored = store.save(
        subject, harness.settings(task), found.content, found.samples, found.tracker
    )
    seconds = time.monotonic() - began
    return _with_score(Cell(cell.domain, task, "done", stored=stored, seconds=seconds))


def _with_score(cell: Cell) -> Cell:
    """The cell; failed where its result lacks the number that the suite wants."""
    try:
        cell.score  # noqa: B018
    except EvaluationError as error:
        return replace(cell, status="failed", reason=str(error), stored=None)
    return cell


def _ending(cell: Cell) -> str:
    if cell.score is None:
        return f"failed: {cell.reason}"
    return f"{cell.score.value:.3f} in {cell.seconds:.0f} s"
