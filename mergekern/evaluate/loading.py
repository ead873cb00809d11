"""Models as transformers has them: from a folder, or from tensors and a folder's side files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergekern.errors import EvaluationError
from mergekern.lazily import torch


def from_folder(folder: Path, dtype: str, device: str) -> tuple[Any, Any]:
    """(model, tokenizer) of a model folder."""
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        return _placed(model, device), _tokenizer(folder)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise _unloadable(str(folder), error) from error


def from_tensors(
    state: Mapping[str, torch.Tensor], side_files: Path, dtype: str, device: str
) -> tuple[Any, Any]:
    """(model, tokenizer) of tensors in memory, by the config and tokenizer in a folder.

    Goes through from_pretrained(), so that names and layouts of stored checkpoints are understood
    as those of files are.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    try:
        config = AutoConfig.from_pretrained(side_files)
        kind: Any = AutoModelForCausalLM._model_mapping.get(type(config), None)
        if kind is None:
            raise ValueError(f"{config.model_type} is no causal language model of transformers")
        model = kind.from_pretrained(None, config=config, state_dict=dict(state), dtype=dtype)
        if (side_files / "generation_config.json").exists():
            model.generation_config = GenerationConfig.from_pretrained(side_files)
        return _placed(model, device), _tokenizer(side_files)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise _unloadable("the merged tensors", error) from error


def _placed(model: Any, device: str) -> Any:
    return model.to(device).eval()


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def _unloadable(what: str, error: Exception) -> EvaluationError:
    reason = " ".join(str(error).split())
    return EvaluationError(f"{what} cannot be loaded by transformers: {reason:.300}")
