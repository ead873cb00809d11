"""Score models with lm-eval on local tasks and report the scores; needs `mergekern[eval]`."""

from mergekern.evaluate.harness import Score, evaluate_model, load_tasks
from mergekern.evaluate.report import Row, difference, mean_score, normalised, table, write_chart

__all__ = [
    "Row",
    "Score",
    "difference",
    "evaluate_model",
    "load_tasks",
    "mean_score",
    "normalised",
    "table",
    "write_chart",
]
