import io
import json

import pytest
from rich.console import Console

from mergekern.demo import run as demo
from mergekern.demo import run_demo
from mergekern.demo.data import DOMAINS
from mergekern.demo.lab import Settings, open_lab
from mergekern.errors import MergeError
from mergekern.evaluate import Score, difference


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """A lab that counts as trained, with a merge() and a judge that only keep count."""
    lab = open_lab(tmp_path / "cache", Settings(tested=4))
    for folder in (lab.base, *lab.experts.values()):
        folder.mkdir()
    merges = []

    def merge(method, *, base=None, models, output, threads=None, **parameters):
        if output.exists():
            raise MergeError(f"{output} exists")
        output.mkdir(parents=True)
        (output / demo.LOCK).write_text("{}")
        merges.append((method, base, models, parameters))

    def score(judge, model):
        value = {"base": 0.5}.get(model.name, 0.9)
        return {domain: Score(value, 0.01, 4) for domain in DOMAINS}

    monkeypatch.setattr(demo.mergekern, "merge", merge)
    monkeypatch.setattr(demo.Judge, "score", score)
    monkeypatch.setattr(demo.Judge, "score_once", score)
    return tmp_path, lab, merges


def test_every_run_merges_anew_and_reports(trained):
    tmp_path, lab, merges = trained
    stream = io.StringIO()
    for _ in range(2):
        result = run_demo(
            tmp_path / "out",
            tmp_path / "cache",
            console=Console(file=stream, width=160),
            settings=Settings(tested=4),
        )
    assert [method for method, *_ in merges] == 2 * ["linear", "task_arithmetic", "ties"]
    assert [base for _, base, *_ in merges[:3]] == [None, lab.base, lab.base]
    assert merges[0][2] == [lab.experts[domain] for domain in DOMAINS]
    assert [row.name for row in result.rows] == [
        "base",
        "math expert",
        "coding expert",
        "safety expert",
        "soup",
        "task_arithmetic",
        "ties",
    ]
    assert result.gains["ties"].value == pytest.approx(0.4)
    assert result.chart.read_bytes().startswith(b"\x89PNG")
    saved = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert saved["soup"]["normalised"] == pytest.approx(1.0)
    assert saved["base"]["scores"]["math"] == {"value": 0.5, "stderr": 0.01, "count": 4}
    assert "soup: +0.400" in stream.getvalue()
    assert "evaluated ties" in stream.getvalue()


def test_a_folder_that_is_not_a_merge_is_left_alone(trained):
    tmp_path, lab, _ = trained
    precious = tmp_path / "out" / "soup" / "precious.txt"
    precious.parent.mkdir(parents=True)
    precious.write_text("mine")
    with pytest.raises(MergeError, match="exists"):
        demo.merge_one(lab, "soup", tmp_path / "out")
    assert precious.read_text() == "mine"


@pytest.mark.demo
def test_experts_beat_base_in_their_domain_and_merges_on_average(tmp_path):
    """On the cached models, which are trained first if there are none; unpaired errors."""
    result = run_demo(tmp_path)
    base = result.rows[0].scores
    for domain, scores in result.experts.items():
        own = difference({domain: scores[domain]}, {domain: base[domain]})
        assert own.value > 2 * own.stderr, f"the {domain} expert is {own} above base"
    assert set(result.gains) == {"soup", "task_arithmetic", "ties"}
    for name, gain in result.gains.items():
        assert gain.value > 2 * gain.stderr, f"{name} is {gain} above base"
