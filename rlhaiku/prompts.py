"""Prompts in the order a seed gives them, resumable from a claim number alone."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from rlhaiku.errors import BadInput
from rlhaiku.types import EVAL_PASS, GroupKey, GroupRequest, Prompt, Sampling


class ChatTokenizer(Protocol):
    """The part of a Hugging Face tokenizer that prompts need."""

    def apply_chat_template(self, conversation: list[dict[str, str]], **options: object) -> Any:  # noqa: ANN401
        """Renders a chat to text."""

    def encode(self, text: str, **options: object) -> list[int]:
        """Tokenizes text."""


def render_prompts(rows: Iterable[Mapping[str, Any]], tokenizer: ChatTokenizer) -> list[Prompt]:
    """Data rows (`prompt_id`, `topic`, `messages`, `reference`) to prompts.

    Thinking is disabled and the generation prompt added: the completion starts with the poem itself.
    """
    prompts = []
    for row in rows:
        messages = [{"role": m["role"], "content": m["content"]} for m in row["messages"]]
        if any(message["role"] == "assistant" for message in messages):
            raise BadInput("a prompt must not hold an assistant turn", row["prompt_id"], "Keep answers in `reference`.")
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        token_ids = tuple(tokenizer.encode(text, add_special_tokens=False))
        prompts.append(Prompt(row["prompt_id"], row["topic"], text, token_ids, row["reference"] or ""))
    return prompts


class PromptOrder:
    """Maps a claim number to a prompt: each pass is a new shuffle by (seed, pass), so the claim *is* the cursor."""

    def __init__(self, prompts: Sequence[Prompt], seed: int) -> None:
        if not prompts:
            raise BadInput("training needs prompts", 0, "Check data.path: its train.parquet has no rows.")
        # Sorted first, so that the order depends on the prompts and the seed, not on the order of a file.
        self._prompts = sorted(prompts, key=lambda prompt: prompt.prompt_id)
        self._seed = seed
        self._shuffles: dict[int, np.ndarray] = {}

    def at(self, claim: int) -> tuple[GroupKey, Prompt]:
        """The prompt of the claim-th group of the run."""
        pass_index, position = divmod(claim, len(self._prompts))
        if pass_index not in self._shuffles:
            rng = np.random.Generator(np.random.PCG64([self._seed, pass_index]))
            self._shuffles = {pass_index: rng.permutation(len(self._prompts))}
        prompt = self._prompts[self._shuffles[pass_index][position]]
        return GroupKey(claim, pass_index, prompt.prompt_id), prompt


def eval_requests(
    prompts: Sequence[Prompt], samples_per_prompt: int, sampling: Sampling, weight_version: int
) -> tuple[GroupRequest, ...]:
    """One group per held-out prompt; the same draws at every evaluation, so evaluations are paired."""
    return tuple(
        GroupRequest(GroupKey(i, EVAL_PASS, prompt.prompt_id), prompt, samples_per_prompt, sampling, weight_version)
        for i, prompt in enumerate(prompts)
    )


def choose_eval_prompts(prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    """At most `count` prompts, the same ones whatever the order of the file or the run's seed."""
    return sorted(prompts, key=lambda prompt: hashlib.sha256(prompt.prompt_id.encode()).digest())[:count]
