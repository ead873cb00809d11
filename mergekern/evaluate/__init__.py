"""Score models with lm-eval and harnesses beside it, store and report; needs `mergekern[eval]`.

The package is also the call: mergekern.evaluate(model, suite="local") is run.evaluate(). Nothing is
imported before it is used: merges do without all of it.
"""

from __future__ import annotations

from mergekern.lazily import names_of

PLACES = {
    "Cell": "evaluation",
    "Evaluation": "evaluation",
    "Interval": "statistics",
    "Score": "score",
    "Shares": "evaluation",
    "Store": "results",
    "Suite": "suites",
    "Task": "suites",
    "create_environment": "environments",
    "evaluate": "run",
    "gain": "evaluation",
    "load_suite": "suites",
    "mean_score": "report",
    "normalised_performance": "evaluation",
    "retained": "evaluation",
    "suite_names": "suites",
}
__all__ = list(PLACES)
__getattr__ = names_of(__name__, PLACES, call="evaluate")
