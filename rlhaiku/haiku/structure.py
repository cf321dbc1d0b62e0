"""How close a text is to three lines of 5, 7 and 5 syllables, in [0, 1].

    text -> strip_template -> blocks of lines -> which three lines are the poem -> points

A quarter for exactly three lines, and for each of the first three lines of the poem a quarter if some way to say it
has the target's syllables, an eighth if some way is one off. A word is said alike wherever it stands. Of more than
three lines the poem's points count by its share of the lines: who says more than a poem has more tries at one, and
must not earn more for it.

What is not the poem never shifts the targets:

    thoughts, template tokens, role lines, tags, fences, rules      removed, free
      (`---`), list marks
    more than three lines                                           the poem is the best (each line by itself) of the
                                                                    blocks of three lines between blank lines, or if
                                                                    there is none the best three in a row
    a line with letters of another script, or too long              no points for that line

So nothing that says more than its three lines earns above 9/16. A line that announces (`Here is one:`, `# Pond`,
`**Pond**`) and a line cut by two slashes (`a / b / c`) are blocks of their own.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from rlhaiku.haiku.dictionary import Dictionary, Readings, Word, load_dictionary
from rlhaiku.haiku.syllables import reachable

TARGETS = (5, 7, 5)
"""Syllables of the first, second and third line."""
MAX_LINE_CHARS = 400
"""A longer line is an error; what follows is not read."""
MAX_LINES = 24
"""What comes after them is not read."""
MAX_CHARS = MAX_LINES * MAX_LINE_CHARS
"""What comes after them is not read: no text takes long."""

WRONG_SCRIPT = "not in Latin script"
TOO_LONG = f"longer than {MAX_LINE_CHARS} characters"

_MOST_WAYS = 32
"""To read what is said more than once in a poem; words that would make more keep all their readings."""
_LINE_COUNT_POINTS = 0.25
_POINTS_BY_DISTANCE = {0: 0.25, 1: 0.125}

_THOUGHTS = re.compile(r"<(think|thinking)>.*?(?:</\1>|\Z)", re.DOTALL)
_END_OF_THOUGHTS = re.compile(r"</think(?:ing)?>")
_BREAK = re.compile(r"<br ?/?>")
_ROLE = r"(?:system|user|assistant|model)"
_TEMPLATE_TOKEN = re.compile(
    rf"(?:<\|(?:im_start|start_header_id)\|>|<start_of_turn>){_ROLE}\b|<\|[^|\n]*\|>|<｜[^｜\n]*｜>|<</?SYS>>"
    r"|\[/?[A-Z]{3,5}\]|</?[A-Za-z][\w-]{,30}>"
)
_ROLE_LINE = re.compile(r"\s*(?:assistant|model)[ \t]*:?[ \t]*(?:\n|\Z)")
_SAYS_SOMETHING = re.compile(r"[^\W_]")
_FENCE = re.compile(r"^[ \t]*```[\w-]*[ \t]*$|```", re.MULTILINE)
_RULE = re.compile(r"[\s*=_~-]+")
_LIST_MARK = re.compile(r"\A(?:[->*•]|\d{1,2}[.)])\s+")
_SLASHES = re.compile(r"\s/\s")
_HEADING = re.compile(r"#{1,6}\s.*|(\*\*|__).+\1:?|.*:[*_\s]*")


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a text."""

    text: str
    target: int | None
    """Syllables it should have; None if it is not one of the poem's three lines."""
    words: tuple[Word, ...]
    """In order; a word that stands in the poem more than once has one reading, as far as `_MOST_WAYS` allows."""
    syllables: int
    """What it can be spoken with that is nearest to the target; as usually spoken if there is no target."""
    fewest: int
    """Syllables if every word is said as short as it can be."""
    most: int
    """Syllables if every word is said as long as it can be."""
    error: str = ""
    """Why the line cannot earn points, or empty."""

    @property
    def points(self) -> float:
        """Of the whole, while there are no more than three lines: 0.25, 0.125 or 0."""
        if self.target is None or self.error:
            return 0.0
        return _POINTS_BY_DISTANCE.get(abs(self.syllables - self.target), 0.0)


@dataclass(frozen=True, slots=True)
class Structure:
    """How a text is built, and what that earns."""

    lines: tuple[Line, ...]
    """Every line, at most MAX_LINES; those with a target are the poem."""
    total: float
    """In [0, 1]; in eighths up to three lines."""

    @property
    def strict(self) -> bool:
        """Whether it is exactly 5-7-5 and nothing else."""
        return self.total == 1.0

    @property
    def extra_lines(self) -> int:
        """How many lines are not the poem."""
        return sum([line.target is None for line in self.lines])

    @property
    def poem(self) -> tuple[Line, ...]:
        """The lines with a target, at most three."""
        return tuple([line for line in self.lines if line.target is not None])


_Heard = tuple[str, Readings]
"""What two words that must be said alike have in common."""


@dataclass(frozen=True, slots=True)
class _Spoken:
    """A line before anybody knows its target."""

    text: str
    words: tuple[Word, ...]
    totals: int
    """Bit n is set when the line can have n syllables."""
    error: str

    def said(self, way: Mapping[_Heard, Readings]) -> "_Spoken":
        """The line with some of its words said in one way only."""
        words = tuple([replace(word, readings=way.get(_heard(word), word.readings)) for word in self.words])
        return _Spoken(self.text, words, reachable(words), self.error)


def _heard(word: Word) -> _Heard:
    """`fire` and `'fire'` are heard as one word, `US` and `us` as two."""
    return word.text.strip("'"), word.readings


def strip_template(text: str) -> str:
    """`text` without thoughts, chat template tokens, tags and code fences: what is left is what the poet says.

    A `<think>` that is never closed hides everything after it; a `</think>` that was never opened (the opening tag
    was in the prompt) everything before it, unless nothing is said after it.
    """
    parts = _END_OF_THOUGHTS.split(_THOUGHTS.sub("", text)) if "<" in text else [text]
    said = [part for part in map(_without_tokens, parts) if _SAYS_SOMETHING.search(part)]
    return said[-1] if said else _without_tokens(parts[0])


def _without_tokens(text: str) -> str:
    if "<" in text or "[" in text:
        text = _TEMPLATE_TOKEN.sub("", _BREAK.sub("\n", text))
    if "```" in text:
        text = _FENCE.sub("", text)
    return _ROLE_LINE.sub("", text, count=1) if _ROLE_LINE.match(text) else text


def split_lines(text: str) -> tuple[str, ...]:
    """The lines that are not blank, trimmed, without list marks; rules such as `---` are blank.

    Newlines separate. Slashes do so in a line with exactly two of them, if it stands alone or has blanks around them
    (`a / b / c`): anywhere else, as in `and/or`, they are part of the poem.
    """
    return tuple(line for block in _blocks(text) for line in block)


def score_structure(text: str, dictionary: Dictionary | None = None) -> Structure:
    """Scores `text`, counting with the bundled dictionary unless another one is given."""
    dictionary = dictionary or load_dictionary()
    blocks = _blocks(strip_template(text))
    flat = blocks[0] if len(blocks) == 1 else [line for block in blocks for line in block]
    spoken = [_speak(line, dictionary) for line in flat[:MAX_LINES]]
    start = _start(blocks, spoken) if len(spoken) > len(TARGETS) else 0
    poem = slice(start, start + len(TARGETS))
    spoken[poem] = _said_alike(spoken[poem])
    lines = tuple([_line(line, _target(index - start)) for index, line in enumerate(spoken)])
    points = sum([line.points for line in lines])
    if len(lines) > len(TARGETS):
        return Structure(lines, points * len(TARGETS) / len(lines))
    return Structure(lines, points + _LINE_COUNT_POINTS * (len(lines) == len(TARGETS)))


def _blocks(text: str) -> list[list[str]]:
    """The lines between blank lines, as far as they are read; a heading is a block of its own."""
    blocks: list[list[str]] = [[]]
    read = 0
    for raw in text[:MAX_CHARS].splitlines():
        line = raw.strip()
        if not line or (line[0] in "*=_~-" and _RULE.fullmatch(line)):
            blocks.append([])
        elif read < MAX_LINES:
            blocks[-1].append(line)
            read += 1
    cut = [part for block in blocks for part in (_slashed_apart(block) if "/" in text else [block]) if part]
    parted = _headings_apart(cut) if sum(map(len, cut)) != len(TARGETS) else cut
    return [_bare(block) for block in parted]


def _slashed_apart(block: list[str]) -> list[list[str]]:
    """The block; around a line such as `a / b / c` it falls apart."""
    parts: list[list[str]] = [[]]
    for line in block:
        alone = len(_SLASHES.findall(line)) == 2 and line.count("/") == 2
        parts += [[line], []] if alone else []
        if not alone:
            parts[-1].append(line)
    return parts


def _headings_apart(blocks: list[list[str]]) -> list[list[str]]:
    parted = []
    for block in blocks:
        headed = len(block) > 1 and _is_heading(block[0]) and not _is_heading(block[1])
        parted += [block[:1], block[1:]] if headed else [block]
    return parted


def _bare(block: list[str]) -> list[str]:
    """The block's lines without list marks; a line alone with two slashes is three lines."""
    if len(block) == 1 and block[0].count("/") == 2:
        block = [part.strip() for part in block[0].split("/") if part.strip()]
    return [line if line[0].isalpha() else _LIST_MARK.sub("", line, count=1) for line in block]


def _is_heading(line: str) -> bool:
    """Whether a line announces what follows: `Here is a haiku:`, `# Pond`, `**Pond**`."""
    return _HEADING.fullmatch(line) is not None


def _start(blocks: Sequence[Sequence[str]], spoken: Sequence[_Spoken]) -> int:
    """Which of more than three lines is the poem's first."""
    size, last = len(TARGETS), len(spoken) - len(TARGETS)
    ends = list(accumulate(map(len, blocks)))
    of_blocks = [end - size for end, block in zip(ends, blocks, strict=True) if len(block) == size]
    starts = [start for start in of_blocks if start <= last] or range(last + 1)
    return max(starts, key=lambda start: _points(spoken[start : start + size]))  # the first of the best


def _said_alike(lines: Sequence[_Spoken]) -> Sequence[_Spoken]:
    """The lines with one reading for each word that stands in them twice or more: those readings that earn most."""
    counts = Counter([_heard(word) for line in lines for word in line.words if len(word.readings) > 1])
    ways: list[dict[_Heard, Readings]] = [{}]
    for heard, count in counts.items():
        readings = heard[1]
        if count > 1 and len(ways) * len(readings) <= _MOST_WAYS:
            ways = [way | {heard: (reading,)} for way in ways for reading in readings]
    if len(ways) == 1:
        return lines
    return max(([line.said(way) for line in lines] for way in ways), key=_points)


def _points(lines: Sequence[_Spoken]) -> float:
    return sum([_line(line, target).points for line, target in zip(lines, TARGETS, strict=False)])


def _target(place: int) -> int | None:
    """Of the line at that place of the poem, which may lie outside it."""
    return TARGETS[place] if 0 <= place < len(TARGETS) else None


def _speak(text: str, dictionary: Dictionary) -> _Spoken:
    words = tuple(dictionary.words(text[:MAX_LINE_CHARS]))
    error = TOO_LONG if len(text) > MAX_LINE_CHARS else ""
    if not text.isascii() and not all(word.latin for word in words):
        error = WRONG_SCRIPT
    return _Spoken(text, words, reachable(words), error)


def _line(spoken: _Spoken, target: int | None) -> Line:
    totals = spoken.totals
    fewest, most = (totals & -totals).bit_length() - 1, totals.bit_length() - 1
    return Line(spoken.text, target, spoken.words, _nearest(spoken, target), fewest, most, spoken.error)


def _nearest(spoken: _Spoken, target: int | None) -> int:
    """The reachable total nearest to the target; of two, the longer one."""
    usual = sum([word.readings[0] for word in spoken.words])
    totals = spoken.totals
    if target is None:
        return usual
    if totals >> target:  # something is at or above the target
        above = totals >> target
        up = (above & -above).bit_length() - 1
    else:
        return totals.bit_length() - 1
    below = totals & ((1 << target) - 1)
    down = target - (below.bit_length() - 1) if below else up + 1
    return target + up if up <= down else target - down
