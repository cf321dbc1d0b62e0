"""The words: read from `lexicon.toml`, sorted into pools that a grammar slot draws from."""

import tomllib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

LEXICON_FILE = Path(__file__).with_name("lexicon.toml")
TOPICS_FILE = Path(__file__).parents[2] / "rlhaiku" / "assets" / "topics.toml"

VERB_FORMS = ("base", "third", "ing", "past")
HUMAN = "person"  # the class of a pronoun such as "we"
_MASS = "~"
_MISSING = "-"


@dataclass(frozen=True)
class Word:
    """A word or a fixed phrase, and its length in syllables."""

    text: str
    syllables: int


@dataclass(frozen=True)
class Noun:
    """A noun: its singular, its plural if it has one, and whether it is a mass noun (snow: no "a", no plural)."""

    singular: Word
    plural: Word | None
    mass: bool

    def forms(self) -> dict[str, Word]:
        """The grammar kinds this noun can fill: any singular, countable singular, mass, plural."""
        forms = {"noun": self.singular, "mass" if self.mass else "count": self.singular}
        if self.plural:
            forms["plural"] = self.plural
        return forms


class Pool:
    """The words that may fill one slot, by length.

    `by_length[n]` are the words of n syllables, `lengths` the lengths there are (sorted). A word that occurs twice
    is drawn twice as often.
    """

    def __init__(self, words: Iterable[Word]) -> None:
        by_length: dict[int, list[str]] = defaultdict(list)
        for word in words:
            by_length[word.syllables].append(word.text)
        self.by_length = {length: tuple(texts) for length, texts in by_length.items()}
        self.lengths = tuple(sorted(by_length))


EMPTY = Pool(())


@dataclass(frozen=True)
class Lexicon:
    """All words, ready to draw from.

    `pools` is keyed by a grammar kind and the noun classes it depends on: `("prep", "water")`,
    `("take_third", "person", "food")` (subject, object), `("adverb",)`.
    `objects[c]` are the classes of things that a subject of class c acts on; `subjects` is the inverse.
    `associates[c]` are the classes that keep company with c in one poem.
    """

    nouns: dict[str, dict[str, Noun]]
    pools: dict[tuple[str, ...], Pool]
    objects: dict[str, tuple[str, ...]]
    subjects: dict[str, tuple[str, ...]]
    associates: dict[str, tuple[str, ...]]
    syllables: dict[str, int]


def _word(entry: str) -> Word:
    text, _, syllables = entry.partition("/")
    return Word(text.replace("_", " "), int(syllables))


def _entries(text: str) -> Iterator[list[str]]:
    for entry in text.split(","):
        yield entry.split()


def _noun(fields: Sequence[str]) -> Noun:
    other = fields[1] if len(fields) > 1 else None
    return Noun(_word(fields[0]), _word(other) if other and other != _MASS else None, other == _MASS)


def _weighted(text: str) -> Iterator[Word]:
    for (entry,) in _entries(text):
        word, _, times = entry.partition("*")
        yield from [_word(word)] * int(times or 1)


class _Builder:
    """Collects the words of every pool before the pools are frozen."""

    def __init__(self, raw: dict[str, Any]) -> None:
        self.words: dict[tuple[str, ...], list[Word]] = defaultdict(list)
        self.objects: dict[str, dict[str, None]] = defaultdict(dict)
        self.subjects: dict[str, dict[str, None]] = defaultdict(dict)
        self.nouns = {name: self._add_nouns(name, text) for name, text in raw["nouns"].items()}
        for group in raw["verbs"]:
            self._add_verbs(group)
        for kind, groups in (("adjective", raw["adjectives"]), ("preposition", raw["prepositions"])):
            for group in groups:
                for name in group["classes"].split():
                    self.words[kind, name] += _weighted(group["words"])
        for kind, text in raw["closed"].items():
            self.words[(kind,)] += _weighted(text)

    def _add_nouns(self, name: str, text: str) -> dict[str, Noun]:
        nouns = {}
        for fields in _entries(text):
            noun = _noun(fields)
            nouns[noun.singular.text] = noun
            for kind, word in noun.forms().items():
                self.words[kind, name].append(word)
        return nouns

    def _add_verbs(self, group: dict[str, str]) -> None:
        targets = group.get("objects", "").split()
        verb_forms = [
            (form, _word(entry))
            for fields in _entries(group["words"])
            for form, entry in zip(VERB_FORMS, fields, strict=True)
            if entry != _MISSING
        ]
        for subject in group["subjects"].split():
            for target in targets:
                self.objects[subject][target] = None
                self.subjects[target][subject] = None
            for form, word in verb_forms:
                if not targets:
                    self.words[form, subject].append(word)
                for target in targets:
                    self.words[f"take_{form}", subject, target].append(word)


def _single_words(words: Iterable[Word]) -> dict[str, int]:
    """Syllables of every word that stands alone somewhere in the lexicon, and of "an", which the verse makes of "a"."""
    return {"an": 1} | {word.text: word.syllables for word in words if " " not in word.text}


@lru_cache(maxsize=1)
def load_lexicon() -> Lexicon:
    """Reads the bundled lexicon."""
    raw = tomllib.loads(LEXICON_FILE.read_text(encoding="utf-8"))
    builder = _Builder(raw)
    return Lexicon(
        nouns=builder.nouns,
        pools={key: Pool(words) for key, words in builder.words.items()},
        objects={name: tuple(targets) for name, targets in builder.objects.items()},
        subjects={name: tuple(subjects) for name, subjects in builder.subjects.items()},
        associates={name: tuple(others.split()) for name, others in raw["associates"].items()},
        syllables=_single_words(word for words in builder.words.values() for word in words),
    )


@lru_cache(maxsize=1)
def load_topics() -> dict[str, str]:
    """Reads the bundled topics: topic to theme (a class of nouns)."""
    themes = tomllib.loads(TOPICS_FILE.read_text(encoding="utf-8"))["themes"]
    return {topic: theme for theme, topics in themes.items() for topic in topics}
