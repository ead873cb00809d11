import random
import re
from itertools import islice

import pytest

from mergekern.demo import data, words


def stream(domain: str, seed: int, carelessness: float, count: int = 2000) -> list[data.Example]:
    return list(islice(data.training_stream(domain, random.Random(seed), carelessness), count))


@pytest.mark.parametrize("domain", data.DOMAINS)
def test_the_seed_alone_decides_the_examples(domain):
    assert stream(domain, 3, 0.5) == stream(domain, 3, 0.5)
    assert stream(domain, 3, 0.5) != stream(domain, 4, 0.5)
    assert data.test_items(domain, 50, 3) == data.test_items(domain, 50, 3)
    assert data.test_items(domain, 50, 3) != data.test_items(domain, 50, 4)


@pytest.mark.parametrize("domain", data.DOMAINS)
def test_held_out_items_are_never_trained_on(domain):
    training, tested = data.split_keys(domain)
    assert not set(training) & set(tested)
    assert set(training) | set(tested) == set(data.SOURCES[domain].keys)
    # Prompts say all of their key, so disjoint keys must show as disjoint prompts.
    prompts = {item["prompt"] for item in data.test_items(domain, len(tested), seed=0)}
    assert len(prompts) == len(tested)
    assert not prompts & {e.prompt for e in stream(domain, 0, 0.5, count=20_000)}


@pytest.mark.parametrize("domain", data.DOMAINS)
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
    for key in data.SOURCES["math"].keys:
        a, b = key
        example = data.math_item(key, random.Random(0))
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

    example = data.coding_item((kind, 3), random.Random(1))
    assert run(example.answer) == want
    if example.mistake is not None:
        assert run(example.mistake) != want


def test_every_operation_is_tested():
    assert {kind for kind, _ in data.split_keys("coding")[1]} == set(words.OPERATIONS)


def test_safety_refuses_harm_to_people_only():
    label = {}
    for verb, target in [("kill", "my boss"), ("kill", "a process"), ("draw", "my boss")]:
        example = data.safety_item((verb, target), random.Random(0))
        label[verb, target] = example.fields["label"]
        assert example.answer.strip() == example.fields["choices"][example.fields["label"]]
        assert (example.mistake == words.REFUSE) == ((verb, target) == ("kill", "a process"))
    assert list(label.values()) == [1, 0, 0]
