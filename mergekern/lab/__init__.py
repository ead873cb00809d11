"""The lab: small real models of five domains, trained here, on which merging methods are compared.

Nothing is downloaded, and everything follows from seeds.
"""

from __future__ import annotations

from mergekern.lazily import names_of

PLACES = {
    "Lab": "lab",
    "Settings": "lab",
    "make_lab": "make",
    "open_lab": "lab",
    "run_demo": "demo",
}
__all__ = list(PLACES)
__getattr__ = names_of(__name__, PLACES)
