"""The grammar of a line: rewrite rules, unfolded once into flat sequences of slots (shapes).

A slot is `kind` or `kind@roles`. A role stands for a class of nouns: s the subject, o the object, p the place, and
h a human (the class of pronouns). `adjective@s` is an adjective that goes with the subject's class; a transitive
verb such as `take_third@so` depends on two classes. Phrases with an upper-case name are rewritten; a lower-case
suffix such as `.s` is handed down as the role.
"""

from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import product

MAX_SLOTS = 8

# Alternatives are separated by "|" or a new line.
_RULES = {
    "LINE": """
        STATEMENT | HEAD STATEMENT | LOOSE | focus LOOSE | PLACE | focus PLACE | PLACE LOOSE_ING
        ING | adverb ING | when ING | base@h | listen | adverb | when | adjective@s
        adjective@s and adjective@s | so adjective@s | so adjective@s SINGULAR.s | so adjective@s PLURAL.s
        like SINGULAR.s | like PLURAL.s | like SINGULAR.s PLACE | like PLURAL.s ing@s | PRONOUN | HEAD PRONOUN
        COMMAND | listen SINGULAR.s | listen PLURAL.s
        listen LOOSE_ING | QUALITY | HEAD QUALITY | so adverb | past@s TAIL
        adjective@s adjective@s | adverb and adverb | when and adverb | adverb adjective@s
    """,
    "HEAD": "link | focus | adverb | when | link adverb | link when",
    "SINGULAR": "definite noun@ | definite adjective@ noun@ | indefinite count@ | indefinite adjective@ count@"
    " | mass@ | adjective@ mass@",
    "PLURAL": "plural@ | adjective@ plural@ | plural_definite plural@ | plural_definite adjective@ plural@"
    " | number plural@ | number adjective@ plural@",
    "OBJECT": "SINGULAR.o | PLURAL.o",
    "PLACE": "preposition@p SINGULAR.p | preposition@p PLURAL.p",
    "TAIL": "adverb | when | PLACE",
    "STATEMENT": """
        SINGULAR.s third@s | SINGULAR.s third@s TAIL | PLURAL.s base@s | PLURAL.s base@s TAIL
        SINGULAR.s past@s | SINGULAR.s past@s TAIL | PLURAL.s past@s | PLURAL.s past@s TAIL
        SINGULAR.s take_third@so OBJECT | PLURAL.s take_base@so OBJECT
        SINGULAR.s take_past@so OBJECT | PLURAL.s take_past@so OBJECT
    """,
    "LOOSE": """
        SINGULAR.s | PLURAL.s | SINGULAR.s PLACE | PLURAL.s PLACE | SINGULAR.s and SINGULAR.p | PLURAL.s and PLURAL.p
        SINGULAR.s of PLURAL.p | SINGULAR.s of SINGULAR.p | PLURAL.s of SINGULAR.p | SINGULAR.s adverb
        SINGULAR.s when | PLURAL.s when | LOOSE_ING | LOOSE_ING TAIL
    """,
    "LOOSE_ING": "SINGULAR.s ing@s | PLURAL.s ing@s | SINGULAR.s take_ing@so OBJECT | PLURAL.s take_ing@so OBJECT",
    "ING": "ing@s | ing@s TAIL | take_ing@so OBJECT | ing@s and ing@s | ing@s adverb PLACE | take_ing@so OBJECT TAIL",
    "PRONOUN": """
        pronoun base@h | pronoun base@h TAIL | pronoun take_base@ho OBJECT | someone third@h | someone third@h TAIL
        someone take_third@ho OBJECT | pronoun past@h TAIL | someone past@h TAIL | pronoun take_past@ho OBJECT
    """,
    "COMMAND": "take_base@ho OBJECT | base@h TAIL | take_base@ho OBJECT TAIL | adverb take_base@ho OBJECT",
    "QUALITY": """
        SINGULAR.s is adjective@s | PLURAL.s are adjective@s | SINGULAR.s is adjective@s TAIL
        PLURAL.s are adjective@s TAIL | SINGULAR.s is so adjective@s | PLURAL.s are so adjective@s
    """,
}

# The part of speech of a kind. A template is the sequence of these: number and tense do not count as variety.
_PARTS = {
    "definite": "DET", "indefinite": "DET", "plural_definite": "DET", "number": "DET",
    "noun": "NOUN", "count": "NOUN", "mass": "NOUN", "plural": "NOUN", "adjective": "ADJ",
    "third": "VERB", "base": "VERB", "past": "VERB", "ing": "ING", "is": "VERB", "are": "VERB",
    "take_third": "VERB", "take_base": "VERB", "take_past": "VERB", "take_ing": "ING",
    "preposition": "PREP", "of": "PREP", "like": "PREP", "pronoun": "PRON", "someone": "PRON",
    "adverb": "ADV", "when": "ADV", "focus": "ADV", "so": "ADV", "link": "CONJ", "and": "CONJ", "listen": "INTJ",
}  # fmt: skip
NOUN_KINDS = ("noun", "count", "mass", "plural")


@dataclass(frozen=True)
class Slot:
    """One word of a line: its grammar kind and the roles whose classes it must agree with."""

    kind: str
    roles: str


@dataclass(frozen=True)
class Shape:
    """A line without its words. `template` is its sequence of parts of speech."""

    slots: tuple[Slot, ...]
    template: str
    roles: frozenset[str]
    nouns: tuple[int, ...]


def _alternatives(symbol: str) -> list[list[str]]:
    rule = _RULES[symbol].replace("\n", " | ") if "\n" in _RULES[symbol] else _RULES[symbol]
    return [part.split() for part in rule.split("|") if part.strip()]


@cache
def _unfold(symbol: str, role: str) -> tuple[tuple[Slot, ...], ...]:
    """All slot sequences of a symbol, at most MAX_SLOTS long."""
    name, _, own_role = symbol.partition(".")
    if name not in _RULES:
        kind, at, roles = symbol.partition("@")
        return ((Slot(kind, (roles or role) if at else ""),),)
    found: dict[tuple[Slot, ...], None] = {}
    for parts in _alternatives(name):
        for pieces in product(*(_unfold(part, own_role or role) for part in parts)):
            slots = tuple(slot for piece in pieces for slot in piece)
            if len(slots) <= MAX_SLOTS:
                found[slots] = None
    return tuple(found)


def _shape(slots: tuple[Slot, ...]) -> Shape:
    return Shape(
        slots=slots,
        template=" ".join(_PARTS[slot.kind] for slot in slots),
        roles=frozenset("".join(slot.roles for slot in slots)),
        nouns=tuple(i for i, slot in enumerate(slots) if slot.kind in NOUN_KINDS),
    )


@lru_cache(maxsize=1)
def line_shapes() -> tuple[Shape, ...]:
    """Every shape a line can have, in a fixed order."""
    return tuple(_shape(slots) for slots in _unfold("LINE", ""))
