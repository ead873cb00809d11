"""Bundles of parameters under the names of where they come from.

A parameter that is given wins over its preset's. mergekit's meaning needs no preset: it is the
default.
"""

from __future__ import annotations

from collections.abc import Mapping

from mergekern.methods.registry import Preset

TIES_PAPER = Preset(
    {
        "density": 0.2,
        "scope": "model",
        "ties": "keep",
        "elect": "mass",
        "ballot": "unweighted",
        "disjoint": "mean",
        "normalize": False,
        "rescale": "none",
        "lambda": 1.0,
    },
    "Yadav et al. 2023: one threshold over the whole model, which keeps every magnitude >= the\n"
    "k-th largest, k = int(density * n); unweighted deltas vote; the mean of those that agree.\n"
    "Their code differs in two corners: it keeps one magnitude more, and a vote that cancels\n"
    "exactly takes the majority sign of the whole model, where here it counts as +.",
)

TIES_PEFT = Preset(
    {
        "scope": "tensor",
        "elect": "mass",
        "ballot": "unweighted",
        "disjoint": "mean",
        "normalize": False,
        "rescale": "none",
    },
    "PEFT's ties: each tensor is trimmed by itself; unweighted deltas vote; the weighted values\n"
    "that agree are divided by their number. PEFT applies it to adapters, here it is the weights.\n"
    'Its majority_sign_method "frequency" is elect=count.',
)

DARE_LINEAR_PAPER = Preset(
    {"rescale": "drop_rate", "normalize": False},
    "Yu et al. 2023, DARE with task arithmetic: what is kept is multiplied by 1/density. The\n"
    "paper's drop rate p is 1 - density; it has no single value, so density stays yours.",
)

DARE_LINEAR_PEFT = Preset(
    {"rescale": "drop_rate", "normalize": False},
    "PEFT's dare_linear: what is kept is multiplied by 1/density.",
)

DARE_TIES_PAPER = Preset(
    {
        "rescale": "drop_rate",
        "elect": "mass",
        "ballot": "unweighted",
        "disjoint": "mean",
        "normalize": False,
    },
    "Yu et al. 2023, DARE with TIES: what is kept is multiplied by 1/density, unweighted deltas\n"
    "vote, the mean of those that agree is taken. The paper's code also trims by magnitude\n"
    "between drop and vote; here the drop stands alone.",
)

DARE_TIES_PEFT = Preset(
    {
        "rescale": "drop_rate",
        "elect": "mass",
        "ballot": "unweighted",
        "disjoint": "mean",
        "normalize": False,
    },
    "PEFT's dare_ties: what is kept is multiplied by 1/density; unweighted deltas vote; the\n"
    "weighted values that agree are divided by their number. Its majority_sign_method\n"
    '"frequency" is elect=count.',
)

PRESETS: Mapping[str, Mapping[str, Preset]] = {
    "ties": {"paper": TIES_PAPER, "peft": TIES_PEFT},
    "dare_linear": {"paper": DARE_LINEAR_PAPER, "peft": DARE_LINEAR_PEFT},
    "dare_ties": {"paper": DARE_TIES_PAPER, "peft": DARE_TIES_PEFT},
}
