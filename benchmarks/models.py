"""Models and requests for the speed benchmarks: the bundled model, and random weights of SmolLM2-135M's shape."""

from array import array
from pathlib import Path

from launch.checks import resolve_model
from rlhaiku.types import GroupKey, GroupRequest, Prompt, Sampling, TrainBatch, TrainGroup, TrainSample

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
VOCABULARY = 2000
"""Prompts are made of token ids below this, which every model here has."""


def bundled() -> Path:
    """The model that ships with the project."""
    return Path(resolve_model("bundled"))


def smollm2_shape(directory: Path) -> Path:
    """Writes a random model of SmolLM2-135M's shape with the bundled tokenizer; returns the directory."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    source = bundled()
    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=2048, tie_word_embeddings=True, rope_theta=100_000.0,
        eos_token_id=0, pad_token_id=1, bos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    for name in TOKENIZER_FILES:
        if (source / name).exists():
            (directory / name).write_bytes((source / name).read_bytes())
    return directory


def request(claim: int, *, prompt_tokens: int, max_tokens: int, group_size: int, version: int = 0) -> GroupRequest:
    """A request whose prompt has exactly `prompt_tokens` tokens, unlike any other claim's from its second token on."""
    span = VOCABULARY - 10
    token_ids = tuple(10 + (claim * 31 + claim // span * (i > 0) + 7 * i) % span for i in range(prompt_tokens))
    prompt = Prompt(f"bench/{claim}", "bench", "", token_ids)
    return GroupRequest(GroupKey(claim, 0, prompt.prompt_id), prompt, group_size, Sampling(1.0, max_tokens), version)


def batch(groups: int, group_size: int, prompt_tokens: int, completion_tokens: int) -> TrainBatch:
    """A train batch of equal lengths with made-up tokens and advantages."""
    def group(claim: int) -> TrainGroup:
        asked = request(claim, prompt_tokens=prompt_tokens, max_tokens=completion_tokens, group_size=group_size)
        samples = tuple(
            TrainSample(
                array("i", [10 + (claim + i + 3 * t) % (VOCABULARY - 10) for t in range(completion_tokens)]),
                array("d", [-8.0] * completion_tokens), (-1.0) ** i, 0,
            )
            for i in range(group_size)
        )
        return TrainGroup(asked.key, asked.prompt.token_ids, samples)

    return TrainBatch(0, 1.0, tuple(map(group, range(groups))))
