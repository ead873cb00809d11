import math

import pytest
from rich.console import Console

from mergekern.errors import MergeError
from mergekern.evaluate import Row, Score, difference, mean_score, normalised, table, write_chart

BASE = {"math": Score(0.2, 0.03, 100), "code": Score(0.4, 0.04, 100)}
MATH = {"math": Score(0.8, 0.04, 100), "code": Score(0.3, 0.05, 100)}
CODE = {"math": Score(0.1, 0.03, 100), "code": Score(0.5, 0.05, 100)}
SOUP = {"math": Score(0.6, 0.05, 100), "code": Score(0.5, 0.05, 100)}
EXPERTS = {"math": MATH, "code": CODE}
ROWS = [Row("base", BASE), Row("math expert", MATH), Row("soup", SOUP, seconds=1.234)]


def test_means_and_differences_carry_unpaired_errors():
    mean = mean_score(BASE)
    assert mean == Score(pytest.approx(0.3), pytest.approx(0.025), 200)
    gain = difference(SOUP, BASE)
    assert gain.value == pytest.approx(0.25)
    assert gain.stderr == pytest.approx(math.hypot(0.05 / math.sqrt(2), 0.025))


def test_normalised_divides_by_the_expert_of_the_domain():
    assert normalised(SOUP, EXPERTS) == pytest.approx((0.6 / 0.8 + 0.5 / 0.5) / 2)
    dead = {**EXPERTS, "math": {"math": Score(0.0, 0.0, 100)}}
    assert math.isnan(normalised(SOUP, dead))
    with pytest.raises(MergeError, match="no expert to normalise the code score by"):
        normalised(SOUP, {"math": MATH})


def test_the_table_shows_scores_errors_shares_and_seconds():
    console = Console(width=200, record=True, quiet=True)
    console.quiet = False
    with console.capture() as shown:
        console.print(table(ROWS, EXPERTS, "Made up"))
    lines = shown.get().splitlines()
    soup = next(line for line in lines if "soup" in line)
    for cell in (".600 ±.050", ".500 ±.050", ".550 ±.035", ".875", "1.23"):
        assert cell in soup
    base = next(line for line in lines if "base" in line)
    assert ".300 ±.025" in base
    assert " .525" in base


def test_the_chart_is_a_png_and_leaves_pyplot_alone(tmp_path):
    path = write_chart(ROWS, tmp_path / "new" / "chart.png", "Made up")
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n")
    width, height = (int.from_bytes(content[at : at + 4], "big") for at in (16, 20))
    assert width > 600
    assert height > 400


def test_the_chart_draws_every_score_with_its_error(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    drawn = []
    monkeypatch.setattr(
        Axes, "bar", lambda self, at, heights, width, yerr, **rest: drawn.append((heights, yerr))
    )
    write_chart(ROWS, tmp_path / "chart.png")
    assert drawn == [([0.2, 0.8, 0.6], [0.03, 0.04, 0.05]), ([0.4, 0.3, 0.5], [0.04, 0.05, 0.05])]
