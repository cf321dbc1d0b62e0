"""Which words there are and how they can be said: a dictionary, with rules for the words it lacks.

    token -> exceptions -> dictionary -> number, acronym, compound, possessive, words without a blank -> spelling

`data/cmudict.txt.gz` is made by `launch/build_cmudict.py`; `data/exceptions.txt` has the same form, one line per
distinct tuple of readings, and holds technical acronyms and poets' contractions. A word in it whose case matters
(`US`) is written in that case. None of its words is in the tenth of words that measures the spelling rules.
"""

import gzip
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from importlib import import_module, resources
from itertools import repeat
from pathlib import Path
from typing import Literal

from rlhaiku.errors import BadInput
from rlhaiku.haiku.lemmas import lemma
from rlhaiku.haiku.numbers import number_readings
from rlhaiku.haiku.pronunciations import count_readings
from rlhaiku.haiku.spelling import estimate, is_latin, is_pronounceable, spelled_out, tokens

DictionaryName = Literal["bundled", "nltk"]
Readings = tuple[int, ...]

_CACHED_WORDS = 1 << 15
_SHORTEST_PART = 4
"""Letters of a part of a closed compound."""
_LONGEST_ACRONYM = 6
_WORDS_OF_ONE_LETTER = frozenset("aio")
_CAMEL = re.compile(r"[A-Z]{2,}(?=s$)|[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+")
_SUFFIX = re.compile(r"(.+)'(s|d|ll|re|ve|m)", re.IGNORECASE)
_BLANK_LEFT_OUT = re.compile(r"(?<=\w{3}'s)(?=\w)(?!t$)", re.IGNORECASE)  # autumn's|soft, not wander'st
_SIBILANT = re.compile(r"(?:[sxz]|[cs]h|[cgsz]e)$")
_SUFFIX_SOUNDS = {
    "s": _SIBILANT,  # the rose's, not the moon's
    "d": re.compile(r"[td]e?$"),
    "ll": re.compile(r"[^aeiouyw]$"),  # the moon'll, not the sea'll
    "re": re.compile(r"[^aeiouyw]$"),
    "ve": re.compile(r"[^aeiouyw]$"),
    "m": re.compile(r"(?!)"),
}
"""After which spellings a contracted ending is a syllable of its own."""


@dataclass(frozen=True, slots=True)
class Word:
    """One word and how it can be said."""

    text: str
    """Folded: lower case, no accents."""
    readings: Readings
    """The distinct syllable counts, the usual one first."""
    listed: bool
    """Whether the dictionary, or the exceptions, has it or all its parts; a number counts as listed."""
    spelled: bool
    """Whether it is said letter by letter without being a listed word: `b`, `xk`."""
    pieces: tuple[str, ...]
    """The lemmas it is made of: `cat` of `Cats'`, twice of `cat-cat` and `catCat`."""
    latin: bool = True
    """Whether all of it is in Latin script; otherwise it has no reading but 0."""
    glued: int = 0
    """How often it goes on after a possessive without a blank: once in `autumn'ssoft`."""


class Dictionary:
    """Counts syllables with a table of words. `source` says where the table is from."""

    def __init__(self, table: Mapping[str, Readings], source: str) -> None:
        self.table = table
        self.source = source
        # Models write the same few thousand words; the bound keeps hostile text from filling the memory.
        self.word = lru_cache(maxsize=_CACHED_WORDS)(self._word)

    def words(self, line: str) -> list[Word]:
        """The words of a line, in order."""
        return [self.word(token) for token in tokens(line)]

    def readings(self, text: str) -> Readings:
        """The distinct totals of a word or a line, the usual one first; (0,) if nothing is spoken."""
        return add_readings(word.readings for word in self.words(text))

    def _word(self, token: str) -> Word:
        """A token as `tokens` gives it: plain, in its own case."""
        text = token.casefold()
        bare = text.strip("'")
        if not is_latin(token):
            return Word(text, (0,), listed=False, spelled=False, pieces=(bare,), latin=False)
        if "." in text and not token[0].isdecimal():
            return _dotted(text)
        cased, table = _exceptions(), self.table
        readings = cased.get(token) or cased.get(text) or table.get(token) or table.get(text) or table.get(bare)
        if readings:
            spelled = len(bare) == 1 and bare not in _WORDS_OF_ONE_LETTER and bare.isalpha()
            return Word(text, readings, listed=True, spelled=spelled, pieces=_lemmas(bare))
        if token[0].isdecimal():
            return Word(text, number_readings(token), listed=True, spelled=False, pieces=(text,))
        return self._unlisted(token.strip("'"), text)

    def _unlisted(self, bare: str, text: str) -> Word:
        """A word without its outer apostrophes that no table has, said by its parts or its spelling."""
        if "-" in bare:
            return self._compound(bare.split("-"), text)
        if suffixed := _SUFFIX.fullmatch(bare):
            stem, ending = self.word(suffixed[1]), suffixed[2].casefold()
            extra = int(bool(_SUFFIX_SOUNDS[ending].search(stem.text)))
            readings = tuple(count + extra for count in stem.readings)
            return replace(stem, text=text, readings=readings)
        joined = bare.replace("'", "")
        folded = joined.casefold()
        if readings_of_joined := self.table.get(folded):  # hawai'i
            return Word(text, readings_of_joined, listed=True, spelled=False, pieces=(lemma(folded),))
        glued = _BLANK_LEFT_OUT.split(bare)
        if len(glued) > 1 and all(self.word(part).listed for part in glued[:-1]):
            return replace(self._compound(glued, text), listed=False, glued=len(glued) - 1)
        parts = _CAMEL.findall(joined) if joined.isascii() else []
        if len(parts) > 1:
            plural = parts[-1] == "s" and parts[-2].isupper()
            return self._compound(parts[:-1] if plural else parts, text)
        return self._closed_compound(folded, text) or _guess(joined, text)

    def _closed_compound(self, folded: str, text: str) -> Word | None:
        """Two listed words written as one, `tideline`: a word of the poet's own, said as its parts or its spelling."""
        for cut in range(len(folded) - _SHORTEST_PART, _SHORTEST_PART - 1, -1):
            first, second = folded[:cut], folded[cut:]
            if (before := self.table.get(first)) and (after := self.table.get(second)):
                readings = tuple(dict.fromkeys((*add_readings((before, after)), estimate(folded))))
                return Word(text, readings, listed=False, spelled=False, pieces=(lemma(first), lemma(second)))
        return None

    def _compound(self, parts: list[str], text: str) -> Word:
        words = [self.word(part) for part in parts if part.strip("'")]
        return Word(
            text,
            add_readings(word.readings for word in words),
            listed=all(word.listed for word in words),
            spelled=any(word.spelled for word in words),
            pieces=tuple(piece for word in words for piece in word.pieces),
            glued=sum(word.glued for word in words),
        )


def add_readings(parts: Iterable[Readings]) -> Readings:
    """Readings of words said one after the other: all distinct sums, the sum of the usual readings first."""
    totals: Readings = (0,)
    for part in parts:
        if len(part) == 1:
            totals = tuple([total + part[0] for total in totals])
        else:
            totals = tuple(dict.fromkeys(total + count for total in totals for count in part))
    return totals


@cache
def load_dictionary(name: DictionaryName = "bundled") -> Dictionary:
    """The dictionary of that name, loaded once per process. Raises BadInput if `nltk` is not to be had."""
    return load_nltk() if name == "nltk" else Dictionary(_parse("cmudict.txt.gz"), "bundled")


def load_nltk(path: Path | None = None) -> Dictionary:
    """The dictionary of an nltk data folder: `path`/corpora/cmudict, or wherever nltk looks. Never downloads.

    Raises BadInput if nltk or its corpus is not installed.
    """
    try:
        data, reader = import_module("nltk.data"), import_module("nltk.corpus.reader")
    except ImportError:
        raise BadInput(
            "reward.dictionary=nltk needs the package nltk", "not installed", "Install it, or choose bundled."
        ) from None
    if path is not None and str(path) not in data.path:
        data.path.insert(0, str(path))  # nltk's readers open no file elsewhere
    try:
        root = data.find("corpora/cmudict", paths=None if path is None else [str(path)])
    except LookupError:
        raise BadInput(
            "reward.dictionary=nltk needs nltk's cmudict corpus",
            str(path or data.path),
            "Get it with `python -m nltk.downloader cmudict`, or choose bundled.",
        ) from None
    return Dictionary(count_readings(reader.CMUDictCorpusReader(root, ["cmudict"]).entries()), "nltk")


def _dotted(text: str) -> Word:
    """Letters with a full stop after each, said one by one: `U.S.A.`, `a.m.`."""
    letters = "".join([char for char in text if char not in ". "])
    return Word(text, (spelled_out(letters),), listed=True, spelled=True, pieces=(letters,))


def _guess(bare: str, text: str) -> Word:
    """A word of letters only, by its spelling; in upper case it may be an acronym."""
    by_spelling, pieces = estimate(text), (lemma(text),)
    if not is_pronounceable(text):
        return Word(text, (by_spelling,), listed=False, spelled=True, pieces=pieces)
    if bare.isupper() and 1 < len(bare) <= _LONGEST_ACRONYM:
        readings = tuple(dict.fromkeys((spelled_out(bare), by_spelling)))
        return Word(text, readings, listed=False, spelled=True, pieces=pieces)
    return Word(text, (by_spelling,), listed=False, spelled=False, pieces=pieces)


def _lemmas(bare: str) -> tuple[str, ...]:
    return tuple(map(lemma, bare.split("-")))


@cache
def _exceptions() -> dict[str, Readings]:
    return _parse("exceptions.txt")


def _parse(name: str) -> dict[str, Readings]:
    """A table of `counts word word ...` lines, read one by one: all the text beside the table would be memory lost."""
    table: dict[str, Readings] = {}
    unpacked = gzip.open if name.endswith(".gz") else open
    with (
        resources.as_file(resources.files("rlhaiku.haiku").joinpath("data", name)) as path,
        unpacked(path, "rt", encoding="utf-8") as lines,
    ):
        for line in lines:
            counts, *listed = line.split()
            table.update(zip(listed, repeat(tuple(map(int, counts.split(","))))))
    return table
