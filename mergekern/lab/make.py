"""`mergekern lab make`: train what is missing, show that experts are experts, write the runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from mergekern.errors import EvaluationError
from mergekern.evaluate.evaluation import Evaluation, gain
from mergekern.evaluate.imports import require
from mergekern.evaluate.run import evaluate
from mergekern.evaluate.statistics import Interval
from mergekern.evaluate.suites import load_suite
from mergekern.lab.lab import Lab, Settings, default_cache, open_lab
from mergekern.lab.runs import Run, lab_run, statistics_of, weaker_run, write_run
from mergekern.lab.showing import train_shown
from mergekern.lab.statistics import collect_missing

MARGIN = 0.15  # that an expert is above base in its own domain, with all of its 95 % interval
FEWER = 0.6  # of the base's steps, for the weaker one
LAB, WEAKER = "lab.yml", "weaker.yml"


@dataclass(frozen=True)
class Made:
    """A lab that is ready.

    base:    on all domains;  experts: each on its own
    gains:   of each expert over base in its own domain, paired by item
    run:     the file for `mergekern suite`
    """

    lab: Lab
    base: Evaluation
    experts: Mapping[str, Evaluation]
    gains: Mapping[str, Interval]
    run: Path

    @property
    def short(self) -> list[str]:
        """The experts that are not above base by a wide margin."""
        return [domain for domain, interval in self.gains.items() if not interval.low > MARGIN]

    def check(self) -> None:
        """Raise EvaluationError where there are such."""
        if self.short:
            raise EvaluationError(
                f"the experts of {', '.join(self.short)} are not above base by {MARGIN} in their "
                f"own domain: {self.lab.folder} is no lab to compare merges on"
            )


def make_lab(
    output: Path = Path("mergekern-lab"),
    cache: Path | None = None,
    threads: int | None = None,
    console: Console | None = None,
    settings: Settings | None = None,
    weaker_base: bool = False,
    limit: int | None = None,
) -> Made:
    """Make or find the base and its experts, evaluate them, and write OUTPUT/lab.yml.

    weaker_base: also a base of fewer steps with experts of its own, for OUTPUT/weaker.yml
    limit:       items of each task that are asked; all of them when not given
    The first run trains the models and keeps them in `cache`; what is finished is not done again.
    """
    console, settings = console or Console(), settings or Settings()
    cache = (cache or default_cache()).absolute()
    weaker = None
    if weaker_base:
        steps = max(1, round(FEWER * settings.base_steps))
        less = open_lab(cache, dataclasses.replace(settings, base_steps=steps))
        made = ready(less, weaker_run(less, limit), output / WEAKER, threads, console)
        console.print(gains_table(made, f"A weaker base, of {steps} steps, and its experts"))
        weaker = made.run.name
    lab = open_lab(cache, settings)
    made = ready(lab, lab_run(lab, limit, weaker), output / LAB, threads, console)
    console.print(gains_table(made, "Base and experts, each in the expert's own domain"))
    return made


def ready(lab: Lab, run: Run, path: Path, threads: int | None, console: Console) -> Made:
    """Train and evaluate a lab's models, and write the run over them."""
    require("lm_eval", "transformers", "tokenizers", "matplotlib")  # not after minutes of training
    train_shown(lab, threads, console)
    collect_missing(lab, statistics_of(run), console.print)
    asked = run["evaluation"]
    suite = load_suite(asked["suite"]).only(*asked["domains"])
    results = path.parent / run["output"] / "results"  # where the run finds them again

    def scored(model: Path, *domains: str) -> Evaluation:
        console.print(f"evaluating {model.name}")
        own, limit = suite.only(*domains), asked["limit"]
        return evaluate(str(model), suite=own, output=results, limit=limit, **run["evaluate"])

    base = scored(lab.base, *lab.settings.domains)
    experts = {domain: scored(model, domain) for domain, model in lab.experts.items()}
    gains = {domain: gain(found, base) for domain, found in experts.items()}
    return Made(lab, base, experts, gains, write_run(run, path))


def gains_table(made: Made, title: str) -> Table:
    """Each expert against base, ± standard error."""
    table = Table(title=title, box=SIMPLE, padding=0, show_edge=False)
    for column in ("domain", "base", "expert", "gain, 95 %", ""):
        table.add_column(column, justify="left" if column == "domain" else "right", no_wrap=True)
    for domain, interval in made.gains.items():
        base, expert = made.base.scores[domain], made.experts[domain].scores[domain]
        table.add_row(
            domain,
            f"{base.value:.3f} ± {base.stderr:.3f}",
            f"{expert.value:.3f} ± {expert.stderr:.3f}",
            f"{interval.value:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]",
            "too close" if domain in made.short else "ok",
        )
    return table
