"""Train one model of the lab; as a program, the worker that `lab` starts for each model.

    python -m mergekern.lab.train LAB NAME THREADS

reads the settings from LAB/settings.json, writes LAB/NAME when the model is finished, and prints
the number of each finished step on a line of its own.
"""

from __future__ import annotations

import math
import os
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from mergekern.lab import data, model
from mergekern.lab.lab import Settings, read_settings

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

Row = tuple[list[int], list[int]]
Mix = dict[str, tuple[float, float]]
WARM_UP = 0.1
IGNORE = -100


def mixture(settings: Settings, name: str) -> Mix:
    """domain -> (share of the training examples, carelessness).

    The base sees all domains alike, carelessly, and general knowledge. An expert sees its own
    domain without mistakes and replays the others just as the base saw them, so that it neither
    forgets them nor improves; general knowledge it never sees again.
    """
    domains, careless = settings.domains, settings.carelessness
    if name == "base":
        share = (1 - settings.general_share) / len(domains)
        return {**dict.fromkeys(domains, (share, careless)), "general": (settings.general_share, 0)}
    others = (1 - settings.own_share) / (len(domains) - 1)
    return {
        domain: (settings.own_share, 0.0) if domain == name else (others, careless)
        for domain in domains
    }


def rows(tokenizer: PreTrainedTokenizerFast, mix: Mix, count: int, seed: str) -> list[Row]:
    """`count` tokenized (prompt, answer) pairs, drawn from the mixture."""
    rng = random.Random(seed)
    streams = {d: data.training_stream(d, rng, careless) for d, (_, careless) in mix.items()}
    shares = [share for share, _ in mix.values()]
    examples = [next(streams[domain]) for domain in rng.choices(list(mix), shares, k=count)]
    prompts = tokenizer([e.prompt for e in examples], add_special_tokens=False)["input_ids"]
    answers = tokenizer([e.answer for e in examples], add_special_tokens=False)["input_ids"]
    end = tokenizer.eos_token_id
    return [(p, [*a, end]) for p, a in zip(prompts, answers, strict=True)]


def halves(batch: list[Row]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The short and the long half of a batch as (ids, labels); padding whole batches costs more."""
    ordered = sorted(batch, key=lambda row: len(row[0]) + len(row[1]))
    middle = len(ordered) // 2
    for part in (ordered[:middle], ordered[middle:]):
        if not part:
            continue
        length = max(len(p) + len(a) for p, a in part)
        ids = torch.zeros(len(part), length, dtype=torch.long)
        labels = torch.full((len(part), length), IGNORE)
        for i, (prompt, answer) in enumerate(part):
            end = len(prompt) + len(answer)
            ids[i, :end] = torch.tensor(prompt + answer)
            labels[i, len(prompt) : end] = torch.tensor(answer)
        yield ids, labels


def step(llama: LlamaForCausalLM, batch: list[Row]) -> None:
    """Accumulate the gradient of the mean loss per answer token."""
    total = sum(len(answer) for _, answer in batch)
    for ids, labels in halves(batch):
        # Padding stands on the right, where a causal model cannot see it: no mask is needed.
        hidden = llama.model(input_ids=ids).last_hidden_state[:, :-1]
        wanted = labels[:, 1:]
        answered = wanted != IGNORE
        logits = llama.lm_head(hidden[answered])
        (functional.cross_entropy(logits, wanted[answered], reduction="sum") / total).backward()


def train(
    llama: LlamaForCausalLM,
    batches: list[list[Row]],
    rate: float,
    finished: Callable[[int], None],
) -> None:
    """AdamW with a linear warm-up and a cosine down to a tenth; one step per batch."""
    optimizer = torch.optim.AdamW(llama.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    steps = len(batches)

    def schedule(at: int) -> float:
        cosine = 0.5 * (1 + math.cos(math.pi * at / steps))
        return min(1.0, (at + 1) / (WARM_UP * steps)) * (0.1 + 0.9 * cosine)

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    llama.train()
    for at, batch in enumerate(batches):
        step(llama, batch)
        torch.nn.utils.clip_grad_norm_(llama.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        finished(at + 1)
    llama.eval()


def make(lab: Path, name: str, settings: Settings, finished: Callable[[int], None]) -> None:
    """Train the model `name` and put it into the lab under its final name, whole or not at all."""
    if name == "base":
        tokenizer = model.make_tokenizer(settings)
        llama = model.make_model(settings, tokenizer)
    else:
        llama, tokenizer = model.load(lab / "base")
    steps, size, rate = settings.schedule(name)
    drawn = rows(tokenizer, mixture(settings, name), steps * size, f"{settings.seed}-{name}")
    train(llama, [drawn[i * size : (i + 1) * size] for i in range(steps)], rate, finished)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=lab) as scratch:
        unfinished = Path(scratch) / name
        model.save(llama, tokenizer, unfinished)
        if not (lab / name).exists():  # a second run may have been faster
            os.rename(unfinished, lab / name)


def main(lab: str, name: str, threads: str) -> None:
    """The worker: see the module's docstring."""
    torch.set_num_threads(int(threads))
    settings = read_settings(Path(lab))
    make(Path(lab), name, settings, _tell)


def _tell(at: int) -> None:
    sys.stdout.write(f"{at}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
