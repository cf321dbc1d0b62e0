"""Reading a judge's answer strictly: what is not clearly a score in range is `Unjudged`, never a guess."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Judged:
    """A judgement."""

    score: float
    """In [0, 1]."""
    points: Mapping[str, float] = field(default_factory=dict)
    """What each criterion gave, by name; empty for rubrics with a single number."""


@dataclass(frozen=True, slots=True)
class Unjudged:
    """No judgement; it is not a score of 0."""

    reason: str


Judgement = Judged | Unjudged

NUMBER = r"[-+]?[0-9]+(?:\.[0-9]+)?"
OUT_OF = rf"\s*(?:/|out of)\s*(?P<max>{NUMBER})"
# A number that goes on as a range, a pattern (5-7-5), a list or a decimal comma is not a score.
END = r"(?!\s*[-–/]\s*[0-9])(?!\s*out of)(?![.,]?[0-9])(?![^\W_])"
VALUE = rf"(?P<value>{NUMBER})(?:{OUT_OF})?{END}"
ALONE = re.compile(rf"{VALUE}\.?", re.IGNORECASE)
# A labelled number ends its clause, unless it says out of how many: `Score: 3 lines` counts something else.
LABELLED = re.compile(
    rf"(?<![\w'\"‘“])(?:(?:score|rating|total)\b\s*(?:\([^()]*\)\s*)?(?:is|:|=)\s*"
    rf"|(?:give|rate)\s+(?:it|this|this (?:haiku|poem)|the (?:haiku|poem))\s+(?:an?\s+)?)"
    rf"(?P<value>{NUMBER})(?:{OUT_OF}{END}|{END}(?=\s*(?:points?\b\s*)?(?:[.,;!]+(?:\s|$)|\n|$)))",
    re.IGNORECASE,
)
FRACTION = re.compile(rf"(?<![\w.,/-])(?P<value>{NUMBER}){OUT_OF}{END}", re.IGNORECASE)
FORM = r"\b[0-9]+(?:\s*[-–]\s*[0-9]+){2}\b"
CODE_FENCE = re.compile(r"[^`]*```(?:json)?\s*(?P<body>\{[^`]*\})\s*```[^`]*", re.IGNORECASE)


def parse_number(answer: str, max_score: float) -> float | Unjudged:
    """The points a plain-text answer gives: it is a number, or labels one (`Score: 7`), or holds one `7/10`.

    A text with any other number in it, but for the form and the scale, is `Unjudged`: either might be the score.
    """
    text = _without_thinking(answer)
    if text is None:
        return Unjudged("the answer breaks off inside a thinking trace")
    text = text.replace("*", "").strip()
    alone = ALONE.fullmatch(text)
    found = alone or LABELLED.search(text) or FRACTION.search(text)
    if not found or _has_number(text[: found.start()] + " " + text[found.end() :], max_score):
        return Unjudged(f"no clear score in the answer {text[:80]!r}")
    value, maximum = float(found["value"]), float(found["max"] or max_score)
    if maximum != max_score:
        return Unjudged(f"a score out of {maximum:g} instead of {max_score:g}")
    return value if 0 <= value <= max_score else _out_of_range("score", value, max_score)


def parse_points(answer: str, nonces: Sequence[str], criteria: Mapping[str, int]) -> list[dict[str, float] | Unjudged]:
    """Points by criterion for each nonce, in order, from a JSON object `{nonce: {criterion: points}}`.

    `criteria` maps each criterion to its most points. A poem the answer leaves out, or gets wrong, is `Unjudged`
    alone; an answer that is no such object leaves all of them `Unjudged`.
    """
    tree = _json_object(answer)
    if isinstance(tree, Unjudged):
        return [tree] * len(nonces)
    return [_points(tree[nonce], criteria) if nonce in tree else Unjudged("left out") for nonce in nonces]


def _points(entry: object, criteria: Mapping[str, int]) -> dict[str, float] | Unjudged:
    if not isinstance(entry, dict) or set(entry) != set(criteria):
        return Unjudged(f"not the criteria asked for: {str(entry)[:80]}")
    for name, most in criteria.items():
        points = entry[name]
        if isinstance(points, bool) or not isinstance(points, int | float):
            return Unjudged(f"{name} is not a number: {str(points)[:40]}")
        if not 0 <= points <= most:
            return _out_of_range(name, points, most)
    return {name: float(entry[name]) for name in criteria}


def _json_object(answer: str) -> dict[str, Any] | Unjudged:
    text = _without_thinking(answer)
    if text is None:
        return Unjudged("the answer breaks off inside a thinking trace")
    if fenced := CODE_FENCE.fullmatch(text):
        text = fenced["body"]
    try:
        tree = json.loads(text, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError):
        return Unjudged(f"not the JSON asked for: {text[:80]!r}")
    return tree if isinstance(tree, dict) else Unjudged(f"not a JSON object: {text[:80]!r}")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tree = dict(pairs)
    if len(tree) != len(pairs):
        raise ValueError("a key twice")  # two scores for one poem: neither is believed
    return tree


def _without_thinking(answer: str) -> str | None:
    """The answer after its thinking trace; None if the trace never ends."""
    _, _, rest = answer.rpartition("</think>")
    return None if "<think>" in rest else rest.strip()


def _has_number(text: str, max_score: float) -> bool:
    """Whether a number is left in a text once the form (5-7-5) and the scale (0-10) are taken out."""
    scale = rf"\b[01]\s*(?:-|–|to)\s*{re.escape(f'{max_score:g}')}\b"
    return re.search(r"\d", re.sub(f"{FORM}|{scale}", "", text)) is not None


def _out_of_range(name: str, value: float, most: float) -> Unjudged:
    return Unjudged(f"{name} {str(value)[:20]} is outside 0 to {most:g}")  # an int may be too long to format
