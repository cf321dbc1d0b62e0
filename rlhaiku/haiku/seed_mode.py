"""The structure score of the tutorial this project is measured against, quirks included.

It is here so that rewards and speed can be compared like for like; nobody should train with it. What it does that
`structure.py` does not: any `/` cuts lines, or else any `. `; words are runs of a to z, so an apostrophe cuts and
digits, accents and other scripts are unspoken; template tokens are words; only a word's first pronunciation counts;
lines past the third cost nothing but the quarter for three lines; what the words are does not matter.
"""

import re
from functools import cache

from rlhaiku.haiku.dictionary import Dictionary, Readings, load_dictionary
from rlhaiku.haiku.structure import TARGETS

_WORD = re.compile(r"[a-zA-Z]+")
_VOWELS = re.compile(r"[aeiouy]+")
_UNSPOKEN = frozenset(("fs", "hm", "hmm", "hmmm", "mm", "sh", "shh", "ths"))
"""Listed words without a vowel: no syllable by the tutorial's rule, one in our tables."""
_POINTS = (0.25, 0.125)
"""Of a line, by the distance to its target."""
_ACRONYM_LENGTHS = range(2, 7)
_CACHED_WORDS = 1 << 15


def seed_lines(text: str, dictionary: Dictionary | None = None) -> tuple[tuple[str, int], ...]:
    """The tutorial's segments of `text` with its syllables."""
    dictionary = dictionary or load_dictionary()
    return tuple((segment, count_segment(segment, dictionary)) for segment in _segments(text))


def seed_structure(text: str, dictionary: Dictionary | None = None) -> float:
    """The tutorial's structure score of `text`, in [0, 1]."""
    count = _counts(dictionary or load_dictionary()).__getitem__
    segments = _segments(text)
    total = 0.25 if len(segments) == len(TARGETS) else 0.0
    for segment, target in zip(segments, TARGETS, strict=False):
        distance = abs(sum(map(count, _WORD.findall(segment))) - target)
        if distance < len(_POINTS):
            total += _POINTS[distance]
    return total


def count_segment(segment: str, dictionary: Dictionary) -> int:
    """The tutorial's syllables of a piece of text."""
    return sum(map(_counts(dictionary).__getitem__, _WORD.findall(segment)))


def _segments(text: str) -> list[str]:
    separator = "/" if "/" in text else ". " if ". " in text else "\n"
    return [segment for part in text.split(separator) if (segment := part.strip())]


class _Counts(dict[str, int]):
    """The tutorial's syllables of each word seen so far: looking one up is the whole cost of a word."""

    def __init__(self, dictionary: Dictionary) -> None:
        self._table = dictionary.table

    def __missing__(self, word: str) -> int:
        if len(self) >= _CACHED_WORDS:
            self.clear()
        self[word] = _count(word, self._table.get(word.lower()))
        return self[word]


@cache
def _counts(dictionary: Dictionary) -> _Counts:
    return _Counts(dictionary)


def _count(word: str, listed: Readings | None) -> int:
    lower = word.lower()
    if lower in _UNSPOKEN:
        return 0
    if listed:
        return listed[0]
    if word.isupper() and len(word) in _ACRONYM_LENGTHS:
        return sum(3 if letter == "W" else 1 for letter in word)
    groups = len(_VOWELS.findall(lower))
    return max(1, groups - (lower.endswith("e") and groups > 1))
