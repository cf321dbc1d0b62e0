"""Folding text to what a dictionary knows, cutting lines into words, and counting syllables by spelling alone."""

import re
import unicodedata

_APOSTROPHES = dict.fromkeys("’‘ʼʻ＇`´′", "'")
_HYPHENS = dict.fromkeys("‐‑", "-")
_LIGATURES = {"æ": "ae", "œ": "oe", "ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "ı": "i"}
_INVISIBLE = dict.fromkeys("\u00ad\u200b\u200c\u200d\u2060\ufeff", "")
_PLAIN = str.maketrans(
    _APOSTROPHES
    | _HYPHENS
    | _INVISIBLE
    | _LIGATURES
    | {letter.upper(): plain.upper() for letter, plain in _LIGATURES.items()}
)
"""What Unicode normalization leaves as it is, but a dictionary spells otherwise."""
_APOSTROPHES_FIRST = str.maketrans(_APOSTROPHES)
"""Normalization makes a blank of the acute accent that stands for an apostrophe."""
_FRACTIONS = {"½": "a half", "⅓": "a third", "⅔": "two thirds", "¼": "a quarter", "¾": "three quarters"}
_FRACTION = re.compile(r"(\d?)\s?([½⅓⅔¼¾])")
_RAISED = re.compile(r"(?<=\d)[²³¹⁰⁴-⁹]")

_LETTER = r"[^\W\d_]"
_DOTTED = rf"(?<!{_LETTER}){_LETTER}(?:(?:\.{_LETTER})+(?![^\W_])\.?|\.(?: ?{_LETTER}\.)+)"
_NUMBER = r"(?:\d{1,3}(?:,\d{3})+(?![\d,])|\d+)(?:\.\d+)?(?:(?:[sS][tT]|[nrNR][dD]|[tT][hH]|[sS])(?![^\W_]))?"
_WORD = re.compile(rf"{_DOTTED}|'?{_LETTER}+(?:['-]{_LETTER}+)*'?|{_NUMBER}|&")
_VOWELS = re.compile(r"[aeiouy]+")
_NOT_LATIN = re.compile(r"[^a-z]")

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


def plain(text: str) -> str:
    """`text` in its own case, without accents and invisible characters, with straight apostrophes, plain hyphens."""
    if text.isascii():
        return text.replace("`", "'")
    apart = _RAISED.sub(r" \g<0>", _FRACTION.sub(_in_words, text.translate(_APOSTROPHES_FIRST)))
    decomposed = unicodedata.normalize("NFKD", apart)
    bare = "".join(char for char in decomposed if not unicodedata.combining(char))
    return unicodedata.normalize("NFC", bare).translate(_PLAIN)


def _in_words(fraction: re.Match[str]) -> str:
    """`½` as `half`, `3½` as `3 and a half`."""
    whole, part = fraction[1], _FRACTIONS[fraction[2]]
    return f"{whole} and {part} " if whole else f" {part.removeprefix('a ')} "


def fold(text: str) -> str:
    """`plain(text)` in lower case."""
    return plain(text).casefold()


def tokens(line: str) -> list[str]:
    """The words of a line in their own case; whole are contractions, hyphenated words and `U.S.A.`; numbers, `&`."""
    return _WORD.findall(plain(line))


def words(line: str) -> tuple[str, ...]:
    """The folded words of a line, in order: contractions and hyphenated words whole, numbers as digits."""
    return tuple(_WORD.findall(fold(line)))


def is_latin(token: str) -> bool:
    """Whether every letter and digit of a plain token is of the Latin script."""
    return token.isascii() or all(char.isascii() or unicodedata.name(char, "").startswith("LATIN") for char in token)


def estimate(word: str) -> int:
    """Syllables of a lower-case word by its spelling alone, at least 1; letters that are not a to z do not count."""
    latin = _NOT_LATIN.sub("", word)
    vowels = len(_VOWELS.findall(latin))
    if not vowels:
        return max(1, spelled_out(latin))
    return max(1, vowels - len(_SILENT.findall(latin)) + len(_HIATUS.findall(latin)))


def spelled_out(letters: str) -> int:
    """Syllables of `letters` said one by one, as in html; the name of w has three."""
    return len(letters) + 2 * letters.casefold().count("w")


def is_pronounceable(word: str) -> bool:
    """Whether a folded word has a vowel letter, without which it can only be spelled out."""
    return _VOWELS.search(word) is not None
