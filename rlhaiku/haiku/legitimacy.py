"""Whether a text that is built like a haiku is made of language: a factor in [0, 1], with named parts.

    script       letters of the Latin script, and not mostly signs
    real_words   most syllables are those of words in the dictionary
    spelling     few words said letter by letter, a blank after each word
    repetition   no word again and again, and more than two things named
    content      not mostly articles, prepositions and cries, nor a list of words with hardly any
    variety      no line twice
    copying      neither the prompt nor the reference poem, not even with a few words changed
    length       neither a handful of words nor a flood

Every part of an honest poem is exactly 1, so that the factor changes nothing: the bounds are where poets are not. A
refrain, a dozen articles or a word of one's own making cost nothing. The factor is the product of the parts.

What is compared are a word's pieces (`Word.pieces`), so that `Cats'`, `cat-cat` and `catCat` are no new words.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from operator import eq

from rlhaiku.haiku.dictionary import Word, load_dictionary
from rlhaiku.haiku.lemmas import FUNCTION_WORDS
from rlhaiku.haiku.structure import Line

PARTS = ("script", "real_words", "spelling", "repetition", "content", "variety", "copying", "length")
"""The names of the parts."""

_OWN_WORD = 4
"""Syllables that a poet's only word of their own making may have."""
_PER_GLUED = 0.75
"""What is left for each blank that is left out after a possessive."""
_ANAPHORA = 4
"""Words with which two lines may begin alike, `snow upon the roof`, `snow upon the sea` ..."""
_NAMED_IN_ANAPHORA = 2
"""... and how many of them may be more than function words."""
_MANY = 14
"""Words of which a haiku has so many only if most have one syllable, as function words do."""
_RUN = 4
"""Words in a row that two poems rarely share by chance."""
_IN_ORDER = 6
"""Words in the same order, others between them, that short texts rarely share by chance."""
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
    lines = [[piece for word in line.words for piece in word.pieces] for line in poem]
    pieces = [piece for line in lines for piece in line]
    unlisted = [word.readings[0] for word in words if not word.listed]
    syllables = sum([word.readings[0] for word in words])
    parts = {
        "script": _script(poem, words),
        "real_words": _real_words(unlisted, len(words), syllables),
        "spelling": _spelling(words, syllables),
        "repetition": _repetition(pieces, lines),
        "content": _content(pieces),
        "variety": _variety(lines),
        "copying": _copying(pieces, sources),
        "length": _length(len(pieces), len(poem)),
    }
    return Legitimacy(prod(parts.values()), parts, len(unlisted) / len(words) if words else 0.0)


def _script(poem: Sequence[Line], words: Sequence[Word]) -> float:
    """Share of words in Latin script; less if there is more than one sign or digit to two letters."""
    if not words:
        return 0.0
    letters = sum([len(word.text) for word in words if not word.text[0].isdecimal()])
    signs = sum([len(line.text) for line in poem]) - letters - len(words)
    latin = 1.0 if not any(line.error for line in poem) else sum([word.latin for word in words]) / len(words)
    return latin if signs <= letters / 2 else latin * letters / (2 * signs)


def _real_words(unlisted: Sequence[int], words: int, syllables: int) -> float:
    """By the syllables of words outside the dictionary; a single one is free if it is short: a poet's own word."""
    if len(unlisted) == 1 < words and unlisted[0] <= _OWN_WORD:
        return 1.0
    return _foreign(sum(unlisted), syllables) if words else 0.0


def _spelling(words: Sequence[Word], syllables: int) -> float:
    """By the syllables of words said letter by letter, and by the blanks left out, as in `autumn'ssoft`."""
    spelled = sum([word.readings[0] for word in words if word.spelled])
    return _foreign(spelled, syllables) * _PER_GLUED ** sum([word.glued for word in words])


def _foreign(syllables: int, total: int) -> float:
    """1 while one syllable in four belongs to no word as people know them; 0 from five in twelve on."""
    return _ramp(syllables / total, good=1 / 4, bad=5 / 12) if total else 1.0


def _repetition(pieces: Sequence[str], lines: Sequence[Sequence[str]]) -> float:
    """Function words may come five times, others twice, and one once more; fewer than three others are few.

    Most of what is named is named once, and hardly anything twice in a row. Lines may begin alike.
    """
    different = set(pieces)
    richness = min(1.0, len(different - FUNCTION_WORDS) / 3)
    if len(pieces) - len(different) < 3:  # too few repeats for more than one too many
        return richness
    counts = Counter(_after_anaphora(lines))
    named = [count for piece, count in counts.items() if piece not in FUNCTION_WORDS]
    excess = sum([max(0, count - (5 if piece in FUNCTION_WORDS else 2)) for piece, count in counts.items()])
    again = 1 - len(named) / sum(named) if named else 0.0
    in_a_row = sum(map(eq, pieces, pieces[1:]))
    return (
        richness
        * _ramp((excess - 1) / len(pieces), good=0.0, bad=1 / 3)
        * _ramp(again, good=0.35, bad=0.6)
        * _ramp(in_a_row, good=2, bad=6)
    )


def _after_anaphora(lines: Sequence[Sequence[str]]) -> list[str]:
    """The pieces, without the words with which a line begins as one above it did."""
    counted: list[str] = []
    for index, line in enumerate(lines):
        counted += line[max([_shared_start(line, above) for above in lines[:index]], default=0) :]
    return counted


def _shared_start(line: Sequence[str], above: Sequence[str]) -> int:
    """How many words two lines have in common at their beginning, as far as poets do that."""
    named = 0
    for index, (piece, other) in enumerate(zip(line[:_ANAPHORA], above, strict=False)):
        named += piece not in FUNCTION_WORDS
        if piece != other or named > _NAMED_IN_ANAPHORA:
            return index
    return min(len(line), len(above), _ANAPHORA)


def _content(pieces: Sequence[str]) -> float:
    """1 while three words in four are function words, 0 from nine in ten on; many short words hold two at least."""
    if not pieces:
        return 1.0
    function_words = sum([piece in FUNCTION_WORDS for piece in pieces])
    joined = min(1.0, (1 + function_words) / 3) if len(pieces) >= _MANY else 1.0
    return joined * _ramp(function_words / len(pieces), good=0.75, bad=0.9)


def _variety(lines: Sequence[Sequence[str]]) -> float:
    """1 if all lines differ, 0 if none do; the same words in another order are no other line."""
    return (len(set(map(frozenset, lines))) - 1) / (len(lines) - 1) if len(lines) > 1 else 1.0


@dataclass(frozen=True, slots=True)
class _Source:
    """What a poem must not be copied from."""

    runs: frozenset[tuple[str, ...]]
    """All runs of pieces."""
    places: dict[str, int]
    """Bit n of a piece is set if it is the n-th of the text."""
    size: int
    """Pieces in all."""

    def in_order(self, pieces: Sequence[str]) -> int:
        """Length of the longest common subsequence, by adding bit sets (Hyyrö 2004)."""
        unmatched = full = (1 << self.size) - 1
        for piece in pieces:
            matched = unmatched & self.places.get(piece, 0)
            unmatched = (unmatched + matched) | (unmatched - matched)
        return self.size - (unmatched & full).bit_count()


def _copying(pieces: Sequence[str], sources: tuple[str, ...]) -> float:
    """1 while at most one word in three stands in a run of words from a source; 0 when three in four do.

    Words in the order of a source with others between them count too: 1 while half of all are, 0 when three in four.
    """
    if not pieces:
        return 1.0
    return min([_copied(pieces, _source(text)) for text in sources if text], default=1.0)


def _copied(pieces: Sequence[str], source: _Source) -> float:
    in_order = source.in_order(pieces)
    if in_order < _RUN:
        return 1.0
    starts = [i for i in range(len(pieces) - _RUN + 1) if tuple(pieces[i : i + _RUN]) in source.runs]
    copied = {index for start in starts for index in range(start, start + _RUN)}
    altered = in_order / len(pieces) if in_order >= _IN_ORDER else 0.0
    return min(_ramp(len(copied) / len(pieces), good=0.35, bad=0.75), _ramp(altered, good=0.5, bad=0.75))


@lru_cache(maxsize=_CACHED_SOURCES)
def _source(text: str) -> _Source:
    pieces = [piece for word in load_dictionary().words(text) for piece in word.pieces]
    places: dict[str, int] = {}
    for index, piece in enumerate(pieces):
        places[piece] = places.get(piece, 0) | 1 << index
    runs = frozenset(tuple(pieces[i : i + _RUN]) for i in range(len(pieces) - _RUN + 1))
    return _Source(runs, places, len(pieces))


def _length(pieces: int, lines: int) -> float:
    """1 for two words a line or more, up to 40 in all; in proportion for fewer and for more."""
    return min(1.0, pieces / (2 * lines), 40 / pieces) if pieces else 0.0


def _ramp(value: float, good: float, bad: float) -> float:
    """1 up to `good`, 0 from `bad` on, straight in between."""
    return min(1.0, max(0.0, (bad - value) / (bad - good)))
