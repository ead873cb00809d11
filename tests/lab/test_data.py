import random
import re
from itertools import islice

import pytest

from mergekern.lab import data
from mergekern.lab.domains import DOMAINS, SOURCES, coding, general, instruction, safety
from mergekern.lab.domains.numerals import french, german, spanish

SPLITS = ("training", "validation", "test")


def stream(domain: str, seed: int, carelessness: float, count: int = 2000) -> list[data.Example]:
    return list(islice(data.training_stream(domain, random.Random(seed), carelessness), count))


@pytest.mark.parametrize("domain", SOURCES)
def test_the_seed_alone_decides_the_examples(domain):
    assert stream(domain, 3, 0.5) == stream(domain, 3, 0.5)
    assert stream(domain, 3, 0.5) != stream(domain, 4, 0.5)


@pytest.mark.parametrize("domain", SOURCES)
def test_held_out_items_are_never_trained_on_nor_chosen_by(domain):
    parts = [data.keys_of(domain, split) for split in SPLITS]
    assert sum(map(len, parts)) == len(set().union(*parts)) == len(SOURCES[domain].keys)
    # Prompts say all of their key, so disjoint keys must show as disjoint prompts.
    trained = {e.prompt for e in stream(domain, 0, 0.5, count=20_000)}
    asked = [item["prompt"] for split in SPLITS[1:] for item in data.items(domain, split)]
    assert len(asked) == len(set(asked)) == sum(map(len, parts[1:]))
    assert not trained & set(asked)


@pytest.mark.parametrize("domain", DOMAINS)
def test_carelessness_is_the_share_of_mistakes_among_hard_examples(domain):
    hard = [e for e in stream(domain, 1, 0.0) if e.mistake is not None]
    assert 0.25 < len(hard) / 2000 < 0.6
    careless = stream(domain, 1, 1.0)
    assert not any(e.mistake is not None for e in careless)
    right = {e.prompt: e.answer for e in stream(domain, 1, 0.0, count=20_000)}
    shared = [e for e in careless if e.prompt in right]
    assert len(shared) > 20
    wrong = [e for e in shared if e.answer != right[e.prompt]]
    assert 0.2 < len(wrong) / len(shared) < 0.65


def test_math_answers_are_sums_and_mistakes_lack_the_carry():
    for key in SOURCES["math"].keys:
        a, b = key
        example = SOURCES["math"].item(key, random.Random(0))
        assert example.answer.endswith(f"so {a + b}")
        assert example.fields == {"number": str(a + b)}
        if example.mistake is not None:
            assert example.mistake.endswith(f"so {a + b - 10}")
        for left, value in re.findall(r"([0-9+]+)=([0-9]+)", example.answer):
            assert sum(map(int, left.split("+"))) == int(value)


@pytest.mark.parametrize(
    ("kind", "argument", "want"),
    [
        ("plus", 10, 13),
        ("minus", 10, 7),
        ("times", 10, 30),
        ("larger", 2, 3),
        ("count", [3, 1, 3], 2),
        ("first", [1, 2, 3, 4, 5], [1, 2, 3]),
        ("power", 2, 8),
        ("remainder", 10, 1),
        ("least", 3, True),
        ("most", 3, True),
        ("last", [1, 2, 3, 4, 5], [3, 4, 5]),
        ("every", [1, 2, 3, 4, 5], [1, 4]),
    ],
)
def test_coding_answers_do_what_their_docstrings_say_and_mistakes_do_not(kind, argument, want):
    def run(line: str) -> object:
        scope: dict = {}
        exec(example.prompt + line, scope)
        (function,) = (value for name, value in scope.items() if name != "__builtins__")
        return function(argument)

    example = coding.item((kind, 3), random.Random(1))
    assert run(example.answer) == want
    if example.mistake is not None:
        assert run(example.mistake) != want


def test_every_operation_and_instruction_is_tested():
    assert {kind for kind, _ in data.keys_of("coding", "test")} == set(coding.OPERATIONS)
    assert {kind for kind, _ in data.keys_of("instruction", "test")} == set(
        instruction.INSTRUCTIONS
    )


def test_safety_refuses_harm_to_people_only():
    label = {}
    for verb, target in [("kill", "my boss"), ("kill", "a process"), ("draw", "my boss")]:
        example = safety.item((verb, target), random.Random(0))
        label[verb, target] = example.fields["label"]
        assert example.answer.strip() == example.fields["choices"][example.fields["label"]]
        assert (example.mistake == safety.REFUSE) == ((verb, target) == ("kill", "a process"))
    assert list(label.values()) == [1, 0, 0]


@pytest.mark.parametrize(
    ("kind", "answer", "mistake"),
    [
        ("repeat", "sun bear lamp", None),
        ("commas", "sun, bear, lamp", None),
        ("brackets", "(sun bear lamp)", None),
        ("first", "sun", None),
        ("last", "lamp", "sun"),
        ("reverse", "lamp bear sun", "sun bear lamp"),
        ("without", "sun lamp", "sun bear lamp"),
        ("twice", "sun sun bear bear lamp lamp", "sun bear lamp sun bear lamp"),
    ],
)
def test_instructions_are_followed_to_the_letter_or_in_haste(kind, answer, mistake):
    example = instruction.item((kind, ("sun", "bear", "lamp")), random.Random(0))
    assert example.answer == f" {answer}"
    assert example.mistake == (None if mistake is None else f" {mistake}")


@pytest.mark.parametrize(
    ("number", "in_german", "in_french", "in_spanish"),
    [
        (1, "eins", "un", "uno"),
        (16, "sechzehn", "seize", "dieciséis"),
        (21, "einundzwanzig", "vingt et un", "veintiuno"),
        (30, "dreißig", "trente", "treinta"),
        (71, "einundsiebzig", "soixante et onze", "setenta y uno"),
        (80, "achtzig", "quatre-vingts", "ochenta"),
        (81, "einundachtzig", "quatre-vingt-un", "ochenta y uno"),
        (99, "neunundneunzig", "quatre-vingt-dix-neuf", "noventa y nueve"),
        (100, "einhundert", "cent", "cien"),
        (101, "einhunderteins", "cent un", "ciento uno"),
        (200, "zweihundert", "deux cents", "doscientos"),
        (572, "fünfhundertzweiundsiebzig", "cinq cent soixante-douze", "quinientos setenta y dos"),
        (980, "neunhundertachtzig", "neuf cent quatre-vingts", "novecientos ochenta"),
    ],
)
def test_numbers_are_what_the_languages_call_them(number, in_german, in_french, in_spanish):
    assert (german(number), french(number), spanish(number)) == (in_german, in_french, in_spanish)


def test_numbers_have_names_of_their_own_and_learners_miss_some():
    for say, mistakes in ((german, 720), (french, 300), (spanish, 363)):
        assert len({say(number) for number in range(1000)}) == 1000
        missed = [number for number in range(1000) if say(number) != say(number, learner=True)]
        assert len(missed) == mistakes
    assert german(42, learner=True) == "vierzigundzwei"
    assert french(92, learner=True) == "nonante-deux"
    assert spanish(722, learner=True) == "sietecientos veinte y dos"


def test_general_knowledge_is_held_out_by_wording_and_not_by_fact():
    known = {key[:2] for key in data.keys_of("general", "training")}
    assert known == {key[:2] for key in SOURCES["general"].keys}
    for facts, wordings in general.KINDS.values():
        assert len(wordings) == len({wording.format("x") for wording in wordings}) > 2
        assert all(facts.values())
    assert general.item(("capital", "Peru", 0), random.Random(0)).answer == " Lima"
