"""What a run directory says, read while the run goes on or after it: numbers, evaluations, poems."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar

from rlhaiku.config import RunConfig, read_config
from rlhaiku.errors import BadInput
from rlhaiku.haiku.structure import score_structure

MAX_HELD_OUT = 24
"""Prompts whose answers are shown over the evaluations; evenly spread."""
MAX_SAMPLED_STEPS = 12
"""Steps whose groups are shown; evenly spread, the first and the last among them."""

Row = dict[str, float]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class VerseLine:
    """A line of a poem as the page colours it."""

    syllables: int
    fit: str
    """`fits`, `near` (one off), `off`, or `extra` for a line that is not the poem's."""
    text: str


@dataclass(frozen=True, slots=True)
class Poem:
    """One completion."""

    lines: tuple[VerseLine, ...]
    reward: float | None
    """None if it was not scored."""
    unscored: str
    advantage: float | None
    """None where it was not trained on."""
    components: dict[str, float]
    weight_version: int
    is_truncated: bool


@dataclass(frozen=True, slots=True)
class SampledGroup:
    """One prompt's completions at one train step."""

    topic: str
    prompt: str
    poems: tuple[Poem, ...]

    @property
    def mean(self) -> float | None:
        """Mean reward of those that were scored."""
        rewards = [poem.reward for poem in self.poems if poem.reward is not None]
        return sum(rewards) / len(rewards) if rewards else None


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The first answer to one held-out prompt after each evaluated step."""

    topic: str
    answers: tuple[tuple[int, Poem], ...]


@dataclass(frozen=True, slots=True)
class RunData:
    """Everything the report shows."""

    name: str
    config: RunConfig
    rows: tuple[Row, ...]
    """Of `metrics.jsonl`, one a train step."""
    evaluations: tuple[tuple[int, dict[str, Any]], ...]
    """Step and summary, in order."""
    sampled: tuple[tuple[int, tuple[SampledGroup, ...]], ...]
    """Step and groups, in order."""
    held_out: tuple[HeldOut, ...]


def read_run(directory: Path) -> RunData:
    """Reads a run directory; a row that is just being written is left out. Raises BadInput if there is no run."""
    if not (directory / "config.toml").is_file():
        raise BadInput("a report needs a run directory", str(directory), "Name one that `rlhaiku train` made.")
    evaluations = sorted(_evaluations(directory), key=itemgetter(0))
    return RunData(
        directory.resolve().name,
        read_config(directory / "config.toml"),
        tuple(_rows(directory / "metrics.jsonl")),
        tuple((step, content["summary"]) for step, content in evaluations),
        tuple(_sampled(list(_rows(directory / "samples.jsonl")))),
        tuple(_held_out([(step, content["samples"]) for step, content in evaluations])),
    )


def _evaluations(directory: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Step and content; a file that a crash or a copy cut off is left out."""
    for path in directory.glob("eval/step-*.json"):
        try:
            content = json.loads(path.read_text())
        except (json.JSONDecodeError, UnicodeDecodeError):
            continue
        yield int(path.stem.removeprefix("step-")), content


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return


def _sampled(rows: list[dict[str, Any]]) -> Iterator[tuple[int, tuple[SampledGroup, ...]]]:
    by_step = [(step, list(of_step)) for step, of_step in groupby(rows, key=lambda row: row["step"])]
    for step, of_step in _spread(by_step, MAX_SAMPLED_STEPS):
        groups = []
        for _, of_group in groupby(of_step, key=lambda row: row["group"]):
            members = list(of_group)
            poems = tuple(_poem(row) for row in members)
            groups.append(SampledGroup(members[0]["topic"], members[0]["prompt"], poems))
        yield step, tuple(groups)


def _held_out(evaluations: list[tuple[int, list[dict[str, Any]]]]) -> Iterator[HeldOut]:
    """Always the first completion: never chosen by how good it is."""
    first: dict[str, tuple[str, list[tuple[int, Poem]]]] = {}
    for step, samples in evaluations:
        for row in samples:
            _, answers = first.setdefault(row["prompt_id"], (row["topic"], []))
            if not answers or answers[-1][0] != step:
                answers.append((step, _poem(row)))
    for topic, answers in _spread(list(first.values()), MAX_HELD_OUT):
        yield HeldOut(topic, tuple(answers))


def _spread(items: list[T], most: int) -> list[T]:
    """At most so many, evenly spread, the first and the last among them."""
    if len(items) <= most:
        return items
    return [items[round(place * (len(items) - 1) / (most - 1))] for place in range(most)]


def _poem(row: dict[str, Any]) -> Poem:
    return Poem(
        tuple(verse_lines(row["text"])),
        row.get("reward"),
        row.get("unscored", ""),
        row.get("advantage"),
        {name: value for name, value in row.get("components", {}).items() if "/" not in name},
        row["weight_version"],
        row["finish_reason"] == "length",
    )


def verse_lines(text: str) -> Iterator[VerseLine]:
    """A text's lines, each with its syllables and whether it fits."""
    for line in score_structure(text).lines:
        if line.target is None:
            yield VerseLine(line.syllables, "extra", line.text)
            continue
        off = abs(line.syllables - line.target)
        fit = "off" if line.error or off > 1 else "near" if off else "fits"
        yield VerseLine(line.syllables, fit, line.text)
