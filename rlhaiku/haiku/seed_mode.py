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
_POINTS = tuple({target - 1: 0.125, target: 0.25, target + 1: 0.125} for target in TARGETS)
"""Of each line, by its syllables."""
_ACRONYM_LENGTHS = range(2, 7)
_CACHED = 1 << 15
_CACHED_LENGTH = 64
"""Longer stretches of text are not kept: the cache must not fill the memory."""


def seed_lines(text: str, dictionary: Dictionary | None = None) -> tuple[tuple[str, int], ...]:
    """The tutorial's segments of `text` with its syllables."""
    dictionary = dictionary or load_dictionary()
    return tuple((segment, count_segment(segment, dictionary)) for segment in _segments(text))


def seed_structure(text: str, dictionary: Dictionary | None = None) -> float:
    """The tutorial's structure score of `text`, in [0, 1]."""
    count = _counts(dictionary or load_dictionary()).__getitem__
    total, found = 0.0, 0
    for segment in text.split(_separator(text)):
        if chunks := segment.split():
            if found < len(TARGETS):
                total += _POINTS[found].get(sum(map(count, chunks)), 0.0)
            found += 1
    return total + 0.25 if found == len(TARGETS) else total


def count_segment(segment: str, dictionary: Dictionary) -> int:
    """The tutorial's syllables of a piece of text."""
    return sum(map(_counts(dictionary).__getitem__, segment.split()))


def _segments(text: str) -> list[str]:
    return [segment for part in text.split(_separator(text)) if (segment := part.strip())]


def _separator(text: str) -> str:
    return "/" if "/" in text else ". " if ". " in text else "\n"


class _Counts(dict[str, int]):
    """The tutorial's syllables of each stretch without blanks seen so far: looking it up is all that one costs."""

    def __init__(self, dictionary: Dictionary) -> None:
        self._table = dictionary.table

    def __missing__(self, chunk: str) -> int:
        count = sum([_count(word, self._table.get(word.lower())) for word in _WORD.findall(chunk)])
        if len(self) >= _CACHED:
            self.clear()
        if len(chunk) <= _CACHED_LENGTH:
            self[chunk] = count
        return count


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
