"""Records mergekit's outputs for tests/parity/test_recorded.py, which then needs no mergekit.

    PYTHONPATH=. .venv/bin/python tests/parity/record.py

Of methods, the tensors of KEPT, on a Llama of 8 hidden dimensions; `exact` is the same in float64,
rounded to float32. Of other recipes one element of every row of every tensor, all names and shapes,
config and vocabulary.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from architectures import EVERYWHERE, SEEDS, TINY, write_models
from compare import DTYPES, Run, run_mergekit
from folders_alike import UNTOLD, Tensors, in_order, load
from recipes import METHODS, Case
from safetensors.torch import save_file
from structures import STRUCTURES

RECORDED = Path(__file__).parent / "recorded"
KEPT = (
    *(f"model.layers.0.self_attn.{part}_proj.weight" for part in "qkvo"),
    "model.layers.0.mlp.down_proj.weight",
    "model.layers.0.input_layernorm.weight",
    "model.norm.weight",
)
MODELS = {"float32": SEEDS, "bfloat16": EVERYWHERE}


def methods(dtype: str) -> list[Case]:
    """What is recorded of methods: all in fp32, the main cases in bf16."""
    return [c for c in METHODS if not c.random and (dtype == "float32" or c.main)]


def structures() -> dict[str, list[Case]]:
    """By the dtype of the models; Llama stands for all architectures."""
    cases = [case for case in STRUCTURES if "llama" in case.on]
    cast = [case for case in cases if any("dtype" in key for key in case.documents[0])]
    return {"float32": [c for c in cases if c not in cast], "bfloat16": cast}


def one_of_each_row(tensor: torch.Tensor) -> torch.Tensor:
    """Down the diagonal, and on from the left where that ends."""
    if tensor.dim() < 2:
        return tensor
    rows = torch.arange(tensor.shape[0])
    return tensor[rows, rows % tensor.shape[1]]


def kept(tensors: Tensors) -> torch.Tensor:
    return torch.cat([tensors[name].flatten() for name in KEPT])


def sampled(folder: Path) -> torch.Tensor:
    """Rows that tokens have are put in the order of the tokens' names, the others left out: in what
    order mergekit adds tokens changes from run to run."""
    vocabulary = transformers.AutoTokenizer.from_pretrained(folder).get_vocab()
    order = torch.tensor([vocabulary[token] for token in sorted(vocabulary)])
    tensors = in_order(load(folder), order, len(order))
    return torch.cat([one_of_each_row(tensors[name]).float() for name in sorted(tensors)])


def described(folder: Path) -> dict[str, Any]:
    """All but the numbers."""
    tensors = {n: [str(t.dtype)[6:], list(t.shape)] for n, t in sorted(load(folder).items())}
    config = json.loads((folder / "config.json").read_text())
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return {
        "tensors": tensors,
        "config": {key: value for key, value in config.items() if key not in UNTOLD},
        "vocabulary": sorted(tokenizer.get_vocab()),
        "template": tokenizer.chat_template,
    }


def main() -> None:
    transformers.utils.logging.disable_progress_bar()
    RECORDED.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        told: dict[str, Any] = {}
        samples: dict[str, torch.Tensor] = {}
        for dtype, names in MODELS.items():
            root = Path(scratch) / dtype
            models = write_models(root, "llama", DTYPES[dtype], TINY, names)
            cases = [(c, False) for c in methods(dtype)] + [(c, True) for c in structures()[dtype]]
            runs = [
                Run(case, "llama", dtype, models, root / "runs" / str(place), structural)
                for place, (case, structural) in enumerate(cases)
            ]
            run_mergekit(runs)
            run_mergekit([run for run in runs if not run.structural], exact=True)
            faults = [f"{run.case.name}: {run.error}" for run in runs if run.error]
            if faults:
                raise RuntimeError("mergekit failed: " + "; ".join(faults))
            of_methods = [run for run in runs if not run.structural]
            _save(f"methods.{dtype}", {r.case.name: kept(load(r.kit)) for r in of_methods})
            exact = {r.case.name: kept(load(r.exact)).float() for r in of_methods}
            _save(f"exact.{dtype}", exact)
            for run in (run for run in runs if run.structural):
                samples[run.case.name] = sampled(run.kit)
                told[run.case.name] = described(run.kit)
        _save("structures", samples)
        (RECORDED / "structures.json").write_text(json.dumps(told, separators=(",", ":")) + "\n")


def _save(name: str, tensors: Mapping[str, torch.Tensor]) -> None:
    save_file(dict(tensors), RECORDED / f"{name}.safetensors")


if __name__ == "__main__":
    main()
