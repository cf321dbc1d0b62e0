"""Shows what a poem earns and why: syllables above each word, each line's target, the components, the total."""

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.cells import cell_len, set_cell_size
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from launch.console import make_console, visible
from rlhaiku.errors import BadInput
from rlhaiku.haiku.dataset import user_prompt
from rlhaiku.haiku.dictionary import Dictionary, add_readings, load_dictionary
from rlhaiku.haiku.reward import HaikuReward, Mode
from rlhaiku.haiku.seed_mode import count_segment, seed_lines
from rlhaiku.haiku.structure import TARGETS, Line, score_structure
from rlhaiku.haiku.syllables import spoken_as
from rlhaiku.types import Prompt, Scored

STDIN = "-"

_SEPARATOR = re.compile(r"^---[ \t]*$", re.MULTILINE)
"""What would steer the terminal, or turn the direction of what follows, and bytes that are no text."""
_BAR = 16
"""Characters of a full bar."""


@dataclass(frozen=True, slots=True)
class ShownLine:
    """A line as the command shows it."""

    text: str
    target: int | None
    counts: tuple[tuple[str, str], ...]
    """Each stretch without blanks, and the syllables above it; a guess begins with `~`."""
    syllables: int
    fewest: int
    most: int
    error: str = ""


@dataclass(frozen=True, slots=True)
class ScoredPoem:
    """A poem and everything there is to say about it."""

    lines: tuple[ShownLine, ...]
    scored: Scored

    def to_dict(self) -> dict[str, object]:
        """The poem as `--json` has it."""
        return {
            "total": self.scored.total,
            "components": dict(self.scored.components),
            "lines": [
                {"text": line.text, "syllables": [line.fewest, line.most], "target": line.target} for line in self.lines
            ],
        }


def read_poems(source: str) -> list[str]:
    """The poems of a file, or of the standard input if `source` is `-`; a line `---` separates them.

    Raises BadInput if there is no such file, or no poem in it.
    """
    try:
        text = sys.stdin.read() if source == STDIN else Path(source).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise BadInput("FILE must be a text file", source, f"{reason}. Use - for the standard input.") from None
    poems = [poem.strip("\n") for poem in _SEPARATOR.split(text) if poem.strip()]
    if not poems:
        raise BadInput("FILE must hold a poem", source, "Write one, lines separated by newlines or ` / `.")
    return poems


def score_poem(text: str, topic: str = "", mode: Mode = "default") -> ScoredPoem:
    """Scores a poem as a run would score it as an answer to the prompt for `topic`."""
    prompt = Prompt("score", topic, user_prompt(topic) if topic else "", ())
    lines = _seed_lines(text) if mode == "seed" else _lines(text)
    return ScoredPoem(lines, HaikuReward(mode=mode)(prompt, text))


def print_scores(poems: Sequence[ScoredPoem], as_json: bool) -> None:
    """Prints one object a line, or a panel for each poem."""
    if as_json:
        for poem in poems:
            print(json.dumps(poem.to_dict(), ensure_ascii=False))
        return
    console = make_console()
    for poem in poems:
        console.print(poem_panel(poem))


def poem_panel(poem: ScoredPoem) -> RenderableType:
    """A poem with its counts, then its components as bars."""
    verse = Table.grid(padding=(0, 3))
    verse.add_column(no_wrap=True, overflow="ellipsis")
    verse.add_column(no_wrap=True)
    for line in poem.lines:
        verse.add_row(_words_view(line), _count_view(line))
    bars = Table.grid(padding=(0, 2))
    for name, value in poem.scored.components.items():
        label = name.replace("legitimacy/", "  ")
        bars.add_row(label, _bar(name, value), f"{value:.3g}")
    bars.add_row(Text("total", style="bold"), "", Text(f"{poem.scored.total:.3f}", style="bold"))
    return Panel(Group(verse, Text(), bars), expand=False, padding=(0, 2), border_style="dim")


def _words_view(line: ShownLine) -> Text:
    """Two rows: the syllables, each above the middle of its word, and the words."""
    above, below = Text(), Text()
    for stretch, count in line.counts:
        chunk = visible(stretch)
        width = max(cell_len(chunk), len(count))
        above.append(count.center(width) + " ", style="magenta" if count.startswith("~") else "cyan")
        below.append(set_cell_size(chunk, width) + " ", style="" if line.target is not None else "dim")
    return Text("\n", no_wrap=True, overflow="ellipsis").join([above, below])


def _count_view(line: ShownLine) -> Text:
    """`5 of 5`, and what the line can be spoken with if that is more than one count."""
    ways = f"  ({line.fewest} to {line.most})" if line.fewest != line.most else ""
    if line.error:
        return Text(f"\n{line.error}", style="red")
    if line.target is None:
        return Text(f"\n{line.syllables:>2}{ways}  not one of the three lines", style="yellow")
    off = abs(line.syllables - line.target)
    style, mark = ("green", "✓") if off == 0 else ("yellow", "~") if off == 1 else ("red", "✗")
    return Text(f"\n{line.syllables:>2} of {line.target} {mark}{ways}", style=style)


def _bar(name: str, value: float) -> Text:
    """A bar for a component in [0, 1], for what counts against a poem an empty one is good; what further lines cost."""
    if name == "extra_lines":
        return Text(f"points x {len(TARGETS)}/{len(TARGETS) + value:.0f}", style="yellow") if value else Text()
    filled = round(min(1.0, max(0.0, value)) * _BAR)
    against = name == "oov_share"
    neutral = name in ("topic", "strict")
    good = value < 0.2 if against else value == 1.0
    style = "cyan" if neutral else "green" if good else "yellow" if value > 0 else "red"
    return Text("█" * filled, style=style) + Text("·" * (_BAR - filled), style="dim")


def _lines(text: str) -> tuple[ShownLine, ...]:
    dictionary = load_dictionary()
    return tuple(
        ShownLine(
            line.text,
            line.target,
            _counts(line, dictionary),
            line.syllables,
            line.fewest,
            line.most,
            line.error,
        )
        for line in score_structure(text).lines
    )


def _counts(line: Line, dictionary: Dictionary) -> tuple[tuple[str, str], ...]:
    """What stands above each stretch of the line when it is spoken with its syllables."""
    chunks = line.text.split()
    said = dict(zip(dictionary.words(line.text), line.words, strict=False))  # a line may be longer than what is read
    words = [dictionary.words(chunk) for chunk in chunks]
    guessed = [not all(word.listed for word in some) for some in words]
    parts = [add_readings(said.get(word, word).readings for word in some) for some in words]
    spoken = spoken_as(parts, line.syllables)
    return tuple(
        (chunk, f"{'~' * guess}{count}" if count else "")
        for chunk, count, guess in zip(chunks, spoken, guessed, strict=True)
    )


def _seed_lines(text: str) -> tuple[ShownLine, ...]:
    """The tutorial's segments; it knows one way to say a word, and gives targets to the first three segments."""
    dictionary = load_dictionary()
    shown = []
    for index, (segment, total) in enumerate(seed_lines(text)):
        counts = tuple((chunk, str(count_segment(chunk, dictionary))) for chunk in segment.split())
        shown.append(ShownLine(segment, TARGETS[index] if index < len(TARGETS) else None, counts, total, total, total))
    return tuple(shown)
