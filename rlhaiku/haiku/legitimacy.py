"""Whether a text that is built like a haiku is made of language: a factor in [0, 1], with named parts.

    script       letters of the Latin script, and not mostly signs
    real_words   most words are in the dictionary
    spelling     no words said letter by letter
    repetition   no word again and again, and more than two things named
    variety      no line twice
    copying      neither the prompt nor the reference poem
    length       neither a handful of words nor a flood

Every part of an honest poem is exactly 1, so that the factor changes nothing: the bounds are where poets are not. A
refrain, a dozen articles or a word of one's own making cost nothing. The factor is the product of the parts.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod

from rlhaiku.haiku.dictionary import Word
from rlhaiku.haiku.spelling import words as folded_words
from rlhaiku.haiku.structure import Line

PARTS = ("script", "real_words", "spelling", "repetition", "variety", "copying", "length")
"""The names of the parts."""

# fmt: off
_FUNCTION_WORDS = frozenset((
    "a", "an", "the", "and", "or", "but", "nor", "so", "yet", "if", "as", "at", "by", "for", "from", "in", "into",
    "of", "off", "on", "onto", "out", "over", "to", "up", "with", "than", "then", "that", "this", "these", "those",
    "is", "am", "are", "was", "were", "be", "been", "i", "me", "my", "you", "your", "we", "us", "our", "he", "him",
    "his", "she", "her", "it", "its", "they", "them", "their", "no", "not", "do", "does", "has", "have", "had",
))
# fmt: on
_RUN = 4
"""Words in a row that two poems rarely share by chance."""
_CACHED_SOURCES = 1024


@dataclass(frozen=True, slots=True)
class Legitimacy:
    """The factor and its parts."""

    total: float
    """Product of the parts, in [0, 1]."""
    parts: dict[str, float]
    """In [0, 1] by name, in the order of PARTS."""
    oov_share: float
    """Words that are not in the dictionary / words, in [0, 1]."""


def score_legitimacy(poem: Sequence[Line], sources: tuple[str, ...] = ()) -> Legitimacy:
    """Looks at the lines of a poem; `sources` are texts it must not be copied from, empty ones are ignored."""
    words = [word for line in poem for word in line.words]
    pieces = _pieces(words)
    unlisted = sum([not word.listed for word in words])
    parts = {
        "script": _script(poem, words),
        "real_words": _real_words(len(words), unlisted),
        "spelling": _spelling(sum([word.spelled for word in words])),
        "repetition": _repetition(pieces),
        "variety": _variety(poem),
        "copying": _copying(pieces, sources),
        "length": _length(len(pieces), len(poem)),
    }
    return Legitimacy(prod(parts.values()), parts, unlisted / len(words) if words else 0.0)


def _pieces(words: Sequence[Word]) -> list[str]:
    """The folded words, compounds taken apart: `cat-cat-cat` is no new word."""
    texts = [word.text for word in words]
    return [piece for text in texts for piece in text.split("-")] if "-" in "".join(texts) else texts


def _script(poem: Sequence[Line], words: Sequence[Word]) -> float:
    """Share of words in Latin script; less if there is more than one sign or digit to two letters."""
    if not words:
        return 0.0
    letters = sum([len(word.text) for word in words if not word.text[0].isdecimal()])
    signs = sum([len(line.text) for line in poem]) - letters - len(words)
    latin = 1.0 if not any(line.error for line in poem) else sum([word.latin for word in words]) / len(words)
    return latin if signs <= letters / 2 else latin * letters / (2 * signs)


def _real_words(words: int, unlisted: int) -> float:
    """1 while one word is of the poet's own making, or one in five are; 0 from one in two on."""
    if unlisted <= 1 < words:
        return 1.0
    return _ramp(unlisted / words, good=0.2, bad=0.5) if words else 0.0


def _spelling(spelled: int) -> float:
    """One word may be said letter by letter, three make it no poem."""
    return 1.0 if spelled <= 1 else 0.5 if spelled == 2 else 0.0


def _repetition(pieces: Sequence[str]) -> float:
    """Function words may come five times, others twice, and one once more; fewer than three others are few."""
    different = set(pieces)
    richness = min(1.0, len(different - _FUNCTION_WORDS) / 3)
    if len(pieces) - len(different) < 3:  # too few repeats for more than one too many
        return richness
    counts = Counter(pieces)
    excess = sum([max(0, count - (5 if word in _FUNCTION_WORDS else 2)) for word, count in counts.items()])
    return richness * _ramp((excess - 1) / len(pieces), good=0.0, bad=1 / 3)


def _variety(poem: Sequence[Line]) -> float:
    """1 if all lines differ, 0 if none do; the same words in another order are no other line."""
    if len(poem) < 2:
        return 1.0
    different = {frozenset([word.text for word in line.words]) for line in poem}
    return (len(different) - 1) / (len(poem) - 1)


def _copying(pieces: Sequence[str], sources: tuple[str, ...]) -> float:
    """1 while at most one word in three stands in a run of words from a source; 0 when three in four do."""
    if not sources:
        return 1.0
    runs = _runs_of(sources)
    starts = [i for i in range(len(pieces) - _RUN + 1) if tuple(pieces[i : i + _RUN]) in runs]
    if not starts:
        return 1.0
    copied = {index for start in starts for index in range(start, start + _RUN)}
    return _ramp(len(copied) / len(pieces), good=0.35, bad=0.75)


@lru_cache(maxsize=_CACHED_SOURCES)
def _runs_of(sources: tuple[str, ...]) -> frozenset[tuple[str, ...]]:
    """All runs of words in the texts."""
    folded = [[piece for word in folded_words(source) for piece in word.split("-")] for source in sources]
    return frozenset(tuple(text[i : i + _RUN]) for text in folded for i in range(len(text) - _RUN + 1))


def _length(pieces: int, lines: int) -> float:
    """1 for two words a line or more, up to 40 in all; in proportion for fewer and for more."""
    return min(1.0, pieces / (2 * lines), 40 / pieces) if pieces else 0.0


def _ramp(value: float, good: float, bad: float) -> float:
    """1 up to `good`, 0 from `bad` on, straight in between."""
    return min(1.0, max(0.0, (bad - value) / (bad - good)))
