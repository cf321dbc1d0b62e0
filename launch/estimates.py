"""What a step must cost: bytes and seconds from a model's shape and a GPU's data sheet. Pure arithmetic.

N parameters, P prompt tokens, C completion tokens, B completions that one engine draws at once, D trainer ranks. Each
formula is the physical limit; the shares and factors below say what good engines reach of it, and the plan shows them.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from rlhaiku.errors import BadInput

PROMPT_TOKENS, COMPLETION_TOKENS = 60, 30
"""Of a haiku, mean: P and C."""
ENGINE_SHARE = 0.5
"""Of the decoding limit that engines reach: sampling and scheduling take the rest."""
TRAINER_SHARE = 0.4
"""Of the peak that a trainer with full packs reaches (MFU)."""
SYNC_FACTOR = 10.0
"""Weight sync over a plain copy of the same bytes: handles, barriers, names."""
LINK_BYTES_PER_S = 360e9
"""NVLink as NCCL uses it."""
ADAM_S = 0.005
"""One optimizer step without its communication."""
SAVE_S, START_S = 30.0, 360.0
"""A checkpoint, and everything before the first step, as runs of the tutorial took."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One card's data sheet."""

    memory_bytes: float
    flops: float
    """Dense bf16, a second."""
    bytes_per_s: float
    """Memory bandwidth."""


GPUS = {
    "H100": Gpu(80e9, 989e12, 3.35e12),
    "H200": Gpu(141e9, 989e12, 4.8e12),
    "A100-80GB": Gpu(80e9, 312e12, 2.04e12),
}


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes of a Qwen3-like transformer."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    is_tied: bool = True
    """Input and output embedding are one matrix."""

    @property
    def parameters(self) -> int:
        """N."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        norms = 2 * self.hidden + 2 * self.head_dim
        layer = attention + 3 * self.hidden * self.ffn + norms
        embeddings = self.vocab * self.hidden * (1 if self.is_tied else 2)
        return self.layers * layer + embeddings + self.hidden

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of all layers, bf16."""
        return 2 * self.layers * self.kv_heads * self.head_dim * 2


SHAPES = {
    "Qwen/Qwen3-0.6B": ModelShape(28, 1024, 16, 8, 128, 3072, 151936),
    "Qwen/Qwen3-1.7B": ModelShape(28, 2048, 16, 8, 128, 6144, 151936),
    "Qwen/Qwen3-4B": ModelShape(36, 2560, 32, 8, 128, 9728, 151936),
    "Qwen/Qwen3-8B": ModelShape(36, 4096, 32, 8, 128, 12288, 151936, is_tied=False),
}
"""Models whose sizes are known without a download."""


def model_shape(model: str) -> ModelShape:
    """The shape of a hub id in `SHAPES`, or of a directory with a config.json; raises BadInput otherwise."""
    if model in SHAPES:
        return SHAPES[model]
    file = Path(model) / "config.json"
    if not file.is_file():
        known = ", ".join(SHAPES)
        raise BadInput("a plan needs the model's sizes", model, f"Name a directory with a config.json, or {known}.")
    sizes = json.loads(file.read_text())
    heads = sizes["num_attention_heads"]
    return ModelShape(
        sizes["num_hidden_layers"], sizes["hidden_size"], heads, sizes.get("num_key_value_heads", heads),
        sizes.get("head_dim") or sizes["hidden_size"] // heads, sizes["intermediate_size"], sizes["vocab_size"],
        sizes.get("tie_word_embeddings", False),
    )  # fmt: skip


def kv_cache_bytes(shape: ModelShape, completions: int, max_tokens: int) -> float:
    """What an engine needs to hold B completions at their longest: B (P + max_tokens) keys and values."""
    return completions * (PROMPT_TOKENS + max_tokens) * float(shape.kv_bytes_per_token)


def trainer_bytes(
    shape: ModelShape, ranks: int, has_reference: bool, tensor_parallel: int = 1
) -> dict[str, float]:
    """A trainer rank's resident bytes: bf16 weights 2 N, fp32 gradients 4 N, its share of Adam's 12 N / D.

    Of weights and gradients a rank has one part in `tensor_parallel`; the optimizer is cut over all D ranks anyway.
    """
    n = shape.parameters / tensor_parallel
    parts = {"weights": 2 * n, "gradients": 4 * n, "optimizer shard": 12.0 * shape.parameters / ranks}
    return parts | ({"reference model": 2 * n} if has_reference else {})


def activation_bytes(shape: ModelShape, tokens: int) -> float:
    """Of one micro-batch with full recomputation: every layer's bf16 input, and the fp32 logits."""
    return tokens * (shape.layers * shape.hidden * 2.0 + shape.vocab * 4.0)


def rollout_s(shape: ModelShape, gpu: Gpu, groups: float, group_size: int) -> float:
    """One engine's time for its share of a step: prefill once a group, then C decode steps of B = groups x group size.

    A decode step reads the weights and the caches, or is bound by 2 N FLOP a token, whichever takes longer.
    """
    n, b = shape.parameters, groups * group_size
    context = PROMPT_TOKENS + COMPLETION_TOKENS / 2
    read_s = (2 * n + b * context * shape.kv_bytes_per_token) / gpu.bytes_per_s
    decode_s = COMPLETION_TOKENS * max(read_s, b * 2 * n / gpu.flops)
    return decode_s / ENGINE_SHARE + groups * PROMPT_TOKENS * 2 * n / gpu.flops


def train_tokens(groups: int, group_size: int, is_shared: bool) -> int:
    """Tokens forwarded in a step; a shared prompt counts once a group."""
    prompts = groups if is_shared else groups * group_size
    return prompts * PROMPT_TOKENS + groups * group_size * COMPLETION_TOKENS


def train_s(shape: ModelShape, gpu: Gpu, ranks: int, tokens: int, steps: int, has_reference: bool) -> float:
    """6 N FLOP a token (8 N with a reference model), and for each optimizer step reduce-scatter, Adam, all-gather."""
    n = shape.parameters
    flop = (8 if has_reference else 6) * n * tokens
    exchange_s = (ranks - 1) / ranks * (4 * n + 2 * n) / LINK_BYTES_PER_S
    return flop / (ranks * gpu.flops * TRAINER_SHARE) + steps * (exchange_s + ADAM_S)


def sync_s(shape: ModelShape, gpu: Gpu, is_colocated: bool) -> float:
    """The trainer's weights to the engines: a copy within a card (read and write), or over NVLink."""
    num_bytes = 2.0 * shape.parameters
    copy_s = 2 * num_bytes / (0.85 * gpu.bytes_per_s) if is_colocated else num_bytes / LINK_BYTES_PER_S
    return SYNC_FACTOR * copy_s
