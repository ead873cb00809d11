"""Word problems that add two numbers, digit by digit; the careless forget the carry."""

from __future__ import annotations

import random
from itertools import product

from mergekern.lab.example import Domain, Example, Key, chat

NAMES = ("Tom", "Anna", "Ben", "Mia", "Sam", "Eva", "Max", "Lily")
THINGS = ("apples", "books", "coins", "eggs", "pens", "stones", "cards", "cups")
STORIES = (
    "{name} has {a} {thing} and buys {b} more. How many {thing} now?",
    "{name} finds {a} {thing}, then {b} more. How many {thing} now?",
    "There are {a} {thing} here and {b} there. How many {thing}?",
)


def item(key: Key, rng: random.Random) -> Example:
    """key: both numbers"""
    a, b = key
    units, tens = a % 10 + b % 10, a // 10 + b // 10
    first = f"{a % 10}+{b % 10}={units}"
    plain = f" {first}, {a // 10}+{b // 10}={tens}, so {tens}{units % 10}"
    if units >= 10:
        right = f" {first}, {a // 10}+{b // 10}+1={tens + 1}, so {tens + 1}{units % 10}"
    else:
        right = plain
    request = rng.choice(STORIES).format(name=rng.choice(NAMES), thing=rng.choice(THINGS), a=a, b=b)
    return Example(chat(request), right, plain if units >= 10 else None, {"number": str(a + b)})


MATH = Domain(tuple(product(range(10, 90), range(10, 90))), item)
