"""The live view of a run on a terminal: where it is, where the reward is going, and where the time goes."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

BLOCKS = "▁▂▃▄▅▆▇█"
HISTORY = 48
"""Blocks in the sparkline: a run of more steps has several in each."""
BAR = 16
"""Blocks of the bar that shows where a step's time goes."""
PHASES = {"rollout": "cyan", "train": "magenta", "sync": "yellow"}


class LiveView:
    """Redrawn in place after every step, and left standing at the end; nothing where a cursor cannot be moved."""

    def __init__(self, console: Console, num_steps: int) -> None:
        self._num_steps = num_steps
        self._rewards: list[float] = []
        can_move = console.is_terminal and not console.is_dumb_terminal
        self._live = Live(console=console, refresh_per_second=4) if can_move else None

    @property
    def is_on(self) -> bool:
        """Whether anybody sees it."""
        return self._live is not None

    def update(self, row: Mapping[str, float], eta: str) -> None:
        """Shows one row of `step_metrics`."""
        if self._live is None:
            return
        self._rewards.append(row["reward/mean"])
        self._live.update(self._view(row, eta))
        self._live.start()  # once: later calls change nothing

    def stop(self) -> None:
        """Leaves the last view, with the whole curve, above what comes next."""
        if self._live is not None:
            self._live.stop()

    def _view(self, row: Mapping[str, float], eta: str) -> RenderableType:
        step = int(row["step"])
        head = Table.grid(padding=(0, 1))
        head.add_row(f"step {step}/{self._num_steps}", ProgressBar(self._num_steps, step, width=HISTORY), f"eta {eta}")
        reward = Text.assemble("reward ", (f"{row['reward/mean']:.3f} ", "bold"), (sparkline(self._rewards), "green"))
        if "rollout/staleness_mean" in row:
            reward.append(f"  staleness {row['rollout/staleness_mean']:.2f}", style="dim")
        return Group(head, reward, _facts(row), _time(row))


def sparkline(values: Sequence[float]) -> str:
    """One block per value, or per mean of neighbours where there are many, from the lowest to the highest."""
    count = min(len(values), HISTORY)
    cuts = [place * len(values) // count for place in range(count + 1)]
    values = [fmean(values[start:end]) for start, end in pairwise(cuts)]
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    return "".join(BLOCKS[int((value - low) / span * (len(BLOCKS) - 1))] for value in values)


def _facts(row: Mapping[str, float]) -> Text:
    shown = {
        "structure": "reward/structure",
        "strict": "reward/strict",
        "topic": "reward/topic",
        "flat groups": "group/zero_variance_share",
    }
    parts = [f"{label} {row[name]:.2f}" for label, name in shown.items() if name in row]
    unscored = Text(f"  unscored {row['reward/unscored']:.0f}", style="red" if row["reward/unscored"] else "")
    return Text("  ".join(parts)) + unscored


def _time(row: Mapping[str, float]) -> Text:
    """The phases of a step, each as long as its share."""
    seconds = {phase: row[f"time/{phase}_s"] for phase in PHASES}
    total = sum(seconds.values()) or 1.0
    line = Text()
    for phase, style in PHASES.items():
        line.append("━" * max(1, round(seconds[phase] / total * BAR)), style=style)
    for phase, style in PHASES.items():
        line.append(f"  {phase} {seconds[phase]:.2f} s", style=style)
    line.append(f"  {row['rollout/tokens_per_s']:.0f} tok/s", style="dim")
    return line
