"""Numbers in words of three languages; the careless build them by rules that it has not."""

from __future__ import annotations

import random
from itertools import product

from mergekern.lab.domains.numerals import french, german, spanish
from mergekern.lab.example import Domain, Example, Key, chat

LANGUAGES = {"German": german, "French": french, "Spanish": spanish}
REQUESTS = ("Write {number} in {language}.", "What is {number} in {language}?")


def item(key: Key, rng: random.Random) -> Example:
    """key: the language and the number"""
    language, number = key
    say = LANGUAGES[language]
    right, learner = say(number), say(number, learner=True)
    request = rng.choice(REQUESTS).format(number=number, language=language)
    return Example(chat(request), f" {right}", None if learner == right else f" {learner}")


MULTILINGUAL = Domain(tuple(product(LANGUAGES, range(10, 400))), item)
