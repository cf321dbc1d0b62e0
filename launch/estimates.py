"""What a step must cost: bytes and seconds from a model's shape and a GPU's data sheet. Pure arithmetic.

N parameters, P prompt tokens, C completion tokens, B completions that one engine draws at once, D trainer ranks. Each
formula is the physical limit; the shares and factors below say what good engines reach of it, and the plan shows them.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from launch.placement import count_slots
from rlhaiku.config import RunConfig
from rlhaiku.errors import BadInput

PROMPT_TOKENS, COMPLETION_TOKENS = 60, 30
"""Of a haiku, mean: P and C."""
ENGINE_SHARES = {"sglang": 0.1, "vllm": 0.22, "torch": 0.36}
"""Of the decoding limit, by engine, as measured on an H200 in Qwen3-4B's shape (benchmarks/RESULTS.md)."""
TRAINER_SHARES = {"megatron": 0.18, "torch": 0.5}
"""Of the peak (MFU), measured there too: Megatron's without Transformer Engine, in micro-batches of 2048 tokens."""
SYNC_FACTOR, LINK_FACTOR = 20.0, 3.3
"""Weight sync over a plain copy of the same bytes on a card, as measured with SGLang (11 with vLLM), and over their way
from one card to another, as measured with the torch engine beside one trainer rank; with several, assumed."""
SLIME_SYNC_BYTES_PER_S, SLIME_LINK_BYTES_PER_S = 11.3e9, 16.7e9
"""slime's own way to an engine on the same card and on another, as measured."""
LINK_BYTES_PER_S = 360e9
"""NVLink as NCCL uses it."""
ADAM_S = 0.005
"""One optimizer step without its communication."""
START_S = 360.0
"""Everything before the first step, as runs of the tutorial took."""
SAVE_PASSES, DISK_BYTES_PER_S = 3, 1.5e9
"""A checkpoint is written, read again for its digests and copied to the volume; the rate is assumed."""
PROCESS_BYTES = 1.5e9
"""Of each process on a card: the driver's context (0.5 GB), workspaces of cuBLAS and NCCL, an exchange's buckets."""
SLIME_PROCESS_BYTES = 8.5e9
"""Of a Megatron rank: 3.9 GB outside torch, and 4.6 that its allocator held in pieces, as seen at Qwen3-4B's shape."""
ENGINE_BUFFER_BYTES = 2.8e9
"""CUDA graphs and activations of an engine, beyond what it preallocates for weights and cache."""
LOGIT_BYTES, SLIME_LOGIT_BYTES = 4.0, 14.0
"""Of one logit while its loss is computed or a token drawn: bf16, and its gradient or a copy, where our kernels read
it; slime has bf16, fp32, the fp32 gradient and the softmax."""
CHUNKED_LOGITS = 2.0**30
"""The torch trainer's limit of logits at once, `KERNEL_LOGITS_BYTES` of actors/trainers/forward.py."""
UNFUSED_FACTOR = 1.5
"""What layers of transformers, and Megatron's own without Transformer Engine, keep over fused ones: keys repeated, an
unfused MLP. In Qwen3-4B's shape with 4096 tokens both came to 24 GB."""
VLLM_KV_BYTES = 16 * 2.0**30
"""Most that the vLLM engine's cache takes, `KV_BYTES` of actors/engines/vllm_engine.py."""
OF_WHAT_IS_LEFT, ALONE = 0.8, 0.85
"""Preallocated by SGLang: at most of what a trainer leaves of a shared card, and of a card of its own."""
CACHES = 2.0
"""What SGLang takes of a shared card for keys and values, over what its completions can need at their longest: the
trainer's allocator has better use for the rest. With hardly any of it a step took 24 s instead of 6."""
MOST, LEAST = 0.4, 0.1


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

    @property
    def layer_bytes_per_token(self) -> int:
        """What one fused layer keeps for its backward pass, bf16.

        Inputs of both norms and of both blocks, 4 h; queries and keys before and after their norm, values and the
        attention's output, 3 d (heads + kv heads); gate, up and their product, 3 f.
        """
        attention = 3 * self.head_dim * (self.heads + self.kv_heads)
        return 2 * (4 * self.hidden + attention + 3 * self.ffn)


SHAPES = {
    "Qwen/Qwen3-0.6B": ModelShape(28, 1024, 16, 8, 128, 3072, 151936),
    "Qwen/Qwen3-1.7B": ModelShape(28, 2048, 16, 8, 128, 6144, 151936),
    "Qwen/Qwen3-4B": ModelShape(36, 2560, 32, 8, 128, 9728, 151936),
    "Qwen/Qwen3-8B": ModelShape(36, 4096, 32, 8, 128, 12288, 151936, is_tied=False),
}
"""Models whose sizes are known without a download."""


def model_shape(model: str) -> ModelShape:
    """The shape of a hub id in `SHAPES`, or of a directory with a config.json; raises BadInput otherwise."""
    family = re.sub(r"-(Base|Instruct-2507|Thinking-2507)$", "", model)
    if family in SHAPES:
        return SHAPES[family]
    file = Path(model) / "config.json"
    if not file.is_file():
        known = ", ".join(SHAPES)
        raise BadInput("a plan needs the model's sizes", model, f"Name a directory with a config.json, or {known}.")
    sizes = json.loads(file.read_text())
    try:
        heads = sizes["num_attention_heads"]
        return ModelShape(
            sizes["num_hidden_layers"], sizes["hidden_size"], heads, sizes.get("num_key_value_heads", heads),
            sizes.get("head_dim") or sizes["hidden_size"] // heads, sizes["intermediate_size"], sizes["vocab_size"],
            sizes.get("tie_word_embeddings", False),
        )  # fmt: skip
    except KeyError as missing:
        raise BadInput("a plan needs the model's sizes", f"no {missing} in {file}", "Name a Qwen3-like one.") from None


def kv_cache_bytes(shape: ModelShape, completions: int, max_tokens: int, sharing: int = 1) -> float:
    """What an engine needs to hold B completions at their longest: B (P + max_tokens) keys and values.

    `sharing`: completions that have their prompt's between them.
    """
    return completions * (PROMPT_TOKENS / sharing + max_tokens) * float(shape.kv_bytes_per_token)


def trainer_bytes(
    shape: ModelShape, ranks: int, has_reference: bool, tensor_parallel: int = 1
) -> dict[str, float]:
    """A trainer rank's resident bytes: bf16 weights 2 N, fp32 gradients 4 N, its share of Adam's 12 N / D.

    Of weights and gradients a rank has one part in `tensor_parallel`; the optimizer is cut over all D ranks anyway.
    """
    n = shape.parameters / tensor_parallel
    parts = {"weights": 2 * n, "gradients": 4 * n, "optimizer shard": 12.0 * shape.parameters / ranks}
    return parts | ({"reference model": 2 * n} if has_reference else {})


def activation_bytes(shape: ModelShape, tokens: int, recompute: bool, factor: float = 1.0) -> float:
    """Of one micro-batch: all that its layers keep, or with full recomputation their bf16 inputs and one layer's all.

    `factor`: over what fused layers keep.
    """
    layer = factor * shape.layer_bytes_per_token
    return tokens * (shape.layers * shape.hidden * 2.0 + layer if recompute else shape.layers * layer)


def logits_bytes(shape: ModelShape, tokens: int, is_chunked: bool) -> float:
    """Of one micro-batch of slime's, or of a chunk of one of the torch trainer's."""
    if is_chunked:
        return min(tokens * shape.vocab, CHUNKED_LOGITS) * LOGIT_BYTES
    return tokens * shape.vocab * SLIME_LOGIT_BYTES


def trainer_card_bytes(config: RunConfig, shape: ModelShape, ranks: int, has_te: bool = True) -> dict[str, float]:
    """Everything a trainer rank has on its card at its fullest moment, by what it is.

    `has_te`: whether Megatron's layers are Transformer Engine's, as in the pinned image.
    """
    rollout, trainer = config.rollout, config.trainer
    is_torch = trainer.backend == "torch"
    in_a_row = rollout.group_size if is_torch and trainer.shared_prompt else 1
    tokens = max(trainer.micro_batch_tokens, PROMPT_TOKENS + in_a_row * rollout.max_tokens)  # a row is never cut
    parts = trainer_bytes(shape, ranks, config.algorithm.kl_coef > 0, trainer.tensor_parallel)
    if is_torch:  # a rank keeps gradients of its own shard; a lone rank's only slot is its weights
        slots = count_slots(config)
        parts["gradients"] /= ranks
        parts["weight slots"] = 2.0 * shape.parameters * (slots if max(slots, ranks) > 1 else 0)
    elif config.cluster.weight_path == "slots":  # the engine's tensors as one rank writes them for its card
        parts["weight slots"] = 2.0 * shape.parameters
    factor = UNFUSED_FACTOR if is_torch or not has_te else 1.0
    parts["activations"] = activation_bytes(shape, tokens, trainer.recompute, factor)
    parts["logits"] = logits_bytes(shape, tokens, is_torch)
    return parts | {"trainer process": PROCESS_BYTES if is_torch else SLIME_PROCESS_BYTES}


def engine_card_bytes(config: RunConfig, shape: ModelShape) -> dict[str, float]:
    """Everything an engine needs on its card, its cache for as many completions as it draws at once."""
    rollout, is_torch = config.rollout, config.rollout.engine == "torch"
    at_once = -(-rollout.groups_per_step * rollout.group_size // rollout.num_engines)
    longest = max(rollout.max_tokens, config.evaluation.max_tokens)
    cache = kv_cache_bytes(shape, at_once, longest, rollout.group_size if is_torch else 1)
    parts = {
        "engine weights": 2.0 * shape.parameters / rollout.gpus_per_engine,
        "engine KV cache": cache / rollout.gpus_per_engine,
        "engine process": PROCESS_BYTES + ENGINE_BUFFER_BYTES,
    }
    return parts | ({"engine logits": at_once * shape.vocab * LOGIT_BYTES} if is_torch else {})


def relay_card_bytes(config: RunConfig, shape: ModelShape) -> dict[str, float]:
    """What weights take on the way to the engines of a card without the trainer's: slots of their own."""
    return {"weight slots": 2.0 * shape.parameters * count_slots(config), "relay process": PROCESS_BYTES}


def engine_share(
    config: RunConfig, shape: ModelShape, ranks: int, memory_bytes: float, has_te: bool = True
) -> float:
    """Share of a card that SGLang takes at its start for weights and cache: what it needs, if a trainer leaves it."""
    if not config.cluster.colocate:
        return ALONE
    engine = engine_card_bytes(config, shape)
    taken = sum(trainer_card_bytes(config, shape, ranks, has_te).values()) + engine["engine process"]
    needed = engine["engine weights"] + CACHES * engine["engine KV cache"]
    share = min(OF_WHAT_IS_LEFT * (1 - taken / memory_bytes), needed / memory_bytes)
    return round(min(MOST, max(LEAST, share)), 3)


def preallocated_kv_bytes(
    config: RunConfig, shape: ModelShape, ranks: int, memory_bytes: float, has_te: bool = True
) -> float:
    """The cache as an engine really takes it at its start; below 0 if its weights alone are more than its share."""
    rollout, evaluation = config.rollout, config.evaluation
    if rollout.engine == "sglang":
        weights = 2.0 * shape.parameters / rollout.gpus_per_engine
        return engine_share(config, shape, ranks, memory_bytes, has_te) * memory_bytes - weights
    at_once = rollout.tile_groups * max(rollout.group_size, evaluation.samples_per_prompt)
    sharing = rollout.group_size if rollout.engine == "torch" else 1
    needed = kv_cache_bytes(shape, at_once, max(rollout.max_tokens, evaluation.max_tokens), sharing)
    return min(VLLM_KV_BYTES, needed) if rollout.engine == "vllm" else needed


def rollout_s(shape: ModelShape, gpu: Gpu, groups: float, group_size: int, share: float) -> float:
    """One engine's time for its part of a step: prefill once a group, then C decode steps of B = groups x group size.

    `share`: of the decoding limit. A decode step reads the weights and the caches, or is bound by 2 N FLOP a token,
    whichever takes longer.
    """
    n, b = shape.parameters, groups * group_size
    context = PROMPT_TOKENS + COMPLETION_TOKENS / 2
    read_s = (2 * n + b * context * shape.kv_bytes_per_token) / gpu.bytes_per_s
    decode_s = COMPLETION_TOKENS * max(read_s, b * 2 * n / gpu.flops)
    return decode_s / share + groups * PROMPT_TOKENS * 2 * n / gpu.flops


def train_tokens(groups: int, group_size: int, is_shared: bool) -> int:
    """Tokens forwarded in a step; a shared prompt counts once a group."""
    prompts = groups if is_shared else groups * group_size
    return prompts * PROMPT_TOKENS + groups * group_size * COMPLETION_TOKENS


def train_flops(shape: ModelShape, has_reference: bool, recompute: bool) -> float:
    """A token: 6 N, 2 N more for a reference model, and 2 N without the embedding for a second forward pass."""
    again = 2.0 * (shape.parameters - shape.vocab * shape.hidden) if recompute else 0.0
    return (8 if has_reference else 6) * float(shape.parameters) + again


def train_s(shape: ModelShape, gpu: Gpu, ranks: int, flop: float, steps: int, share: float) -> float:
    """So many FLOP among all ranks at a share of their peak, and for each optimizer step reduce-scatter, Adam,
    all-gather.
    """
    n = shape.parameters
    exchange_s = (ranks - 1) / ranks * (4 * n + 2 * n) / LINK_BYTES_PER_S
    return flop / (ranks * gpu.flops * share) + steps * (exchange_s + ADAM_S)


def sync_s(shape: ModelShape, gpu: Gpu, is_colocated: bool, by_slime: bool) -> float:
    """The trainer's weights to the engines: a copy within a card (read and write), or over NVLink."""
    num_bytes = 2.0 * shape.parameters
    if by_slime:
        return num_bytes / (SLIME_SYNC_BYTES_PER_S if is_colocated else SLIME_LINK_BYTES_PER_S)
    if is_colocated:
        return SYNC_FACTOR * 2 * num_bytes / (0.85 * gpu.bytes_per_s)
    return LINK_FACTOR * num_bytes / LINK_BYTES_PER_S


def save_s(shape: ModelShape) -> float:
    """A checkpoint: bf16 weights 2 N, Adam's 12 N, and the Hugging Face directory 2 N."""
    return SAVE_PASSES * 16.0 * shape.parameters / DISK_BYTES_PER_S
