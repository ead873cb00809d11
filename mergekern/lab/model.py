"""The lab's tokenizer and its Llama: grouped-query attention, tied embeddings, bf16 files."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from mergekern.lab import data

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    from mergekern.lab.lab import Settings

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ 'User' if message['role'] == 'user' else 'Assistant' }}: {{ message['content'] }}\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
PAD, BEGIN, END = "<pad>", "<s>", "</s>"
CORPUS = 3000
CONTEXT = 128


def make_tokenizer(settings: Settings) -> PreTrainedTokenizerFast:
    """Byte-level BPE over all domains; single digits, or sums would have to be learnt whole."""
    from transformers import PreTrainedTokenizerFast

    rng = random.Random(settings.seed)
    streams = [data.training_stream(name, rng, 0.5) for name in settings.taught]
    examples = (next(stream) for stream in streams for _ in range(CORPUS))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocabulary,
        special_tokens=[PAD, BEGIN, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((e.prompt + e.answer for e in examples), trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BEGIN,
        eos_token=END,
        model_max_length=CONTEXT,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def make_model(settings: Settings, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """An untrained Llama whose weights depend on the seed alone."""
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(settings.seed)
    specials = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=settings.hidden,
            intermediate_size=3 * settings.hidden,
            num_hidden_layers=settings.layers,
            num_attention_heads=settings.heads,
            num_key_value_heads=settings.kv_heads,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            **specials,
        )
    )
    model.generation_config = GenerationConfig(do_sample=False, max_new_tokens=32, **specials)
    return model


def load(folder: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A saved model, widened to fp32 for training, with its tokenizer."""
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    llama = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return llama, PreTrainedTokenizerFast.from_pretrained(folder)


def save(llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write an ordinary Hugging Face checkpoint in bf16."""
    llama.bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
