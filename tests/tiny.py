"""A random Qwen3 of some thousand parameters with a byte tokenizer: everything real but small."""

from array import array
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from rlhaiku.types import Completion, Group, GroupKey, GroupRequest, Prompt, Sampling, Scored, ScoredGroup

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def save_tiny_model(directory: Path, seed: int = 0) -> Path:
    """Writes a Hugging Face directory and returns it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(SPECIAL + alphabet)}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"], chat_template=TEMPLATE,
    )
    config = Qwen3Config(
        vocab_size=320, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, tie_word_embeddings=True, max_position_embeddings=512,
        eos_token_id=vocab["<|im_end|>"], pad_token_id=vocab["<|endoftext|>"],
    )
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(config)
    with torch.no_grad():  # ends after some ten tokens, so that completions differ in length
        model.model.embed_tokens.weight[vocab["<|im_end|>"]] *= 3
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def make_prompt(name: str = "cat", length: int = 7) -> Prompt:
    """A prompt of `length` letter tokens."""
    return Prompt(f"test/{name}", name, "x" * length, tuple(40 + (len(name) * 7 + i) % 90 for i in range(length)))


def make_request(claim: int = 0, name: str = "cat", *, group_size: int = 4, max_tokens: int = 12, **kw) -> GroupRequest:
    """A training request in pass 0."""
    prompt = kw.pop("prompt", None) or make_prompt(name, 5 + claim % 4)
    sampling = Sampling(kw.pop("temperature", 1.0), max_tokens)
    return GroupRequest(GroupKey(claim, 0, prompt.prompt_id), prompt, group_size, sampling, kw.pop("version", 0))


def make_scored(claim: int, totals: list, *, version: int = 0, text: str = "") -> ScoredGroup:
    """A scored group with one completion per total, all of them `text`; a total that is a Reward is taken as it is."""
    prompt = make_prompt(f"topic{claim}", 4 + claim % 3)
    completions = tuple(
        Completion(array("i", [50 + (claim + i + t) % 60 for t in range(2 + (claim + i) % 5)]),
                   array("d", [-1.0 - 0.1 * t for t in range(2 + (claim + i) % 5)]),
                   text or f"poem {i} by {claim}", "stop", version)
        for i in range(len(totals))
    )
    rewards = tuple(Scored(float(t)) if isinstance(t, int | float) else t for t in totals)
    return ScoredGroup(Group(GroupKey(claim, 0, prompt.prompt_id), prompt, completions), rewards)
