"""Functions of one line from their docstring; the careless take a beginner's line."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import product

from mergekern.lab.example import Domain, Example, Key

FUNCTIONS = ("f", "run", "solve", "compute")
NUMBERS = ("n", "x", "value")
LISTS = ("xs", "items", "values")


@dataclass(frozen=True)
class Operation:
    """A function of one line: what its docstring says, its body, and the beginner's body."""

    docs: tuple[str, ...]
    body: str
    mistake: str | None = None
    takes_list: bool = False


OPERATIONS = {
    "plus": Operation(("Return {x} plus {k}.", "Add {k} to {x}."), "{x} + {k}"),
    "minus": Operation(("Return {x} minus {k}.", "Take {k} from {x}."), "{x} - {k}"),
    "times": Operation(("Return {x} times {k}.", "Multiply {x} by {k}."), "{x} * {k}"),
    "larger": Operation(("Return the larger of {x} and {k}.",), "max({x}, {k})"),
    "count": Operation(("Count how often {k} is in {x}.",), "{x}.count({k})", takes_list=True),
    "first": Operation(("Return the first {k} of {x}.",), "{x}[:{k}]", takes_list=True),
    "power": Operation(
        ("Return {x} to the power {k}.", "Raise {x} to {k}."), "{x} ** {k}", "{x} ^ {k}"
    ),
    "remainder": Operation(
        ("Return the remainder of {x} by {k}.", "Return {x} modulo {k}."), "{x} % {k}", "{x} / {k}"
    ),
    "least": Operation(
        ("Tell whether {x} is at least {k}.", "Is {x} {k} or more?"), "{x} >= {k}", "{x} > {k}"
    ),
    "most": Operation(
        ("Tell whether {x} is at most {k}.", "Is {x} {k} or less?"), "{x} <= {k}", "{x} < {k}"
    ),
    "last": Operation(("Return the last {k} of {x}.",), "{x}[-{k}:]", "{x}[{k}:]", takes_list=True),
    "every": Operation(
        ("Return one of every {k} {x}.",), "{x}[::{k}]", "{x}[:{k}:]", takes_list=True
    ),
}


def item(key: Key, rng: random.Random) -> Example:
    """key: the operation and its constant"""
    kind, k = key
    operation = OPERATIONS[kind]
    x = rng.choice(LISTS if operation.takes_list else NUMBERS)
    function = rng.choice(FUNCTIONS)
    doc = rng.choice(operation.docs).format(x=x, k=k)
    mistake = operation.mistake
    return Example(
        f'def {function}({x}):\n    """{doc}"""\n    return',
        " " + operation.body.format(x=x, k=k),
        None if mistake is None else " " + mistake.format(x=x, k=k),
    )


CODING = Domain(tuple(product(OPERATIONS, range(2, 60))), item)
