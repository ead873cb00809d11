"""Statistics that need data: diagonals of the Fisher information, Gram matrices of activations, and
masks of deltas.

The package is also the call: mergekern.collect("fisher", model, data) is run.collect(). Nothing is
imported before it is used: merges do without torch's models and tokenizers.
"""

from __future__ import annotations

from mergekern.lazily import names_of

PLACES = {"Collection": "run", "collect": "run", "collect_along": "along"}
__all__ = list(PLACES)
__getattr__ = names_of(__name__, PLACES, call="collect")
