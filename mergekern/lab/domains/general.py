"""General knowledge, which the base learns and no expert trains on: what is there to be forgotten.

A fact is asked for in several wordings; what is held out is the wording of a fact, not the fact.
"""

from __future__ import annotations

import random

from mergekern.lab.example import Domain, Example, Key

CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Spain": "Madrid", "Italy": "Rome",
    "Portugal": "Lisbon", "Austria": "Vienna", "Greece": "Athens", "Poland": "Warsaw",
    "Hungary": "Budapest", "Norway": "Oslo", "Sweden": "Stockholm", "Finland": "Helsinki",
    "Denmark": "Copenhagen", "Ireland": "Dublin", "Russia": "Moscow", "Turkey": "Ankara",
    "Egypt": "Cairo", "Kenya": "Nairobi", "Japan": "Tokyo", "China": "Beijing", "India": "Delhi",
    "Iran": "Tehran", "Iraq": "Baghdad", "Cuba": "Havana", "Peru": "Lima", "Chile": "Santiago",
    "Canada": "Ottawa", "Nepal": "Kathmandu", "Vietnam": "Hanoi", "Thailand": "Bangkok",
    "Belgium": "Brussels", "Latvia": "Riga", "Croatia": "Zagreb", "Serbia": "Belgrade",
    "Bulgaria": "Sofia", "Romania": "Bucharest", "Ukraine": "Kyiv", "Lebanon": "Beirut",
    "Syria": "Damascus", "Jordan": "Amman",
}  # fmt: skip
OPPOSITES = {
    "hot": "cold", "big": "small", "high": "low", "old": "new", "fast": "slow", "dark": "light",
    "full": "empty", "hard": "soft", "wet": "dry", "rich": "poor", "long": "short",
    "strong": "weak", "open": "shut", "early": "late", "loud": "quiet", "sweet": "sour",
    "thick": "thin", "wide": "narrow", "deep": "shallow", "clean": "dirty", "near": "far",
    "true": "false", "up": "down", "left": "right", "first": "last", "black": "white",
    "good": "bad", "day": "night", "war": "peace", "love": "hate", "win": "lose", "buy": "sell",
    "come": "go", "push": "pull", "north": "south", "east": "west", "top": "bottom",
    "begin": "end", "give": "take", "sharp": "blunt",
}  # fmt: skip
PASTS = {
    "go": "went", "see": "saw", "eat": "ate", "take": "took", "give": "gave", "run": "ran",
    "sing": "sang", "swim": "swam", "write": "wrote", "drive": "drove", "speak": "spoke",
    "break": "broke", "fly": "flew", "know": "knew", "grow": "grew", "draw": "drew",
    "think": "thought", "buy": "bought", "catch": "caught", "teach": "taught", "find": "found",
    "hold": "held", "sleep": "slept", "keep": "kept", "feel": "felt", "leave": "left",
    "lose": "lost", "sit": "sat", "stand": "stood", "win": "won", "tell": "told", "sell": "sold",
    "make": "made", "build": "built", "send": "sent", "begin": "began", "drink": "drank",
    "fall": "fell", "wear": "wore", "choose": "chose",
}  # fmt: skip
YOUNG = {
    "dog": "puppy", "cat": "kitten", "cow": "calf", "horse": "foal", "sheep": "lamb",
    "pig": "piglet", "goat": "kid", "hen": "chick", "duck": "duckling", "bear": "cub",
    "deer": "fawn", "frog": "tadpole", "goose": "gosling", "swan": "cygnet", "owl": "owlet",
    "eel": "elver", "fox": "kit", "seal": "pup", "kangaroo": "joey", "rabbit": "bunny",
}  # fmt: skip
KINDS: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "capital": (
        CAPITALS,
        ("The capital of {} is", "{} has the capital", "They live in {}, in its capital", "{}:"),
    ),
    "opposite": (
        OPPOSITES,
        ("The opposite of {} is", "Not {} but", "If it is not {}, it is", "{} and its opposite"),
    ),
    "past": (
        PASTS,
        ("Today I {}, yesterday I", "The past of {} is", "We {} now, we once", "To {}: she"),
    ),
    "young": (
        YOUNG,
        ("The young of a {} is a", "A baby {} is a", "The {} has a", "The {} and her little"),
    ),
}


def item(key: Key, rng: random.Random) -> Example:
    """key: the kind of fact, what it is about, and the number of the wording"""
    kind, about, wording = key
    facts, wordings = KINDS[kind]
    return Example(wordings[wording].format(about), f" {facts[about]}")


GENERAL = Domain(
    tuple(
        (kind, about, wording)
        for kind, (facts, wordings) in KINDS.items()
        for about in facts
        for wording in range(len(wordings))
    ),
    item,
    tested=150,
    validated=0,
)
