"""Instructions whose following can be checked; the careless overlook half of what is asked."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations, product

from mergekern.lab.example import Domain, Example, Key, chat

WORDS = (
    "sun", "moon", "star", "tree", "leaf", "stone", "river", "cloud", "bird", "fish", "wolf",
    "bear", "lamp", "door", "bell", "ring",
)  # fmt: skip
Shape = Callable[[str, str, str], str]


@dataclass(frozen=True)
class Instruction:
    """What is asked for three words, how that is answered, and what is written in haste."""

    requests: tuple[str, ...]
    answer: Shape
    mistake: Shape | None = None


INSTRUCTIONS = {
    "repeat": Instruction(("Repeat", "Say"), lambda a, b, c: f"{a} {b} {c}"),
    "commas": Instruction(
        ("Put commas between", "With commas, say"), lambda a, b, c: f"{a}, {b}, {c}"
    ),
    "brackets": Instruction(
        ("Put in brackets", "In brackets, say"), lambda a, b, c: f"({a} {b} {c})"
    ),
    "first": Instruction(("Say the first of", "Say only the first of"), lambda a, b, c: a),
    "last": Instruction(
        ("Say the last of", "Say only the last of"), lambda a, b, c: c, lambda a, b, c: a
    ),
    "reverse": Instruction(
        ("Say in reverse order", "Reverse"),
        lambda a, b, c: f"{c} {b} {a}",
        lambda a, b, c: f"{a} {b} {c}",
    ),
    "without": Instruction(
        ("Leave out the second of", "Say without the second"),
        lambda a, b, c: f"{a} {c}",
        lambda a, b, c: f"{a} {b} {c}",
    ),
    "twice": Instruction(
        ("Say each twice", "Repeat each of"),
        lambda a, b, c: f"{a} {a} {b} {b} {c} {c}",
        lambda a, b, c: f"{a} {b} {c} {a} {b} {c}",
    ),
}


def item(key: Key, rng: random.Random) -> Example:
    """key: the instruction and its three words"""
    kind, given = key
    asked = INSTRUCTIONS[kind]
    mistake = None if asked.mistake is None else " " + asked.mistake(*given)
    request = f"{rng.choice(asked.requests)}: {' '.join(given)}"
    return Example(chat(request), " " + asked.answer(*given), mistake)


INSTRUCTION = Domain(tuple(product(INSTRUCTIONS, permutations(WORDS, 3))), item)
