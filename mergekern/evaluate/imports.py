"""lm-eval, imported when something is evaluated, and kept quiet."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from mergekern.errors import MergeError

MEND = "evaluation and the lab need: pip install 'mergekern[eval]'"
# The harness imports tqdm by name into these modules and offers no switch for all of its bars.
BARS = ("lm_eval.models.huggingface", "lm_eval.api.task", "lm_eval.api.model")
LOUD = ("lm_eval", "datasets", "transformers", "httpx", "filelock", "fsspec", "matplotlib")


def require(*modules: str) -> None:
    """Say at once, without importing anything, what is missing and how to get it."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise MergeError(f"{' and '.join(missing)} missing; {MEND}")


def import_lm_eval() -> Any:
    """lm-eval with the parts used here, or an error that says how to get it."""
    require("lm_eval", "transformers")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module("lm_eval.tasks")
            importlib.import_module("lm_eval.models.huggingface")
            return importlib.import_module("lm_eval")
    except ImportError as error:
        raise MergeError(f"lm-eval cannot be imported ({error}); {MEND}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back the warnings, log lines and progress bars of lm-eval and what lies under it."""
    import datasets
    from tqdm import tqdm  # type: ignore[import-untyped]
    from transformers.utils import logging as transformers_logging

    modules = [importlib.import_module(name) for name in BARS]
    bars = {module: module.tqdm for module in modules}
    loggers = {logger: logger.level for logger in map(logging.getLogger, LOUD)}
    datasets_bars = datasets.utils.are_progress_bars_disabled()
    transformers_bars = transformers_logging.is_progress_bar_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for module in modules:
                module.tqdm = partial(_silent, tqdm)  # type: ignore[attr-defined]
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            datasets.disable_progress_bars()
            transformers_logging.disable_progress_bar()
            yield
        finally:
            for module, bar in bars.items():
                module.tqdm = bar  # type: ignore[attr-defined]
            for logger, level in loggers.items():
                logger.setLevel(level)
            if not datasets_bars:
                datasets.enable_progress_bars()
            if transformers_bars:
                transformers_logging.enable_progress_bar()


def _silent(tqdm: Any, *args: Any, **options: Any) -> Any:
    return tqdm(*args, **{**options, "disable": True})
