"""Chat templates: which one is taken, where it goes, and what the named ones write."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer
from vocabularies import ANIMALS, CODE, model, tokenizer

import mergekern
from mergekern.errors import CheckpointError, RecipeError
from mergekern.recipe.tokenizer import TEMPLATES as NAMES
from mergekern.tokenizer.chat import TEMPLATES, choose_template, own_template, with_template
from mergekern.tokenizer.files import Files

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi!"},
    {"role": "user", "content": "Bye"},
]
WRITTEN = {
    "alpaca": "Be brief.\n\n### Instruction:\nHello\n\n### Response:\nHi!</s>\n\n"
    "### Instruction:\nBye\n\n### Response:\n",
    "chatml": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
    "<|im_start|>assistant\nHi!<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n"
    "<|im_start|>assistant\n",
    "exaone": "[|system|]Be brief.[|endofturn|]\n[|user|]Hello\n[|assistant|]Hi![|endofturn|]\n"
    "[|user|]Bye\n[|assistant|]",
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nHi!<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "<s>[INST] Be brief.\n\nHello [/INST] Hi!</s>[INST] Bye [/INST]",
}
ONE = "{{ messages[0].content }} one"
TWO = "{{ messages[0].content }} two"


@pytest.mark.parametrize("name", sorted(WRITTEN))
def test_named_templates(name: str) -> None:
    tokens = tokenizer(ANIMALS, template=TEMPLATES[name])
    found = tokens.apply_chat_template(TALK, tokenize=False, add_generation_prompt=True)
    assert found == WRITTEN[name]


def test_exaone_always_has_a_system_turn() -> None:
    tokens = tokenizer(ANIMALS, template=TEMPLATES["exaone"])
    found = tokens.apply_chat_template(TALK[1:2], tokenize=False)
    assert found == "[|system|][|endofturn|]\n[|user|]Hello\n"


def test_the_names_are_those_that_recipes_know() -> None:
    assert set(NAMES) == set(TEMPLATES)


def files(template: str | None, where: str = "chat_template.jinja") -> Files:
    content: dict[str, bytes] = {"tokenizer_config.json": b"{}"}
    if template is not None:
        text = template if where.endswith("jinja") else json.dumps({"chat_template": template})
        content[where] = text.encode()
    return Files(Path("m"), content)


def test_auto_takes_the_most_common_and_of_those_the_first() -> None:
    assert choose_template("auto", [files(ONE), files(TWO), files(TWO)]) == TWO
    assert choose_template("auto", [files(TWO), files(ONE)]) == TWO
    assert choose_template("auto", [files(None), files(ONE)]) == ONE
    assert choose_template("auto", [files(None)]) is None
    assert choose_template(ONE, [files(TWO)]) == ONE


@pytest.mark.parametrize(
    "where", ["chat_template.jinja", "tokenizer_config.json", "chat_template.json"]
)
def test_where_a_model_may_have_its_template(where: str) -> None:
    assert own_template(files(ONE, where)) == ONE
    kept = with_template(files(ONE, where).content, TWO)
    assert own_template(Files(Path("m"), kept)) == TWO
    assert json.loads(kept["tokenizer_config.json"])["chat_template"] == TWO


def test_the_default_of_several() -> None:
    several = [{"name": "rag", "template": TWO}, {"name": "default", "template": ONE}]
    content = {"tokenizer_config.json": json.dumps({"chat_template": several}).encode()}
    named = {"additional_chat_templates/rag.jinja": TWO.encode()}
    assert own_template(Files(Path("m"), content)) == ONE
    assert with_template(content | named, TWO).keys() == {
        "chat_template.jinja",
        "tokenizer_config.json",
    }


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("chat")
    model(root / "a", tokenizer(ANIMALS, template=ONE))
    model(root / "b", tokenizer(ANIMALS, template=TWO), 1)
    model(root / "c", tokenizer(ANIMALS, template=TWO), 2)
    return root


@pytest.mark.parametrize(
    ("setting", "want"),
    [(None, ONE), ("auto", TWO), ("chatml", TEMPLATES["chatml"]), (TWO, TWO)],
)
@pytest.mark.parametrize("source", [None, "union"])
def test_merges_have_the_template(
    root: Path, tmp_path: Path, setting: str | None, want: str, source: str | None
) -> None:
    recipe = {
        "merge_method": "linear",
        "models": [{"model": str(root / name)} for name in "abc"],
        "chat_template": setting,
        "tokenizer_source": source,
    }
    mergekern.merge(recipe, output=tmp_path / "out")
    out = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert out.chat_template == want
    own = AutoTokenizer.from_pretrained(root / "a")
    assert out(CODE).input_ids == own(CODE).input_ids


def test_what_is_no_template(root: Path, tmp_path: Path) -> None:
    recipe = {"merge_method": "linear", "models": [{"model": str(root / "a")}]}
    with pytest.raises(RecipeError, match="'chatlm'; did you mean 'chatml'"):
        mergekern.merge({**recipe, "chat_template": "chatlm"}, output=tmp_path / "out")
    bare = model(tmp_path / "bare", tokenizer(ANIMALS))
    for path in bare.glob("*token*"):
        path.unlink()
    recipe = {"merge_method": "linear", "models": [{"model": str(bare)}]}
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        mergekern.merge({**recipe, "chat_template": "chatml"}, output=tmp_path / "out")
