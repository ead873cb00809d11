import pytest

from mergekern.evaluate import Score, mean_score

BASE = {"math": Score(0.2, 0.03, 100), "code": Score(0.4, 0.04, 100)}


def test_means_carry_unpaired_errors():
    assert mean_score(BASE) == Score(pytest.approx(0.3), pytest.approx(0.025), 200)
