"""Merges of models with different vocabularies, loaded and encoded by transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from vocabularies import ANIMALS, CODE, EMBED, HEAD, model, rows_by_token, tokenizer

import mergekern
from mergekern.errors import CheckpointError, MergeError, MismatchError, RecipeError

BOTH = f"{ANIMALS} <a> {CODE} <b>"
KINDS = ("bpe", "unigram", "wordpiece")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models a and b of different vocabularies, and c with b's and one token more."""
    root = tmp_path_factory.mktemp("vocabularies")
    model(root / "a", tokenizer(ANIMALS, added=["<a>"]), 0)
    model(root / "b", tokenizer(CODE, added=["<b>", "<both>"]), 1)
    model(root / "c", tokenizer(CODE, added=["<b>", "<both>", "<c>"]), 2)
    return root


def merge(
    root: Path, output: Path, tokens: Any, names: str = "ab", base: str | None = None, **more: Any
) -> Any:
    """The mean of some models; each counts the same."""
    recipe = {
        "merge_method": "linear",
        "models": [{"model": str(root / name), "parameters": {"weight": 1}} for name in names],
        "base_model": base and str(root / base),
        "tokenizer": tokens,
        **more,
    }
    return mergekern.merge(recipe, output=output, threads=2)


def test_a_union_has_every_token_with_its_row(root: Path, tmp_path: Path) -> None:
    merge(root, tmp_path / "out", {"source": "union"})
    a, b, out = (rows_by_token(p) for p in (root / "a", root / "b", tmp_path / "out"))
    assert out.keys() == a.keys() | b.keys()
    for token, row in out.items():
        mine = [rows[token] for rows in (a, b) if token in rows]
        assert torch.equal(row, (mine[0] + mine[-1]) / 2), token


def test_a_union_keeps_the_ids_of_its_base(root: Path, tmp_path: Path) -> None:
    merge(root, tmp_path / "out", {"source": "union"}, "abc", base="b")
    b, out = (AutoTokenizer.from_pretrained(p) for p in (root / "b", tmp_path / "out"))
    assert b.get_vocab().items() <= out.get_vocab().items()
    assert out.tokenize("<a><c>") == ["<a>", "<c>"]
    assert out.decode(out(BOTH).input_ids) == BOTH


def test_added_tokens_leave_the_encoding_of_other_text_alone(root: Path, tmp_path: Path) -> None:
    merge(root, tmp_path / "out", {"source": "union"}, "bc")
    b, c, out = (
        AutoTokenizer.from_pretrained(p) for p in (root / "b", root / "c", tmp_path / "out")
    )
    text = f"{ANIMALS} <b> {CODE}<both>"
    assert out(text).input_ids == b(text).input_ids
    assert out(f"{text}<c>").input_ids == c(f"{text}<c>").input_ids


def test_ordinary_tokens_of_others_are_found_wherever_they_occur(
    root: Path, tmp_path: Path
) -> None:
    report = merge(root, tmp_path / "out", {"source": "union"}, "ab")
    a, b, out = (
        AutoTokenizer.from_pretrained(p) for p in (root / "a", root / "b", tmp_path / "out")
    )
    new = [token for token in b.get_vocab() if token not in a.get_vocab() and token[0] != "<"]
    assert all(out.tokenize(token) == [token] for token in new)
    assert f"{root / 'b'}: {len(new)} tokens are" in str(report)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("source", ["base", "other"])
def test_a_models_tokenizer_encodes_as_it_does_there(
    tmp_path: Path, kind: str, source: str
) -> None:
    folders = [
        model(tmp_path / "base", tokenizer(ANIMALS, kind, added=["<a>"])),
        model(tmp_path / "other", tokenizer(CODE, kind, added=["<b>"]), 1),
    ]
    named = "base" if source == "base" else str(folders[1])
    merge(tmp_path, tmp_path / "out", {"source": named}, ["base", "other"], base="base")
    own, out = (AutoTokenizer.from_pretrained(tmp_path / name) for name in (source, "out"))
    assert out.get_vocab() == own.get_vocab()
    assert out(BOTH).input_ids == own(BOTH).input_ids
    rows = [rows_by_token(folder) for folder in folders]
    for token, row in rows_by_token(tmp_path / "out").items():
        mine = [each[token] for each in rows if token in each]
        assert torch.equal(row, (mine[0] + mine[-1]) / 2)


@pytest.mark.parametrize("kind", KINDS)
def test_unions_of_every_kind_of_tokenizer_load(tmp_path: Path, kind: str) -> None:
    for name, text, seed in (("a", ANIMALS, 0), ("b", CODE, 1)):
        model(tmp_path / name, tokenizer(text, kind, added=[f"<{name}>"]), seed)
    merge(tmp_path, tmp_path / "out", {"source": "union"})
    a, b, out = (AutoTokenizer.from_pretrained(tmp_path / name) for name in ("a", "b", "out"))
    assert out.get_vocab().keys() == a.get_vocab().keys() | b.get_vocab().keys()
    assert a.get_vocab().items() <= out.get_vocab().items()
    assert out.tokenize("<a><b>") == ["<a>", "<b>"]
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.vocab_size == len(out)


@pytest.mark.parametrize("base", [None, "a", "c"])
def test_rows_that_models_lack(root: Path, tmp_path: Path, base: str | None) -> None:
    """The only one's, the base's, or the mean of all that have the token."""
    merge(root, tmp_path / "out", {"source": "union"}, "abc", base=base)
    models = {name: rows_by_token(root / name) for name in "abc"}
    for token, row in rows_by_token(tmp_path / "out").items():
        have = [rows[token] for rows in models.values() if token in rows]
        fill = torch.stack(have).sum(0) / len(have)
        if base is not None and token in models[base]:
            fill = models[base][token]
        each = [rows.get(token, fill) for rows in models.values()]
        torch.testing.assert_close(row, sum(each) / 3, rtol=1e-6, atol=1e-7)


def test_tokens_that_the_recipe_names(root: Path, tmp_path: Path) -> None:
    a, b = str(root / "a"), str(root / "b")
    tokens = {
        "<c>": {"source": str(root / "c")},  # which is not merged
        "<new>": {"source": {"kind": "zero"}},
        "<copy>": {"source": {"kind": "model_token", "model": b, "token": "<both>"}},
        "<three>": {"source": {"kind": "model_token", "model": a, "token_id": 3}},
        "<s>": {"source": b, "force": True},
        "</s>": {"source": {"kind": "zero"}},
        "<b>": {"source": {"kind": "zero"}},
    }
    merge(root, tmp_path / "out", {"source": "union", "tokens": tokens})
    of_a, of_b = rows_by_token(root / "a"), rows_by_token(root / "b")
    out = rows_by_token(tmp_path / "out")
    by_id = AutoTokenizer.from_pretrained(a).convert_ids_to_tokens(3)
    assert not out["<new>"].any()
    assert torch.equal(out["<c>"], rows_by_token(root / "c")["<c>"])
    assert torch.equal(out["<copy>"], of_b["<both>"])
    assert torch.equal(out["<three>"], of_a[by_id])
    assert torch.equal(out["<s>"], of_b["<s>"])
    assert torch.equal(out["</s>"], (of_a["</s>"] + of_b["</s>"]) / 2)
    assert torch.equal(out["<b>"], of_b["<b>"] / 2)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").tokenize("<copy>") == ["<copy>"]


def test_padding_is_kept_or_dropped(root: Path, tmp_path: Path) -> None:
    tokens = tokenizer(ANIMALS, added=["<a>"])
    real = len(tokens)
    for seed, name in enumerate("pqr"):
        model(tmp_path / name, tokens, seed, rows=real + 4 - (name == "r"))
    for padding, rows in (("keep", real + 4), ("drop", real)):
        out = tmp_path / padding
        merge(tmp_path, out, {"source": "base", "padding": padding}, "pqr", base="p")
        states = [AutoModelForCausalLM.from_pretrained(tmp_path / n).state_dict() for n in "pqr"]
        merged = AutoModelForCausalLM.from_pretrained(out)
        assert merged.config.vocab_size == rows
        p, q, r = (state[EMBED] for state in states)
        r = torch.cat([r, p[real + 3 :]])  # what it lacks is the base's
        mean = (p[:rows] + q[:rows] + r[:rows]) / 3
        torch.testing.assert_close(merged.state_dict()[EMBED], mean, rtol=1e-6, atol=1e-7)
    plain = tmp_path / "plain"
    merge(tmp_path, plain, None, "pq")
    assert AutoModelForCausalLM.from_pretrained(plain).config.vocab_size == real + 4


def test_padding_to_a_multiple_is_the_mean_of_the_rows(root: Path, tmp_path: Path) -> None:
    merge(root, tmp_path / "out", {"source": "base", "pad_to_multiple_of": 64}, "a")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    count = len(AutoTokenizer.from_pretrained(root / "a"))
    assert merged.config.vocab_size == -(-count // 64) * 64
    for name in (EMBED, HEAD):
        rows = merged.state_dict()[name]
        mean = rows[:count].double().mean(0).float()
        assert torch.equal(rows[count:], mean.expand(len(rows) - count, -1))


@pytest.mark.parametrize("ties", ["yes,yes", "no,yes", "yes,no"])
def test_tied_embeddings(tmp_path: Path, ties: str) -> None:
    for seed, (name, text, tie) in enumerate(
        zip("ab", (ANIMALS, CODE), ties.split(","), strict=True)
    ):
        model(tmp_path / name, tokenizer(text, added=[f"<{name}>"]), seed, tie=tie == "yes")
    if ties == "yes,no":
        with pytest.raises(MismatchError, match=HEAD):
            merge(tmp_path, tmp_path / "out", {"source": "union"})
        return
    merge(tmp_path, tmp_path / "out", {"source": "union"})
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["tie_word_embeddings"] is (ties == "yes,yes")
    for name in (EMBED, HEAD):
        a, b, out = (rows_by_token(tmp_path / folder, name) for folder in ("a", "b", "out"))
        for token, row in out.items():
            mine = [rows[token] for rows in (a, b) if token in rows]
            assert torch.equal(row, (mine[0] + mine[-1]) / 2), (name, token)


def test_tokens_without_a_row(tmp_path: Path) -> None:
    """Left out of the output's tokenizer, and absent in other models."""
    tokens = tokenizer(ANIMALS, added=["<a>", "<late>"])
    tokens.add_special_tokens({"pad_token": "<pad>"})
    model(tmp_path / "a", tokens, rows=len(tokens) - 2)
    model(tmp_path / "b", tokenizer(ANIMALS, added=["<b>"]), 1)
    report = str(merge(tmp_path, tmp_path / "base", {"source": "base"}))
    out = AutoTokenizer.from_pretrained(tmp_path / "base")
    assert len(out) == len(tokens) - 2 and out.pad_token is None
    assert "2 tokens are ('<late>', '<pad>') left out of the tokenizer" in report
    report = str(merge(tmp_path, tmp_path / "b-first", {"source": "union"}, "ba"))
    assert "<late>" not in AutoTokenizer.from_pretrained(tmp_path / "b-first").get_vocab()
    assert "2 tokens are ('<late>', '<pad>') taken as absent" in report


def test_ordinary_tokens_without_a_row(tmp_path: Path) -> None:
    tokens = tokenizer(ANIMALS)
    model(tmp_path / "a", tokens, rows=len(tokens) - 5)
    model(tmp_path / "b", tokens, 1)
    merge(tmp_path, tmp_path / "out", {"source": "base"})
    out = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert len(out) == len(tokens) - 5
    assert out.decode(out(ANIMALS).input_ids) == ANIMALS
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.vocab_size == len(out)


def test_ids_in_configs_follow_the_tokenizer(root: Path, tmp_path: Path) -> None:
    """Where the tokenizer's model has them they are its own, elsewhere the same token's."""
    other = tokenizer(CODE, special=["</s>", "<s>", "<unk>", "<eot>"], added=["<b>"])
    model(tmp_path / "b", other, 1)
    model(tmp_path / "a", tokenizer(ANIMALS, added=["<a>", "<b>"]))
    base = AutoTokenizer.from_pretrained(tmp_path / "a")
    a, b = base.convert_tokens_to_ids(["<a>", "<b>"])
    config = json.loads((tmp_path / "a/config.json").read_text())
    (tmp_path / "a/config.json").write_text(json.dumps(config | {"image_token_id": b}))
    generation = {"eos_token_id": [2, b], "suppress_tokens": [b, a], "pad_token_id": a, "top_k": 5}
    (tmp_path / "a/generation_config.json").write_text(json.dumps(generation))
    (tmp_path / "b/generation_config.json").write_text(json.dumps({"eos_token_id": [0, 3]}))
    report = merge(tmp_path, tmp_path / "out", {"source": str(tmp_path / "b")}, base="a")
    config = json.loads((tmp_path / "out/config.json").read_text())
    there = other.convert_tokens_to_ids("<b>")
    names = ("bos_token_id", "eos_token_id", "image_token_id", "vocab_size")
    assert [config[name] for name in names] == [1, 0, there, len(other)]
    found = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert found == {"eos_token_id": [0, 3], "suppress_tokens": [there], "top_k": 5}
    assert "pad_token_id left out of its configs" in str(report)
    merge(tmp_path, tmp_path / "same", {"source": "union"}, base="a")
    assert json.loads((tmp_path / "same/generation_config.json").read_text()) == generation


def test_a_tokenizer_of_a_model_that_is_not_merged(root: Path, tmp_path: Path) -> None:
    report = merge(root, tmp_path / "out", {"source": str(root / "c")}, "ab")
    c, out = (AutoTokenizer.from_pretrained(p) for p in (root / "c", tmp_path / "out"))
    assert out.get_vocab() == c.get_vocab()
    assert not rows_by_token(tmp_path / "out")["<c>"].any()
    assert "1 token is ('<c>') in no model: their rows are zeros" in str(report)


def test_a_model_without_a_tokenizer_has_the_bases(root: Path, tmp_path: Path) -> None:
    folder = model(tmp_path / "d", tokenizer(CODE, added=["<b>", "<both>"]), 3)
    wanted = rows_by_token(folder)
    for path in folder.glob("*token*"):
        path.unlink()
    report = merge(Path("/"), tmp_path / "out", {}, [str(root / "b"), str(folder)])
    assert f"{folder}: has no tokenizer" in str(report)
    b, out = rows_by_token(root / "b"), rows_by_token(tmp_path / "out")
    assert all(torch.equal(out[token], (b[token] + wanted[token]) / 2) for token in out)
    with pytest.raises(CheckpointError, match="d: its folder has no tokenizer"):
        merge(Path("/"), tmp_path / "no", {}, [str(folder), str(root / "b")])


def test_vocabularies_of_other_size_need_a_word_on_it(root: Path, tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match=r"different size.*tokenizer.*truncate"):
        merge(root, tmp_path / "out", None, "bc")
    models = [str(root / "c"), str(root / "b")]
    cut: Any = {"models": models, "output": tmp_path / "cut", "truncate_embeddings": True}
    report = mergekern.merge("linear", **cut)
    states = [AutoModelForCausalLM.from_pretrained(root / name).state_dict() for name in "cb"]
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "cut")
    rows = len(states[1][EMBED])
    assert merged.config.vocab_size == rows
    for name in (EMBED, HEAD):
        mean = (states[0][name][:rows] + states[1][name]) / 2
        assert torch.equal(merged.state_dict()[name], mean)
    assert f"cut to the smallest, {rows} rows" in str(report)
    in_memory = mergekern.merge("linear", models=states, truncate_embeddings=True)
    assert torch.equal(in_memory[EMBED], merged.state_dict()[EMBED])


def test_rows_of_bin_files_are_gathered_too(root: Path, tmp_path: Path) -> None:
    wanted = merge(root, tmp_path / "wanted", {"source": "union"}, "abc").output
    for name in "abc":
        shutil.copytree(root / name, tmp_path / name)
        state = load_file(tmp_path / name / "model.safetensors")
        (tmp_path / name / "model.safetensors").unlink()
        torch.save(state, tmp_path / name / "pytorch_model.bin")
    merge(tmp_path, tmp_path / "out", {"source": "union"}, "abc")
    out = load_file(tmp_path / "out/model.safetensors")
    for name, tensor in load_file(wanted / "model.safetensors").items():
        assert torch.equal(out[name], tensor), name


def test_what_cannot_be_aligned_is_said(root: Path, tmp_path: Path) -> None:
    state = AutoModelForCausalLM.from_pretrained(root / "a").state_dict()
    with pytest.raises(CheckpointError, match=r"models.1.: is in memory"):
        mergekern.merge(
            {
                "merge_method": "linear",
                "models": [{"model": str(root / "a")}, {"model": state}],
                "tokenizer": {"source": "union"},
            },
            output=tmp_path / "out",
        )
    for token, text in (
        ({"source": str(root / "b")}, "has no such row"),
        (
            {"source": {"kind": "model_token", "model": str(root / "b"), "token_id": 9999}},
            "id 9999",
        ),
    ):
        with pytest.raises(RecipeError, match=text):
            merge(root, tmp_path / "out", {"tokens": {"<a>": token}})
    with pytest.raises(RecipeError, match="truncate_embeddings"):
        merge_cut(root, tmp_path / "out")


def merge_cut(root: Path, output: Path) -> None:
    recipe = {
        "merge_method": "linear",
        "models": [{"model": str(root / "a")}, {"model": str(root / "b")}],
        "tokenizer_source": "union",
    }
    mergekern.merge(recipe, output=output, truncate_embeddings=True)


def test_another_tokenizer_is_another_merge(root: Path, tmp_path: Path) -> None:
    merge(root, tmp_path / "out", {"source": "union"}, "bc")
    assert "nothing to do" in str(merge(root, tmp_path / "out", {"source": "union"}, "bc"))
    with pytest.raises(MergeError, match="another recipe"):
        merge(root, tmp_path / "out", {"source": "union"}, "bc", chat_template="chatml")


def test_a_grid_reads_its_models_once(root: Path, tmp_path: Path) -> None:
    recipe = {
        "merge_method": "linear",
        "models": [{"model": str(root / "b")}, {"model": str(root / "c")}],
        "tokenizer_source": "union",
        "grid": {"weight": [[0.5, 0.5], [0.25, 0.75]]},
    }
    plans = mergekern.plan_many(recipe, tmp_path / "out")
    assert plans.input_bytes == plans.plans[0].input_bytes
