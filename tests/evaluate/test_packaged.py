"""The tasks that come with the package: scores are exact, and never another model's."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import pytest
import torch

import mergekern
from mergekern.evaluate.packaged import ITEMS, packaged

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


def items(name: str) -> list[dict[str, Any]]:
    lines = (ITEMS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def write_model(folder: Path, tokenizer: Any, answer: dict[int, int]) -> Path:
    """A Llama whose every token decides the next one alone. answer: token -> next token"""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=len(tokenizer),
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=128,
            tie_word_embeddings=False,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(len(tokenizer)))
        for token, following in answer.items():
            model.lm_head.weight[following, token] = 10.0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """One token per character."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {c: i for i, c in enumerate(["<pad>", "<s>", "</s>", *string.printable])}
    vocabulary["<odd>"] = len(vocabulary)  # two attention heads of even width
    plain = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    plain.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    plain.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def saying(tokenizer: Any, text: str) -> dict[int, int]:
    """Transitions that make a model say `text` after a colon, and then stop."""
    ids = tokenizer.convert_tokens_to_ids([":", *text])
    return dict(zip(ids, [*ids[1:], 2], strict=True))


def test_scores_are_exact_and_never_another_models(tmp_path: Path, tokenizer: Any) -> None:
    asked = items("math-validation")
    answers = [item["number"] for item in asked]
    # Neither repeats a character, each of which has one successor.
    number = next(n for n in answers if len(set(n)) == len(n))
    sums = write_model(tmp_path / "sums", tokenizer, saying(tokenizer, f"so {number}"))
    words = write_model(tmp_path / "words", tokenizer, saying(tokenizer, "so what"))

    def score(model: Path) -> mergekern.evaluate.Score:
        options: dict[str, Any] = {"output": tmp_path / "results", "device": "cpu"}
        found = mergekern.evaluate(model, tasks="mergekern_math_validation", **options)
        return found.scores["mergekern_math_validation"]

    share = answers.count(number) / len(answers)
    assert score(sums).value == pytest.approx(share)
    assert score(sums).stderr == pytest.approx((share * (1 - share) / (len(answers) - 1)) ** 0.5)
    assert score(sums).count == len(answers)
    # The same task for another model: nothing may be remembered.
    assert score(words).value == 0.0


def test_every_task_has_its_items_and_some_have_others_to_choose_by() -> None:
    for name, task in packaged().items():
        assert task.config(name)["task"] == name
        assert ("validation" in task.items.stem) == name.endswith("_validation")
        prompts = [item["prompt"] for item in items(task.items.stem)]
        assert len(prompts) == len(set(prompts)) >= 100
    digests = [task.digest for task in packaged().values()]
    assert len(set(digests)) == len(digests)
