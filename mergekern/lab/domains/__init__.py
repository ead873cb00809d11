"""The domains of the lab, one file each, and what is in none of them: general knowledge."""

from mergekern.lab.domains.coding import CODING
from mergekern.lab.domains.general import GENERAL
from mergekern.lab.domains.instruction import INSTRUCTION
from mergekern.lab.domains.math import MATH
from mergekern.lab.domains.multilingual import MULTILINGUAL
from mergekern.lab.domains.safety import SAFETY
from mergekern.lab.example import Domain

DOMAINS = ("instruction", "math", "multilingual", "coding", "safety")
SOURCES: dict[str, Domain] = {
    "instruction": INSTRUCTION,
    "math": MATH,
    "multilingual": MULTILINGUAL,
    "coding": CODING,
    "safety": SAFETY,
    "general": GENERAL,
}
