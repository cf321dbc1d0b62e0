"""How close a text is to three lines of 5, 7 and 5 syllables, in quarter points.

    text -> strip_template -> blocks of lines -> which three lines are the poem -> points

A quarter for exactly three lines, and for each of the first three lines of the poem a quarter if some way to say it
has the target's syllables, an eighth if some way is one off.

What is not the poem never shifts the targets, and what that costs is fixed:

    thoughts, template tokens, fences, rules (`---`), list marks    removed, free
    a line ending in `:`, a `#` heading, a bold line, above at      not the poem; costs the quarter for exactly
      least three other lines                                       three lines
    text around the first block of three lines                      the same
    a line on top of three lines that fit 5-7-5                     a title, the same
    lines after the third                                           the same
    a line with letters of another script, or too long              no points for that line

So nothing that says more than its three lines earns above 0.75.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rlhaiku.haiku.dictionary import Dictionary, Word, load_dictionary
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

_LINE_COUNT_POINTS = 0.25
_POINTS_BY_DISTANCE = {0: 0.25, 1: 0.125}

_THOUGHTS = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)
_THOUGHTS_BEGUN_BEFORE = re.compile(r"\A.*</think>", re.DOTALL)
_TEMPLATE_TOKEN = re.compile(
    r"<\|[^|\n]*\|>|</?s>|<(?:bos|eos|pad|unk|mask)>|<(?:start|end)_of_turn>|\[/?INST\]|<｜[^｜\n]*｜>"
)
_FENCE = re.compile(r"^[ \t]*```[\w-]*[ \t]*$|```", re.MULTILINE)
_RULE = re.compile(r"[\s*=_~-]+")
_LIST_MARK = re.compile(r"\A(?:[->*•]|\d{1,2}[.)])\s+")
_HEADING = re.compile(r"#{1,6}\s.*|(\*\*|__).+\1:?|.*:[*_\s]*")


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a text."""

    text: str
    target: int | None
    """Syllables it should have; None if it is not one of the poem's three lines."""
    words: tuple[Word, ...]
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
        """In quarters of the whole: 0.25, 0.125 or 0."""
        if self.target is None or self.error:
            return 0.0
        return _POINTS_BY_DISTANCE.get(abs(self.syllables - self.target), 0.0)


@dataclass(frozen=True, slots=True)
class Structure:
    """How a text is built, and what that earns."""

    lines: tuple[Line, ...]
    """Every line, at most MAX_LINES; those with a target are the poem."""
    total: float
    """In [0, 1], in eighths."""

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


@dataclass(frozen=True, slots=True)
class _Spoken:
    """A line before anybody knows its target."""

    text: str
    words: tuple[Word, ...]
    totals: int
    """Bit n is set when the line can have n syllables."""
    error: str

    def fits(self, target: int) -> bool:
        return not self.error and bool(self.totals >> target & 1)


def strip_template(text: str) -> str:
    """`text` without thoughts, chat template tokens and code fences: what is left is what the poet says.

    A `<think>` that is never closed hides everything after it; a `</think>` that was never opened (the opening tag
    was in the prompt) everything before it.
    """
    if "<" in text or "[" in text:
        text = _THOUGHTS_BEGUN_BEFORE.sub("", _THOUGHTS.sub("", text))
        text = _TEMPLATE_TOKEN.sub("", text)
    return _FENCE.sub("", text) if "```" in text else text


def split_lines(text: str) -> tuple[str, ...]:
    """The lines that are not blank, trimmed, without list marks; rules such as `---` are blank.

    Newlines separate. Slashes do so only in a line that stands alone, with exactly two of them (`a / b / c`): anywhere
    else, as in `and/or`, they are part of the poem.
    """
    return tuple(line for block in _blocks(text) for line in block)


def score_structure(text: str, dictionary: Dictionary | None = None) -> Structure:
    """Scores `text`, counting with the bundled dictionary unless another one is given."""
    dictionary = dictionary or load_dictionary()
    blocks = _blocks(strip_template(text))
    flat = blocks[0] if len(blocks) == 1 else [line for block in blocks for line in block]
    spoken = [_speak(line, dictionary) for line in flat[:MAX_LINES]]
    start = _start(blocks, spoken) if len(spoken) > len(TARGETS) else 0
    lines = tuple(
        [
            _line(line, TARGETS[index - start] if 0 <= index - start < len(TARGETS) else None)
            for index, line in enumerate(spoken)
        ]
    )
    total = _LINE_COUNT_POINTS * (len(lines) == len(TARGETS)) + sum([line.points for line in lines])
    return Structure(lines, total)


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
    filled = [block for block in blocks if block]
    parted = _headings_apart(filled) if sum(map(len, filled)) != len(TARGETS) else filled
    return [_bare(block) for block in parted]


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
    starts = [sum(map(len, blocks[:index])) for index in range(len(blocks))]
    for start, block in zip(starts, blocks, strict=True):
        if len(block) == len(TARGETS) and start + len(TARGETS) <= len(spoken):
            return start
    if len(blocks[0]) == 1 and _is_heading(blocks[0][0]):
        return 1
    below = spoken[1:]
    titled = len(below) == len(TARGETS) and all(line.fits(target) for line, target in zip(below, TARGETS, strict=True))
    return int(titled)


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
