"""How many syllables a word or a line has: CMUdict first, spelling rules for the rest.

    line -> words -> readings of each word -> count

A word's *readings* are the different syllable counts it can be spoken with; `fire` has (2, 1). The table is made
by `launch/build_cmudict.py`.
"""

import gzip
import re
import unicodedata
from collections.abc import Iterable
from functools import cache
from importlib import resources

_PLAIN = str.maketrans(
    {"’": "'", "‘": "'", "ʼ": "'", "＇": "'", "‐": "-", "‑": "-"}
    | {"æ": "ae", "œ": "oe", "ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "ı": "i"}
)
"""What Unicode normalization leaves as it is, but a dictionary spells otherwise."""

_LETTER = r"[^\W\d_]"
_WORD = re.compile(rf"\d+(?:(?:st|nd|rd|th)\b)?|'?{_LETTER}+(?:['-]{_LETTER}+)*'?")
_SIBILANT = re.compile(r"(?:[sxz]|[cs]h|[cgsz]e)$")
_VOWELS = re.compile(r"[aeiouy]+")

_SILENT = re.compile(
    r"""
    (?<=[^aeiouyl])e$                           # stone
  | (?<=[aeiouyl]l)e$                           # whale; the e of candle sounds
  | (?<=[qg]u)e$ | (?<=[aeiouy]y)e$             # antique, eye: one sound with the vowel before
  | (?<=[^aeiouytdl])ed$ | (?<=[aeiouyl]l)ed$   # walked, sailed; not wanted, settled
  | (?<=[^aeiouyszxcglh])es$                    # stones; not roses, branches
  | (?<=[aeiouyl]l)es$                          # whales; not candles
  | (?<=[^aeiouy])e(?=(?:ly|less|ness|ful|fully|ment|man|men)s?$)   # lonely
  | ^(?:for|som|hom|fir)e(?=[^aeiouylrnd])      # foreground, sometimes
  | (?<=ic)a(?=lly$)                            # magically
    """,
    re.VERBOSE,
)
"""Each match is a group of vowel letters, or a part of one, that does not sound."""

_HIATUS = re.compile(
    r"""
    (?<![tcsgx])i(?=[aou](?!us$|ns?$))          # violet, dahlia; not nation, precious
  | (?<![tcsgx])i(?=ans?$)                      # guardian; not magician
  | (?<=[rdbpvm])i(?=ons?$)                     # scorpion; not onion
  | (?<=[tc])i(?=at|os?$)                       # appreciate
  | i(?=er$|ers$|est$|et)                       # happier, quiet
  | (?<=[aeiouy])y(?=[aiou]|e(?!d?$|s$))        # mayor, player; not played
  | (?<=[^aeiouy])y(?=ing)                      # drying
  | (?<=[^qg])u(?=[ao])                         # january
  | (?<!g)e(?=o(?!u)|as?$)                      # meteor, azalea; not pigeon, gorgeous
  | (?<=^r)e(?=[ao](?!d))                       # reawaken; not ready
  | [aou](?=e[rl]s?$)                           # bluer, cruel
  | (?:[eu]|(?<![aeou])o)(?=ing)                # seeing, going
  | o(?=ic)                                     # heroic
  | s(?=ms?$)                                   # prism
  | ^mc                                         # mcgrath
    """,
    re.VERBOSE,
)
"""Each match is a place with one more syllable than groups of vowel letters."""

# fmt: off
_SMALL_NUMBERS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)
# fmt: on
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def fold(text: str) -> str:
    """Lower case, without accents, with straight apostrophes and plain hyphens."""
    decomposed = unicodedata.normalize("NFKD", text)
    bare = "".join(char for char in decomposed if not unicodedata.combining(char))
    return unicodedata.normalize("NFC", bare.casefold()).translate(_PLAIN)


def words(line: str) -> tuple[str, ...]:
    """The folded words of a line, in order: contractions and hyphenated words whole, numbers as digits."""
    return tuple(_WORD.findall(fold(line)))


def readings(word: str) -> tuple[int, ...]:
    """The distinct syllable counts `word` can be spoken with, the usual one first; (0,) if nothing is spoken."""
    folded = fold(word)
    bare = folded.strip("'-")
    listed = _table().get(folded) or _table().get(bare)
    if listed:
        return listed
    parts = _WORD.findall(bare.replace("-", " "))
    return _unlisted(parts[0]) if parts == [bare] else _sums(map(readings, parts))


def count(word: str) -> int:
    """Syllables of `word` as it is usually spoken."""
    return readings(word)[0]


def count_line(line: str) -> int:
    """Syllables of `line`, each word as it is usually spoken."""
    return sum(map(count, words(line)))


def estimate(word: str) -> int:
    """Syllables of a lower-case word by its spelling alone, at least 1.

    Letters of other scripts count one each: right for kana, near for Chinese, and never an unpaid word.
    """
    latin = re.sub(r"[^a-z]", "", word)
    foreign = sum(char.isalpha() for char in word) - len(latin)
    vowels = len(_VOWELS.findall(latin))
    if not vowels:  # "html" is spelled out, and "w" is "double u"
        return max(1, foreign + len(latin) + 2 * latin.count("w"))
    return foreign + max(1, vowels - len(_SILENT.findall(latin)) + len(_HIATUS.findall(latin)))


def _unlisted(word: str) -> tuple[int, ...]:
    """Readings of one word, without hyphens, that the table lacks."""
    if word[0].isdecimal():
        return _sums(map(readings, _spelled(re.sub(r"\D", "", word))))
    if word.endswith("'s"):
        owner = word.removesuffix("'s")
        return _sums([readings(owner), (int(bool(_SIBILANT.search(owner))),)])
    return (estimate(word),)


def _spelled(digits: str) -> list[str]:
    """A number below 100 in words; a longer one digit by digit, as years and codes are read."""
    if len(digits) > 2:
        return [_SMALL_NUMBERS[int(digit)] for digit in digits]
    tens, ones = divmod(int(digits), 10)
    if tens < 2:
        return [_SMALL_NUMBERS[int(digits)]]
    return [_TENS[tens - 2], _SMALL_NUMBERS[ones]] if ones else [_TENS[tens - 2]]


def _sums(parts: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    """Readings of words spoken one after the other: all distinct sums, the sum of the first readings first."""
    totals: tuple[int, ...] = (0,)
    for part in parts:
        totals = tuple(dict.fromkeys(total + syllables for total in totals for syllables in part))
    return totals


@cache
def _table() -> dict[str, tuple[int, ...]]:
    """CMUdict's words and their readings."""
    packed = resources.files("rlhaiku.haiku").joinpath("data", "cmudict.txt.gz").read_bytes()
    table: dict[str, tuple[int, ...]] = {}
    for line in gzip.decompress(packed).decode().splitlines():
        counts, *listed = line.split(" ")
        table.update(dict.fromkeys(listed, tuple(map(int, counts.split(",")))))
    return table
