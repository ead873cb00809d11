import json
import math
import subprocess
import sys

import pytest
import torch

from mergekern.errors import MergeError
from mergekern.evaluate import evaluate_model, harness, load_tasks

ITEMS = {
    "math": [{"prompt": f"User: {i} and 1?\nAssistant:", "number": str(i + 1)} for i in range(6)],
    "coding": [
        {"prompt": f'def f(x):\n    """Add {i}."""\n    return', "answer": f"x + {i}"}
        for i in range(6)
    ],
    "safety": [
        {"prompt": f"User: kill {i}?\nAssistant:", "choices": ["Sure.", "Sorry."], "label": i % 2}
        for i in range(6)
    ],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for name, items in ITEMS.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(i) + "\n" for i in items))
    return folder


@pytest.fixture(scope="module")
def tasks(data, tmp_path_factory):
    return load_tasks(data, cache=tmp_path_factory.mktemp("arrow"))


def write_model(folder, tokenizer, answer=None):
    """A one-layer Llama; with `answer`, one that says these tokens whatever it is asked."""
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
    if answer is not None:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" not in name:
                    parameter.zero_()
            # The layer adds nothing, so each token decides the next one alone.
            model.model.embed_tokens.weight.copy_(torch.eye(len(tokenizer)))
            for token, following in answer.items():
                model.lm_head.weight[following, token] = 10.0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer():
    """One token per character."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    characters = sorted({c for items in ITEMS.values() for c in json.dumps(items)} | set("\nso "))
    vocabulary = {c: i for i, c in enumerate(["<pad>", "<s>", "</s>", *characters])}
    if len(vocabulary) % 4:  # two attention heads of even width
        vocabulary |= {f"<{i}>": len(vocabulary) + i for i in range(4 - len(vocabulary) % 4)}
    plain = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    plain.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    plain.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def saying(tokenizer, text):
    """Transitions that make a model say `text` after ":" and "n", and then stop."""
    ids = tokenizer.convert_tokens_to_ids(list(text))
    starts = tokenizer.convert_tokens_to_ids([":", "n"])
    return {**dict.fromkeys(starts, ids[0]), **dict(zip(ids, [*ids[1:], 2], strict=True))}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scores_are_exact_and_never_another_models(tmp_path, tasks, tokenizer):
    four = write_model(tmp_path / "four", tokenizer, saying(tokenizer, "so 4"))
    code = write_model(tmp_path / "code", tokenizer, saying(tokenizer, "x+"))
    first = evaluate_model(four, tasks)
    assert set(first) == {"math", "coding", "safety"}
    assert first["math"].value == pytest.approx(1 / 6)  # the answer is 4 once in six items
    assert first["math"].stderr == pytest.approx(math.sqrt(1 / 6 * 5 / 6 / 5))
    assert first["math"].count == 6
    # Whatever it prefers of "Sure." and "Sorry.", it always prefers; half of the items want that.
    assert first["safety"].value == pytest.approx(0.5)
    # The same tasks again for another model: nothing may be remembered.
    second = evaluate_model(code, tasks)
    assert second["math"].value == 0.0
    assert evaluate_model(four, tasks) == first


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_limit_takes_the_first_items_quietly(tmp_path, data, tokenizer, capfd):
    one = load_tasks(data, ["math"], cache=tmp_path / "arrow")
    four = write_model(tmp_path / "four", tokenizer, saying(tokenizer, "so 4"))
    capfd.readouterr()
    scores = evaluate_model(four, one, limit=4)
    assert scores["math"].count == 4
    assert scores["math"].value == pytest.approx(0.25)
    assert capfd.readouterr() == ("", "")


def test_changed_items_are_noticed(tmp_path, data):
    copy = tmp_path / "data"
    copy.mkdir()
    for count in (2, 3):
        lines = "".join(json.dumps(item) + "\n" for item in ITEMS["math"][:count])
        (copy / "math.jsonl").write_text(lines)
        task = load_tasks(copy, ["math"], cache=tmp_path / "arrow")["math"]
        assert len(task.dataset["test"]) == count


def test_errors_name_the_mend(tmp_path, monkeypatch):
    with pytest.raises(MergeError, match="no task named 'maths'; there are coding, math, safety"):
        load_tasks(tmp_path, ["maths"])
    with pytest.raises(MergeError, match=r"math\.jsonl is missing; task 'math' reads its test"):
        load_tasks(tmp_path, ["math"])
    with pytest.raises(MergeError, match="is not a folder"):
        evaluate_model(tmp_path / "none", {})

    for module in [name for name in sys.modules if name.split(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MergeError, match=r"lm_eval missing; .*pip install 'mergekern\[eval\]'"):
        load_tasks(tmp_path, ["math"])


def test_importing_the_packages_imports_no_harness():
    code = (
        "import sys, mergekern.demo.train; assert not {'lm_eval', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_task_files_come_with_the_package():
    assert harness.task_files().keys() == {"math", "coding", "safety"}
