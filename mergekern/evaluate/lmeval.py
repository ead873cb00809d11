"""lm-eval's tasks on one model, each run by itself, by its Python API.

Its response cache (`use_cache`) is never used: its keys hold the requests' text but not the model,
so a second model would be given the first one's answers. Tasks that come with the package are given
as configs, with the paths of their items; all others by name.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mergekern.backends.choose import place_of
from mergekern.errors import EvaluationError
from mergekern.evaluate.imports import import_lm_eval, quiet
from mergekern.evaluate.options import NOT_ALLOWED, EvaluationOptions, Finished
from mergekern.evaluate.packaged import packaged
from mergekern.evaluate.subject import Subject
from mergekern.evaluate.suites import Task
from mergekern.lazily import torch
from mergekern.methods import nearest

BATCH = 8
BOOTSTRAP = 1000  # of the metrics that have no closed-form standard error


class LmEval:
    """Runs lm-eval's tasks on one model."""

    def __init__(self, subject: Subject, how: EvaluationOptions, loud: bool = False) -> None:
        self.subject = subject
        self.how = how
        self._loud = loud
        self._model: Any = None

    def settings(self, task: Task) -> dict[str, Any]:
        """What a result depends on, besides the model."""
        return {
            "harness": "lm-eval",
            "task": task.task,
            "shots": task.shots,
            "generation": task.generation,
            "batch_size": self._batch_size(task),
            "limit": self.how.limit,
            "dtype": self.how.dtype,
            "engine": self._engine,
            "chat_template": self.how.chat_template,
            "lm_eval": version("lm_eval"),
            "items": packaged()[task.task].digest if is_ours(task.task) else None,
        }

    def obstacle(self, task: Task) -> str | None:
        """Why a task cannot be run here, None if it can."""
        if task.executes_code and not self.how.allow_code_execution:
            return NOT_ALLOWED
        return None

    def prepare(self) -> None:
        """Load or merge the model. Raises EvaluationError when that cannot be done."""
        if self._model is not None:
            return
        import_lm_eval()
        with self._quiet():
            if self._engine == "vllm":
                from lm_eval.models.vllm_causallms import VLLM

                self._model = VLLM(
                    pretrained=str(self.subject.folder), dtype=self.how.dtype, batch_size="auto"
                )
            else:
                self._model = self.subject.load(self.how.dtype, place_of(self.how.device))

    def run(self, task: Task) -> Finished:
        """Run a task, or a group of them, to its end; raises what lm-eval and its data raise."""
        lm_eval = import_lm_eval()
        from lm_eval.loggers import EvaluationTracker

        tracker = EvaluationTracker()
        with self._quiet(), _machine_told_once(), self._code_execution():
            results = self._evaluated(lm_eval.simple_evaluate, task, tracker)
        samples = results.pop("samples")
        return Finished(results, samples, tracker)

    def _evaluated(self, simple_evaluate: Any, task: Task, tracker: Any) -> dict[str, Any]:
        try:
            found: dict[str, Any] = simple_evaluate(
                model=self._for(task),
                model_args={"pretrained": self.subject.name},
                tasks=[_given(task.task)],
                task_manager=manager(self.how.include, [task.task]),
                num_fewshot=task.shots,
                batch_size=self._batch_size(task),
                device=place_of(self.how.device),
                limit=self.how.limit,
                gen_kwargs=task.generation or None,
                apply_chat_template=self.how.chat_template,
                bootstrap_iters=BOOTSTRAP,
                log_samples=True,
                evaluation_tracker=tracker,
                confirm_run_unsafe_code=self.how.allow_code_execution,
            )
        except ValueError as error:
            if "unsafe" in str(error) and not self.how.allow_code_execution:
                raise EvaluationError(NOT_ALLOWED) from error
            raise
        return found

    @property
    def _engine(self) -> str:
        """hf, or vllm where it is installed and can be used: with a GPU, and a folder."""
        asked, folder = self.how.engine, self.subject.folder
        if asked == "vllm" and folder is None:
            raise EvaluationError("vLLM reads a folder: merge into one, or take engine hf")
        if asked == "vllm" and find_spec("vllm") is None:
            raise EvaluationError(
                "engine is vllm, which is not installed: pip install 'lm-eval[vllm]'"
            )
        if asked != "auto":
            return asked
        usable = folder is not None and find_spec("vllm") is not None
        return "vllm" if usable and self.how.device != "cpu" and torch.cuda.is_available() else "hf"

    def _for(self, task: Task) -> Any:
        """lm-eval's view of the model, with a task's batch size."""
        if self._engine == "vllm":
            return self._model
        from lm_eval.models.huggingface import HFLM

        model, tokenizer = self._model
        return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=self._batch_size(task))

    def _batch_size(self, task: Task) -> int:
        return self.how.batch_size or task.batch_size or BATCH

    def _quiet(self) -> Any:
        # Its bars are the progress of a long task, where somebody looks.
        return nullcontext() if self._loud and sys.stderr.isatty() else quiet()

    @contextmanager
    def _code_execution(self) -> Iterator[None]:
        """What lm-eval's code tasks want to see set, where the call allows them to run."""
        name = "HF_ALLOW_CODE_EVAL"
        before = os.environ.get(name)
        if self.how.allow_code_execution:
            os.environ[name] = "1"
        try:
            yield
        finally:
            if before is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = before


def check_names(tasks: Collection[str], include: tuple[Path, ...] = ()) -> None:
    """Raise EvaluationError for a task that lm-eval does not know, naming the nearest."""
    found = manager(include, tasks)
    known = {*packaged(), *found.all_tasks}
    for task in tasks:
        if task not in known:
            raise EvaluationError(f"lm-eval has no task {task!r}{nearest(task, known)}")


def is_ours(task: str) -> bool:
    """Whether a task comes with the package."""
    return task in packaged()


def manager(include: tuple[Path, ...], tasks: Collection[str]) -> Any:
    """lm-eval's index of tasks; without its own, which takes seconds, where others are enough."""
    small = _manager(include, False)
    others = [task for task in tasks if not is_ours(task)]
    return _manager(include, True) if set(others) - set(small.all_tasks) else small


@functools.lru_cache(maxsize=4)
def _manager(include: tuple[Path, ...], defaults: bool) -> Any:
    lm_eval = import_lm_eval()
    with quiet():
        paths = [str(folder) for folder in include]
        return lm_eval.tasks.TaskManager(include_path=paths or None, include_defaults=defaults)


def _given(task: str) -> Any:
    return packaged()[task].config(task) if is_ours(task) else task


@contextmanager
def _machine_told_once() -> Iterator[None]:
    """lm-eval describes the machine in every result, by half a dozen programs: run them once."""
    from lm_eval import evaluator

    told = {name: getattr(evaluator, name) for name in ("add_env_info", "get_git_commit_hash")}
    evaluator.add_env_info = _add_machine
    evaluator.get_git_commit_hash = _commit
    try:
        yield
    finally:
        for name, function in told.items():
            setattr(evaluator, name, function)


def _commit() -> str | None:
    """Of the repository around, read from its files: git itself complains where there is none."""
    from lm_eval.loggers.utils import get_commit_from_path

    return get_commit_from_path(Path.cwd())


def _add_machine(storage: dict[str, Any]) -> None:
    storage.update(_machine())


@functools.cache
def _machine() -> dict[str, Any]:
    from lm_eval.loggers.utils import add_env_info

    found: dict[str, Any] = {}
    add_env_info(found)
    return found
