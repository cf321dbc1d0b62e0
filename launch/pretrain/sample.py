"""What the trained model writes: sampled haiku, counted with the lexicon's own syllables."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from transformers import PreTrainedTokenizerFast

from launch.pretrain.corpus import HAIKU_METER, mentions, structure_score
from launch.pretrain.lexicon import load_lexicon
from launch.pretrain.model import Model
from launch.pretrain.tokenizer import render_prompt

_MAX_NEW_TOKENS = 96
_PROMPTS_PER_BATCH = 60
_WORD = re.compile(r"[a-z']+")
_VOWELS = re.compile(r"[aeiouy]+")


@dataclass(frozen=True)
class SampleStatistics:
    """Means over sampled haiku: structure score, share of exact 5-7-5, share that names the topic, known words."""

    samples: int
    structure_mean: float
    strict_share: float
    topic_mention_share: float
    known_word_share: float

    def as_dict(self) -> dict[str, object]:
        """The statistics as plain data, for a JSON file."""
        return asdict(self)


def _words(line: str) -> list[str]:
    return _WORD.findall(line.lower())


def meter_of(text: str) -> tuple[int, ...]:
    """Syllables of each non-empty line; a word that the lexicon lacks counts its groups of vowels."""
    known = load_lexicon().syllables
    lines = [line for line in text.split("\n") if line.strip()]
    return tuple(sum(known.get(word) or len(_VOWELS.findall(word)) for word in _words(line)) for line in lines)


@torch.no_grad()
def sample_haiku(
    model: Model, tokenizer: PreTrainedTokenizerFast, topics: Sequence[str], each: int, seed: int
) -> list[list[str]]:
    """`each` haiku for each topic at temperature 1.0, as text without markup."""
    torch.manual_seed(seed)
    model.eval()
    poems: list[list[str]] = []
    for start in range(0, len(topics), _PROMPTS_PER_BATCH):
        prompts = [render_prompt(f"Write me a haiku about {topic}.") for topic in topics[start:][:_PROMPTS_PER_BATCH]]
        inputs = tokenizer(prompts, return_tensors="pt", padding=True, return_token_type_ids=False).to(model.device)
        output = model.generate(
            **inputs,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            num_return_sequences=each,
            max_new_tokens=_MAX_NEW_TOKENS,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        texts = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        poems += [texts[row : row + each] for row in range(0, len(texts), each)]
    return poems


def sample_statistics(topics: Sequence[str], poems: Sequence[Sequence[str]]) -> SampleStatistics:
    """Statistics of sampled poems, `poems[i]` about `topics[i]`."""
    known = load_lexicon().syllables
    pairs = [(topic, text) for topic, texts in zip(topics, poems, strict=True) for text in texts]
    meters = [meter_of(text) for _, text in pairs]
    words = [word for _, text in pairs for word in _words(text)]
    count = max(1, len(pairs))
    return SampleStatistics(
        samples=len(pairs),
        structure_mean=sum(map(structure_score, meters)) / count,
        strict_share=sum(meter == HAIKU_METER for meter in meters) / count,
        topic_mention_share=sum(mentions(text, topic) for topic, text in pairs) / count,
        known_word_share=sum(word in known for word in words) / max(1, len(words)),
    )
