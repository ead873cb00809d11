"""What a domain is made of: examples, and the keys that they are made from."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Key = tuple[Any, ...]


@dataclass(frozen=True)
class Example:
    """A prompt with its right answer and, for hard kinds, the mistake of careless data."""

    prompt: str
    answer: str
    mistake: str | None = None
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Domain:
    """How one domain makes items: its keys, a key's item, and how many keys are held out.

    tested, validated: keys of reported items, and of those by which hyper-parameters are chosen
    """

    keys: tuple[Key, ...]
    item: Callable[[Key, random.Random], Example]
    tested: int = 200
    validated: int = 100


def chat(request: str) -> str:
    """The prompt that the models' chat template makes of one request."""
    return f"User: {request}\nAssistant:"
