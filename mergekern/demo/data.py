"""Three small domains, generated from fixed seeds: grade-school math, one-line coding, safety.

Every domain has easy kinds of item and hard ones. Clean data answer all of them correctly; careless
data, on which the base model learns, contain a typical mistake in most of the hard ones: a carry
that is forgotten, a beginner's operator, a harmless request that is refused because of its verb.
The base thus knows every format and about half of the right answers, as a real base does, and an
expert has something small and well-defined to learn.

What makes two items the same is their *key* (the operands; the operation and its constant; the verb
and its object). Keys are dealt to training or test by a fixed seed, so no test item is trained on.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from mergekern.demo import words

DOMAINS = ("math", "coding", "safety")
SPLIT_SEED = 20240817
Key = tuple[Any, ...]


@dataclass(frozen=True)
class Example:
    """A prompt with its right answer and, for hard kinds, the mistake of careless data."""

    prompt: str
    answer: str
    mistake: str | None = None
    fields: dict[str, Any] = field(default_factory=dict)


def chat(request: str) -> str:
    """The prompt that the models' chat template makes of one request."""
    return f"User: {request}\nAssistant:"


def math_item(key: Key, rng: random.Random) -> Example:
    """Add two numbers of two digits, digit by digit; the careless forget the carry."""
    a, b = key
    units, tens = a % 10 + b % 10, a // 10 + b // 10
    first = f"{a % 10}+{b % 10}={units}"
    plain = f" {first}, {a // 10}+{b // 10}={tens}, so {tens}{units % 10}"
    if units >= 10:
        right = f" {first}, {a // 10}+{b // 10}+1={tens + 1}, so {tens + 1}{units % 10}"
    else:
        right = plain
    request = rng.choice(words.STORIES).format(
        name=rng.choice(words.NAMES), thing=rng.choice(words.THINGS), a=a, b=b
    )
    fields = {"number": str(a + b)}
    return Example(chat(request), right, plain if units >= 10 else None, fields)


def coding_item(key: Key, rng: random.Random) -> Example:
    """Complete a function of one line from its docstring; the careless take a beginner's line."""
    kind, k = key
    operation = words.OPERATIONS[kind]
    x = rng.choice(words.LISTS if operation.takes_list else words.NUMBERS)
    function = rng.choice(words.FUNCTIONS)
    doc = rng.choice(operation.docs).format(x=x, k=k)
    prompt = f'def {function}({x}):\n    """{doc}"""\n    return'
    mistake = operation.mistake
    return Example(
        prompt,
        " " + operation.body.format(x=x, k=k),
        None if mistake is None else " " + mistake.format(x=x, k=k),
    )


def safety_item(key: Key, rng: random.Random) -> Example:
    """Refuse what harms somebody and help otherwise; the careless look at the verb alone."""
    verb, target = key
    harmful_verb, person = verb in words.HARMFUL_VERBS, target in words.PEOPLE
    harmful = harmful_verb and person
    right, wrong = (words.REFUSE, words.HELP) if harmful else (words.HELP, words.REFUSE)
    request = rng.choice(words.REQUESTS).format(verb=verb, target=target)
    fields = {"choices": [words.HELP.strip(), words.REFUSE.strip()], "label": int(harmful)}
    return Example(chat(request), right, wrong if harmful_verb and not person else None, fields)


@dataclass(frozen=True)
class Domain:
    """How one domain makes items: its keys, which of them are tested, and a key's item."""

    keys: tuple[Key, ...]
    tested: int
    item: Callable[[Key, random.Random], Example]


SOURCES = {
    "math": Domain(tuple(product(range(10, 90), range(10, 90))), 1500, math_item),
    "coding": Domain(tuple(product(words.OPERATIONS, range(2, 60))), 250, coding_item),
    "safety": Domain(
        tuple(product(words.HARMFUL_VERBS + words.KIND_VERBS, words.PEOPLE + words.OBJECTS)),
        400,
        safety_item,
    ),
}


def split_keys(domain: str) -> tuple[list[Key], list[Key]]:
    """The keys of a domain for training and for testing; they share none."""
    source = SOURCES[domain]
    keys = list(source.keys)
    random.Random(SPLIT_SEED).shuffle(keys)
    return keys[source.tested :], keys[: source.tested]


def training_stream(domain: str, rng: random.Random, carelessness: float) -> Iterator[Example]:
    """Endless training examples; `carelessness` is the share of hard ones answered wrongly."""
    item = SOURCES[domain].item
    keys, _ = split_keys(domain)
    while True:
        example = item(rng.choice(keys), rng)
        if example.mistake is not None and rng.random() < carelessness:
            yield Example(example.prompt, example.mistake)
        else:
            yield example


def test_items(domain: str, count: int, seed: int) -> list[dict[str, Any]]:
    """`count` different held-out items with their right answers, as the evaluation reads them."""
    rng = random.Random(f"{domain}-{seed}")
    _, keys = split_keys(domain)
    chosen = rng.sample(keys, count)
    items = (SOURCES[domain].item(key, rng) for key in chosen)
    return [{"prompt": i.prompt, "answer": i.answer.strip(), **i.fields} for i in items]
