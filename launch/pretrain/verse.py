"""Lines of exactly n syllables and poems about a topic, drawn from the grammar and the lexicon."""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from math import exp
from random import Random

from launch.pretrain.grammar import NOUN_KINDS, Shape, line_shapes
from launch.pretrain.lexicon import EMPTY, HUMAN, Noun, Pool, load_lexicon, load_topics

MAX_SYLLABLES = 12
MENTION_PROBABILITY = 0.97
# Words of one syllable are far more common than words of four; index is the length of a word.
_LENGTH_WEIGHT = (0.0, 1.0, 1.0, 0.7, 0.4, 0.2, 0.2)
_SYLLABLES_PER_WORD = 1.65
# Lines that begin in mid-thought ("yet", "look") give a poem its turn; most lines should be plain images.
_ABRUPT = ("ADV", "CONJ", "INTJ")
_ABRUPT_WEIGHT = 0.3
_COMPANIONS = 3
_TOPIC_TRIES = 80
_TRIES = 2000
_CONTENT = frozenset({*NOUN_KINDS, "adjective", "third", "base", "past", "ing", "take_third", "take_base", "take_past",
                      "take_ing", "adverb", "when"})  # fmt: skip
# Before these letters "a" becomes "an", but for a sounded "you" or "won" and for a silent h.
_AN = re.compile(r"\ba (?=hour|(?!one|once|uni[vt]|use|usu|eu)[aeiou])")


@dataclass(frozen=True)
class Line:
    """One line of verse, its syllables and its parts of speech."""

    text: str
    syllables: int
    template: str


@dataclass(frozen=True)
class Poem:
    """Lines without punctuation, and the text that is published (the lines joined, lightly punctuated)."""

    lines: tuple[Line, ...]
    text: str

    @property
    def meter(self) -> tuple[int, ...]:
        """Syllables of each line."""
        return tuple(line.syllables for line in self.lines)


@dataclass(frozen=True)
class _Subject:
    """What a line must name: the noun's class and the pool (one word) for each grammar kind it can fill."""

    theme: str
    pools: dict[str, Pool]
    syllables: int


@lru_cache(maxsize=500_000)
def _length_choices(lengths: tuple[tuple[int, ...], ...], total: int) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """How long the first word can be if the slots have words of `lengths` and the line must have `total` syllables.

    Returns the possible lengths and their cumulative weights; both empty if there is no way. The weight of a
    length counts the ways to complete the line, so drawing word by word never runs into a dead end.
    """
    here, rest = lengths[0], lengths[1:]
    if not rest:
        return ((total,), (_LENGTH_WEIGHT[total],)) if total in here else ((), ())
    choices, weights = [], []
    for length in here:
        if length < total and (ways := _length_choices(rest, total - length)[1]):
            choices.append(length)
            weights.append(_LENGTH_WEIGHT[length] * ways[-1])
    return tuple(choices), tuple(accumulate(weights))


def _is_abrupt(template: str) -> bool:
    return template.startswith(_ABRUPT) or template.endswith("ADV")


def _group_shapes(total: int) -> tuple[list[list[Shape]], list[float]]:
    """Shapes that may have `total` syllables, grouped by template, with cumulative weights of the groups.

    Templates are drawn first and shapes second: else the templates with many variants would drown the others.
    """
    groups: dict[str, list[Shape]] = defaultdict(list)
    for shape in line_shapes():
        if len(shape.slots) <= total <= 4 * len(shape.slots):
            groups[shape.template].append(shape)
    usual = total / _SYLLABLES_PER_WORD
    weights = [
        exp(-0.33 * abs(len(shapes[0].slots) - usual)) * (_ABRUPT_WEIGHT if _is_abrupt(template) else 1.0)
        for template, shapes in groups.items()
    ]
    return list(groups.values()), list(accumulate(weights))


def _plural_is_regular(noun: Noun) -> bool:
    """Whether the plural spells the singular out, so that it counts as a mention of it."""
    return noun.plural is not None and noun.plural.text in (noun.singular.text + "s", noun.singular.text + "es")


@dataclass(frozen=True)
class _Draft:
    """A poem being written: the noun classes it keeps to and the words it has used up."""

    rng: Random
    companions: Sequence[str]
    used: set[str]

    def companion(self) -> str:
        return self.rng.choice(self.companions)

    def unused(self, words: Sequence[str]) -> str | None:
        """A word that the poem does not have yet, and now has; None if none came up."""
        for _ in range(2):
            word = self.rng.choice(words)
            if word not in self.used:
                self.used.add(word)
                return word
        return None


class Verse:
    """Writes lines and poems. Holds no random state: the same generator state gives the same poem."""

    def __init__(self) -> None:
        self._lexicon = load_lexicon()
        self.topics = load_topics()
        self._groups = {total: _group_shapes(total) for total in range(1, MAX_SYLLABLES + 1)}
        self._subjects = {topic: self._subject(topic, theme) for topic, theme in self.topics.items()}

    def line(self, rng: Random, syllables: int, theme: str) -> Line:
        """A line of exactly `syllables` (1 to 12) syllables around a theme (a class of nouns)."""
        return self._any_line(_Draft(rng, self._lexicon.associates[theme], set()), syllables)

    def poem(self, rng: Random, topic: str, meter: Sequence[int]) -> Poem:
        """A poem about `topic` with one line for each entry of `meter`, its syllables.

        Nearly every poem names its topic in one of its lines; a meter too short for the word cannot.
        """
        subject = self._subjects[topic]
        company = self._lexicon.associates[subject.theme]
        companions = [rng.choice(company) for _ in range(_COMPANIONS)] + [subject.theme]
        draft = _Draft(rng, companions, set(topic.split()))
        named = self._named_line(draft, subject, meter)
        lines = tuple(named.get(index) or self._any_line(draft, total) for index, total in enumerate(meter))
        return Poem(lines, _punctuate(rng, [line.text for line in lines]))

    def _subject(self, topic: str, theme: str) -> _Subject:
        noun = self._lexicon.nouns[theme][topic]
        forms = noun.forms()
        if not _plural_is_regular(noun):
            forms.pop("plural", None)
        return _Subject(theme, {kind: Pool([word]) for kind, word in forms.items()}, noun.singular.syllables)

    def _named_line(self, draft: _Draft, subject: _Subject, meter: Sequence[int]) -> dict[int, Line]:
        """The line that names the topic, by its place in the poem; empty if this poem leaves it unsaid."""
        places = [index for index, total in enumerate(meter) if total > subject.syllables]
        places = places or [index for index, total in enumerate(meter) if total == subject.syllables]
        if not places or draft.rng.random() > MENTION_PROBABILITY:
            return {}
        index = draft.rng.choice(places)
        for _ in range(_TOPIC_TRIES):
            line = self._try_naming(draft, subject, meter[index])
            if line:
                return {index: line}
        return {}

    def _try_naming(self, draft: _Draft, subject: _Subject, total: int) -> Line | None:
        shape = self._draw_shape(draft.rng, total)
        if not shape.nouns:
            return None
        position = draft.rng.choice(shape.nouns)
        slot = shape.slots[position]
        cast = self._cast(draft, shape, {slot.roles: subject.theme})
        if cast is None or slot.kind not in subject.pools:
            return None
        pools = self._pools(shape, cast)
        pools[position] = subject.pools[slot.kind]
        return _fill(draft, shape, pools, total, position)

    def _any_line(self, draft: _Draft, total: int) -> Line:
        for _ in range(_TRIES):
            shape = self._draw_shape(draft.rng, total)
            cast = self._cast(draft, shape, {})
            line = cast and _fill(draft, shape, self._pools(shape, cast), total)
            if line:
                return line
        raise RuntimeError(f"the grammar has no line of {total} syllables for {draft.companions}")

    def _draw_shape(self, rng: Random, total: int) -> Shape:
        groups, weights = self._groups[total]
        return rng.choice(rng.choices(groups, cum_weights=weights)[0])

    def _cast(self, draft: _Draft, shape: Shape, fixed: dict[str, str]) -> dict[str, str] | None:
        """A class of nouns for each role; None if the fixed ones allow none (nobody acts on that object)."""
        cast = {"h": HUMAN, "p": draft.companion(), "s": draft.companion(), **fixed}
        if "o" not in shape.roles:
            return cast
        actor = "h" if "h" in shape.roles else "s"
        if "o" not in fixed:
            targets = self._lexicon.objects.get(cast[actor], ())
            if not targets:
                return None
            likely = [name for name in draft.companions if name in targets]
            cast["o"] = draft.rng.choice(likely or targets)
        elif cast[actor] not in self._lexicon.subjects[cast["o"]]:
            if actor == "h":
                return None
            cast["s"] = draft.rng.choice(self._lexicon.subjects[cast["o"]])
        return cast

    def _pools(self, shape: Shape, cast: dict[str, str]) -> list[Pool]:
        pools = self._lexicon.pools
        return [pools.get((slot.kind, *(cast[role] for role in slot.roles)), EMPTY) for slot in shape.slots]


def _fill(draft: _Draft, shape: Shape, pools: Sequence[Pool], total: int, named: int | None = None) -> Line | None:
    """Words for a shape, `total` syllables in all, or None if there are none.

    Content words do not repeat within a poem, except for the one in slot `named`.
    """
    lengths = tuple(pool.lengths for pool in pools)
    words = []
    left = total
    for index, (slot, pool) in enumerate(zip(shape.slots, pools, strict=True)):
        choices, weights = _length_choices(lengths[index:], left)
        if not choices:
            return None
        length = draft.rng.choices(choices, cum_weights=weights)[0]
        left -= length
        options = pool.by_length[length]
        once_only = slot.kind in _CONTENT and index != named
        word = draft.unused(options) if once_only else draft.rng.choice(options)
        if word is None:
            return None
        words.append(word)
    return Line(_AN.sub("an ", " ".join(words)), total, shape.template)


def _punctuate(rng: Random, lines: list[str]) -> str:
    """Joins lines with newlines; now and then a comma or a dash after the first, a full stop after the last."""
    lines = list(lines)
    if len(lines) > 1:
        mark = rng.random()
        lines[0] += "," if mark < 0.12 else " -" if mark < 0.17 else ""
    if rng.random() < 0.15:
        lines[-1] += "."
    return "\n".join(lines)
