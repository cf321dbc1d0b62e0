"""How much poems repeat each other, by the pairs of neighbouring words that they share."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import chain, pairwise

from rlhaiku.haiku.spelling import words
from rlhaiku.haiku.structure import split_lines, strip_template

_CACHED_TEXTS = 1 << 13
"""Some steps' poems, which are looked at several times."""


@lru_cache(maxsize=_CACHED_TEXTS)
def word_pairs(text: str) -> tuple[str, ...]:
    """Neighbouring words of each line of a poem, `old frog`, in order; parts of a hyphenated word are words."""
    lines = [" ".join(words(line)).replace("-", " ").split() for line in split_lines(strip_template(text))]
    return tuple([f"{word} {following}" for line in lines for word, following in pairwise(line)])


def distinct_pairs(texts: Iterable[str]) -> float:
    """Distinct word pairs of all texts together, over all pairs; 0 if there are none."""
    pairs = [pair for text in texts for pair in word_pairs(text)]
    return len(set(pairs)) / len(pairs) if pairs else 0.0


def repeated_shares(texts: Mapping[str, Sequence[str]]) -> dict[str, list[float]]:
    """How much of each text is said for other prompts, too, in [0, 1]: texts by prompt in, shares by prompt out.

    A word pair counts by the share of the other prompts for which any text has it, a text as the mean of its distinct
    pairs. Without a word pair, or other prompts: 0.
    """
    # Counting a pair only from a quarter of the prompts on was tried: poems stayed less apart (benchmarks/RESULTS.md).
    said = {prompt: [set(word_pairs(text)) for text in some] for prompt, some in texts.items()}
    prompts_with = Counter(chain.from_iterable(set().union(*sets) for sets in said.values()))
    others = len(said) - 1

    def share(pairs: set[str]) -> float:
        by_others = sum(map(prompts_with.__getitem__, pairs)) - len(pairs)
        return by_others / (len(pairs) * others) if pairs and others else 0.0

    return {prompt: list(map(share, sets)) for prompt, sets in said.items()}
