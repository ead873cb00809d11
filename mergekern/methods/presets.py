"""Bundles of parameters under the names of where they come from.

A parameter that is given wins over its preset's. mergekit's meaning needs no preset: it is the
default. A preset's name that one method alone has says the method too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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

# MergeBench (arXiv:2505.10833): what its documented commands do to Llama-3.2-3B and five experts.

KEPT = ("embed", "lm_head")  # parts of the names of what stays the base's


def _with(value: float, others: float, names: tuple[str, ...] = KEPT) -> list[dict[str, Any]]:
    """A setting that is `value`, and `others` for those names."""
    return [*({"filter": name, "value": others} for name in names), {"value": value}]


_KEPT = (
    "\nEmbeddings and lm_head stay the base's: their weight is 0, which weights that are given\n"
    "replace, unless they are cases too. A lm_head that is tied is one with the embeddings.\n"
    "MergeBench rounds deltas to bf16."
)
_RANKED = (
    "\nThe threshold ranges over a lm_head that is not tied, but over no embeddings: their\n"
    "density is 1, which densities that are given replace, unless they are cases too."
)

_REST = {"rest": "vocabulary"}
_SOLVED = (
    "Equal coefficients; embeddings and lm_head are the base's, norms and biases the mean.\n"
    "MergeBench pairs models with data by their order, which are not the same; files here are\n"
    "refused beside another model. It sums and multiplies in bf16, and takes a pseudo-inverse of\n"
    "ill-conditioned sums, which here are an error unless singular=mean is given."
)

MERGEBENCH: Mapping[str, Mapping[str, Preset]] = {
    "task_arithmetic": {
        "mergebench/model_soup": Preset(
            {"lambda": _with(1.0, 0.0), "normalize": True},
            "The mean of the models, which for MergeBench's five is the sum times 0.2.\n"
            "Embeddings and lm_head stay the base's: their lambda is 0. A lm_head that is tied is\n"
            "one with the embeddings. MergeBench rounds deltas to bf16.",
        ),
        "mergebench/task_arithmetic": Preset(
            {"weight": _with(1.0, 0.0), "lambda": 0.4, "normalize": False},
            "The sum of the deltas, times 0.4." + _KEPT,
        ),
    },
    "ties": {
        "mergebench/ties": Preset(
            {
                "weight": _with(1.0, 0.0),
                "density": _with(0.3, 1.0, ("embed",)),
                "scope": "model",
                "ties": "keep",
                "elect": "mass",
                "ballot": "unweighted",
                "disjoint": "sum",
                "normalize": False,
                "rescale": "none",
                "lambda": 0.4,
            },
            "The paper's trim and vote, with density 0.3; values that agree are summed, not\n"
            "averaged, and taken times 0.4." + _KEPT + _RANKED,
        ),
    },
    "dare_linear": {
        "mergebench/dare": Preset(
            {
                "weight": _with(1.0, 0.0),
                "density": 0.1,
                "rescale": "drop_rate",
                "normalize": False,
                "lambda": 0.4,
            },
            "Drop rate 0.9; what is kept is multiplied by 1/density, summed and taken times 0.4.\n"
            "Its coins are torch's, without a seed." + _KEPT,
        ),
    },
    "consensus": {
        "mergebench/consensus": Preset(
            {"weight": _with(1.0, 0.0), "tall_mask_lambda": 0.2, "k": 2, "lambda": 0.4},
            "Masks of strength 0.2 for every model, which is what the code does whatever --lamda\n"
            "says; where two models need it, the sum of the deltas times 0.4." + _KEPT,
        ),
    },
    "fisher": {
        "mergebench/fisher": Preset(
            {"weight": 1.0, "rest": "base"},
            "Equal coefficients, and the base's values where there are no statistics: those of\n"
            "`mergekern collect fisher --labels hard`, which leave the embeddings out, are\n"
            "MergeBench's. Its own are of weights that a step of training moves on after each\n"
            "sample.",
        ),
    },
    "regmean": {
        "mergebench/regmean": Preset({"weight": 1.0, "reduction": 0.5, **_REST}, _SOLVED),
    },
    "regmean_plusplus": {
        "mergebench/regmean_plusplus": Preset({"weight": 1.0, "reduction": 0.1, **_REST}, _SOLVED),
    },
    "localize_and_stitch": {
        "mergebench/localize_and_stitch": Preset(
            {
                "weight": _with(1.0, 0.0),
                "density": _with(0.1, 1.0, ("embed",)),
                "scope": "model",
                "ties": "keep",
                "lambda": 1.0,
            },
            "Masks of the largest 10 %, and of all that equal the least of these. The formula is\n"
            "the paper's; see above for what MergeBench's code does." + _KEPT + _RANKED,
        ),
    },
}

_TOOLS: Mapping[str, Mapping[str, Preset]] = {
    "ties": {"paper": TIES_PAPER, "peft": TIES_PEFT},
    "dare_linear": {"paper": DARE_LINEAR_PAPER, "peft": DARE_LINEAR_PEFT},
    "dare_ties": {"paper": DARE_TIES_PAPER, "peft": DARE_TIES_PEFT},
}

PRESETS: Mapping[str, Mapping[str, Preset]] = {
    name: {**_TOOLS.get(name, {}), **MERGEBENCH.get(name, {})} for name in {**_TOOLS, **MERGEBENCH}
}
