"""Examples to train on and items to be judged by, generated from fixed seeds: five small domains.

Every domain has easy kinds of item and hard ones. Clean data answer all of them correctly; careless
data, on which the base model learns, contain a typical mistake in most of the hard ones: a carry
that is forgotten, a beginner's operator, a harmless request that is refused because of its verb.
The base thus knows every format and about half of the right answers, as a real base does, and an
expert has something small and well-defined to learn.

What makes two items the same is their *key* (the operands; the operation and its constant; the verb
and its object). Keys are dealt to training, validation or test by a fixed seed, so no item that a
model is judged by is trained on, and none that is reported has chosen anything.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator
from typing import Any, Literal

from mergekern.lab.domains import SOURCES
from mergekern.lab.example import Example, Key

SPLIT_SEED = 20240817
ITEM_SEED = 0
Split = Literal["training", "validation", "test"]


@functools.cache
def keys_of(domain: str, split: Split) -> tuple[Key, ...]:
    """The keys of a domain that are dealt to a split; splits share none."""
    source = SOURCES[domain]
    keys = list(source.keys)
    random.Random(SPLIT_SEED).shuffle(keys)
    held_out = source.tested + source.validated
    parts = {
        "test": keys[: source.tested],
        "validation": keys[source.tested : held_out],
        "training": keys[held_out:],
    }
    return tuple(parts[split])


def training_stream(domain: str, rng: random.Random, carelessness: float) -> Iterator[Example]:
    """Endless training examples; `carelessness` is the share of hard ones answered wrongly."""
    item = SOURCES[domain].item
    keys = keys_of(domain, "training")
    while True:
        example = item(rng.choice(keys), rng)
        if example.mistake is not None and rng.random() < carelessness:
            yield Example(example.prompt, example.mistake)
        else:
            yield example


def items(domain: str, split: Split) -> list[dict[str, Any]]:
    """An item for every key of a split, with its right answer, as the evaluation reads them."""
    rng = random.Random(f"{domain}-{split}-{ITEM_SEED}")
    made = (SOURCES[domain].item(key, rng) for key in keys_of(domain, split))
    return [{"prompt": each.prompt, "answer": each.answer.strip(), **each.fields} for each in made]
