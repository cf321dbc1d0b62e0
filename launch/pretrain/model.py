"""The model: a four-layer Qwen3, and the loop that pre-trains it on the answers of the corpus."""

import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from launch.pretrain.data import TokenArrays

Model: TypeAlias = Any  # a transformers causal language model; that package is untyped here

_LOG_EVERY = 100
_IGNORED = -100


@dataclass(frozen=True)
class Training:
    """Settings of a pre-training run. `rate` is the peak learning rate."""

    steps: int
    batch_size: int
    device: str
    seed: int
    rate: float = 2e-3
    warmup: int = 200
    final_rate: float = 0.05
    weight_decay: float = 0.1
    max_norm: float = 1.0

    def rate_at(self, step: int) -> float:
        """The learning rate at a step: linear warm-up, then a cosine down to `final_rate` of the peak."""
        warmup = min(self.warmup, max(1, self.steps // 10))
        if step < warmup:
            return self.rate * (step + 1) / warmup
        progress = (step - warmup) / max(1, self.steps - warmup)
        return self.rate * (self.final_rate + (1 - self.final_rate) * 0.5 * (1 + math.cos(math.pi * progress)))


@dataclass(frozen=True)
class Losses:
    """Mean loss per answer token in nats: over the last logged steps, and on the held-out documents."""

    train: float
    validation: float


def build_model(vocabulary: int, pad: int, eos: int, seed: int) -> Model:
    """A freshly initialized float32 model of about 3.5 M parameters."""
    torch.manual_seed(seed)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=vocabulary,
            hidden_size=256,
            intermediate_size=640,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=64,
            tie_word_embeddings=True,
            max_position_embeddings=1024,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            attention_dropout=0.0,
            pad_token_id=pad,
            bos_token_id=None,
            eos_token_id=eos,
        )
    )


def save_model(model: Model, directory: Path) -> None:
    """Writes the weights in bfloat16, the configuration and how to sample.

    Leaves the model in float32 with the weights that were written, rounding included.
    """
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
    )
    model.to(torch.bfloat16).save_pretrained(directory)
    model.float()


def _batch(arrays: TokenArrays, rows: np.ndarray, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and labels of some documents, both (rows, longest) int64; a label is the next token of an answer."""
    prompts, ends = arrays.prompts[rows, None], arrays.ends[rows, None]
    longest = int(ends.max())
    tokens = arrays.tokens[rows, :longest].astype(np.int64)
    following = np.concatenate([tokens[:, 1:], tokens[:, :1]], axis=1)
    position = np.arange(longest)
    labels = np.where((position >= prompts - 1) & (position < ends - 1), following, _IGNORED)
    return torch.from_numpy(tokens).to(device), torch.from_numpy(labels).to(device)


def _precision(device: str) -> AbstractContextManager[Any]:
    return torch.autocast("cuda", dtype=torch.bfloat16) if device.startswith("cuda") else nullcontext()


def _loss(model: Model, tokens: torch.Tensor, labels: torch.Tensor, device: str) -> torch.Tensor:
    """Mean cross-entropy over the labelled positions. Padding is on the right, so causal attention needs no mask."""
    with _precision(device):
        hidden = model.model(input_ids=tokens, use_cache=False).last_hidden_state
        wanted = labels != _IGNORED
        logits = model.lm_head(hidden[wanted])
    return cross_entropy(logits.float(), labels[wanted])


def _shuffled_rows(documents: int, size: int, seed: int) -> Iterator[np.ndarray]:
    """Batches of row numbers without end: every document once before any comes again."""
    rng = np.random.default_rng(seed)
    size = min(size, documents)
    while True:
        order = rng.permutation(documents)
        for start in range(0, documents - size + 1, size):
            yield order[start : start + size]


def _optimizer(model: Model, training: Training) -> torch.optim.AdamW:
    """AdamW that decays matrices but not the gains of the norms."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    gains = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": training.weight_decay}, {"params": gains, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=training.rate, betas=(0.9, 0.95))


@torch.no_grad()
def _validate(model: Model, arrays: TokenArrays, training: Training) -> float:
    model.eval()
    total, count = 0.0, 0
    for start in range(0, len(arrays), training.batch_size):
        rows = np.arange(start, min(start + training.batch_size, len(arrays)))
        tokens, labels = _batch(arrays, rows, training.device)
        answers = int((labels != _IGNORED).sum())
        total += float(_loss(model, tokens, labels, training.device)) * answers
        count += answers
    return total / count


def train(model: Model, documents: TokenArrays, held_out: TokenArrays, training: Training) -> Losses:
    """Trains the model in place, in float32 (bfloat16 autocast on CUDA), and logs the loss."""
    model.to(training.device).train()
    optimizer = _optimizer(model, training)
    rows = _shuffled_rows(len(documents), training.batch_size, training.seed)
    started = time.monotonic()
    recent: list[torch.Tensor] = []
    train_loss = math.nan
    for step in range(training.steps):
        for group in optimizer.param_groups:
            group["lr"] = training.rate_at(step)
        tokens, labels = _batch(documents, next(rows), training.device)
        loss = _loss(model, tokens, labels, training.device)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), training.max_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        recent.append(loss.detach())
        if (step + 1) % _LOG_EVERY == 0 or step + 1 == training.steps:
            train_loss = float(torch.stack(recent).mean())
            recent.clear()
            elapsed = time.monotonic() - started
            print(f"[train {elapsed:7.1f} s] step {step + 1}/{training.steps} loss {train_loss:.4f}", flush=True)
    return Losses(train_loss, _validate(model, held_out, training))
