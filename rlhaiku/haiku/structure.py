"""How close a text is to three lines of 5, 7 and 5 syllables."""

import re
from dataclasses import dataclass
from itertools import chain, repeat

from rlhaiku.haiku.syllables import count_line

TARGETS = (5, 7, 5)
"""Syllables of the first, second and third line."""

_LINE_COUNT_POINTS = 0.25
_POINTS_BY_DISTANCE = {0: 0.25, 1: 0.125}

_THOUGHTS = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)
_THOUGHTS_BEGUN_BEFORE = re.compile(r"\A.*</think>", re.DOTALL)
_TEMPLATE_TOKEN = re.compile(r"<\|[^|\n]*\|>")
_FENCE = re.compile(r"^[ \t]*```[\w-]*[ \t]*$|```", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a poem."""

    text: str
    syllables: int
    target: int | None
    """Syllables it should have; None past the third line."""


@dataclass(frozen=True, slots=True)
class Structure:
    """How a text is built, and what that earns."""

    lines: tuple[Line, ...]
    total: float
    """In [0, 1]."""
    strict: bool
    """Whether it is exactly 5-7-5."""


def strip_template(text: str) -> str:
    """`text` without thoughts, chat template tokens and code fences: what is left is what the poet says.

    A `<think>` that is never closed hides everything after it; a `</think>` that was never opened (the opening tag
    was in the prompt) everything before it.
    """
    spoken = _THOUGHTS_BEGUN_BEFORE.sub("", _THOUGHTS.sub("", text))
    return _FENCE.sub("", _TEMPLATE_TOKEN.sub("", spoken))


def split_lines(text: str) -> tuple[str, ...]:
    """The lines that are not blank, trimmed.

    Newlines separate. Slashes do so only in a single line with exactly two of them (`a / b / c`): anywhere else,
    as in `and/or`, they are part of the poem.
    """
    filled = [line for line in text.splitlines() if line.strip()]
    if len(filled) == 1 and filled[0].count("/") == 2:
        filled = filled[0].split("/")
    return tuple(line.strip() for line in filled if line.strip())


def score_structure(text: str) -> Structure:
    """Scores `text`: 0.25 for three lines, and for each of the first three 0.25 if exact, 0.125 if one off."""
    texts = split_lines(strip_template(text))
    targets = chain(TARGETS, repeat(None))
    lines = tuple(Line(line, count_line(line), target) for line, target in zip(texts, targets, strict=False))
    total = _LINE_COUNT_POINTS * (len(lines) == len(TARGETS)) + sum(map(_line_points, lines))
    return Structure(lines, total, strict=total == 1.0)


def _line_points(line: Line) -> float:
    if line.target is None:
        return 0.0
    return _POINTS_BY_DISTANCE.get(abs(line.syllables - line.target), 0.0)
