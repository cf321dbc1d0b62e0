"""Whether a poem names its topic."""

import re
from collections.abc import Iterable
from functools import lru_cache

from rlhaiku.haiku.spelling import words

_FUNCTION_WORDS = frozenset(["a", "an", "and", "at", "by", "for", "from", "in", "of", "on", "or", "the", "to", "with"])
_IRREGULAR = {
    "children": "child",
    "feet": "foot",
    "geese": "goose",
    "men": "man",
    "mice": "mouse",
    "women": "woman",
    "calves": "calf",
    "halves": "half",
    "leaves": "leaf",
    "loaves": "loaf",
    "scarves": "scarf",
    "shelves": "shelf",
    "thieves": "thief",
    "wolves": "wolf",
}
_CACHED = 1 << 15
_HISSING_PLURAL = re.compile(r"(?:ss|x|zz|[cs]h)es$")
_NO_PLURAL = re.compile(r"(?:[sui]s|^.{1,2})$")


def mentions_topic(text: str, topic: str) -> bool:
    """Whether every word of `topic` appears in `text`, anywhere and in any order, in either number, also possessive.

    Case, accents and the topic's function words (`a`, `the`, `of` ...) do not matter; word boundaries do: `cats` and
    `cat's` mention `cat`, `catalog` does not. A topic without words is never mentioned.
    """
    return names_topic(words(text), topic)


def names_topic(spoken: Iterable[str], topic: str) -> bool:
    """`mentions_topic` for a text whose words were found already; `spoken` are folded."""
    wanted = _wanted(topic)
    return bool(wanted) and wanted <= _stems(spoken)


@lru_cache(maxsize=_CACHED)
def singular(word: str) -> str:
    """The key under which a word's singular, plural and possessives meet; it need not be a word itself.

    `word` is folded, as `syllables.words` gives it.
    """
    owner = word.removesuffix("'s").strip("'")
    if owner in _IRREGULAR:
        return _IRREGULAR[owner]
    if _NO_PLURAL.search(owner):
        return owner
    if len(owner) > 4 and owner.endswith("ies"):
        return owner.removesuffix("ies") + "y"
    if _HISSING_PLURAL.search(owner):
        return owner.removesuffix("es")
    return owner.removesuffix("s")


@lru_cache(maxsize=_CACHED)
def _wanted(topic: str) -> frozenset[str]:
    stems = _stems(words(topic))
    return stems - _FUNCTION_WORDS or stems


def _stems(spoken: Iterable[str]) -> frozenset[str]:
    parts = [part for word in spoken for part in (word.split("-") if "-" in word else (word,))]
    return frozenset(map(singular, parts))
