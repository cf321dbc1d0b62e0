"""The report's charts: drawn once, written as PNG, and as SVG that takes the page's own ink, light or dark."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from launch.report.data import Row, RunData

INK = "#010203"
"""Stands for the page's text colour: `currentColor` in SVG, black in PNG."""
PNG_INK = "#222222"
COLORS = ("#2a7fbf", "#d1701f", "#3a9a5b", "#9a5fc0", "#c0484f", "#8a8f3c")
"""Of middle lightness: they are read on white and on near-black."""
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "grid.color": INK,
    "grid.alpha": 0.12,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text: it takes the page's font
    "figure.constrained_layout.use": True,
}
PANEL = (3.6, 2.3)
"""Inches of one small chart."""
CONFIDENCE = 1.96
"""Standard errors of a 95 % interval."""
HEALTH = {
    "group/zero_variance_share": "groups without signal, share",
    "completion/truncated_share": "completions cut off, share",
    "completion/distinct_2": "word pairs that are distinct, of one poem a prompt",
    "completion/length_mean": "tokens a completion",
    "train/grad_norm": "gradient norm",
    "train/logprob_gap": "|trainer - engine| logprob, nats",
    "rollout/staleness_mean": "staleness, versions",
    "reward/unscored": "unscored completions",
    "rollout/tokens_per_s": "rollout, tokens/s",
    "train/kl": "KL to the reference, nats/token",
}


@dataclass(frozen=True, slots=True)
class Chart:
    """One drawing."""

    name: str
    """Its file's name."""
    title: str
    note: str
    """What is drawn, and how its intervals were made."""
    svg: str


def draw_charts(run: RunData, directory: Path) -> list[Chart]:
    """Draws what the run has numbers for, and writes each as `NAME.png`."""
    charts = []
    for name, title, note, draw in (
        ("reward", "Reward and held-out poems", "Left: mean of a step's rewards; band: 95 % interval, a group counting "
         "once. Right: held-out topics the training never saw; bars: 95 % bootstrap over prompts.", _reward),
        ("components", "What the reward is made of", "Mean of each component; band as above.", _components),
        ("time", "Where the time goes", "Seconds of each train step by phase.", _time),
        ("health", "Group health", "Signs that a run learns less than it could.", _health),
    ):  # fmt: skip
        with rc_context(STYLE | {"svg.hashsalt": name}):  # ids that no other chart of the page has
            figure = draw(run)
            if figure:
                charts.append(Chart(name, title, note, _svg(figure, name)))
                _png(figure, directory / f"{name}.png")
    return charts


def _svg(figure: Figure, name: str) -> str:
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px; font-family: inherit", svg)
    head, rest = svg.split(">", 1)
    head = re.sub(r' (?:width|height)="[^"]*"', "", head)  # the page says how wide
    return f'{head} role="img" aria-label="{name}">{rest}'


def _png(figure: Figure, path: Path) -> None:
    for text in figure.findobj(lambda artist: hasattr(artist, "set_color") and hasattr(artist, "get_text")):
        if text.get_color() == INK:  # type: ignore[attr-defined]
            text.set_color(PNG_INK)  # type: ignore[attr-defined]
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, facecolor="white")


def _panels(run: RunData, count: int, columns: int = 3) -> tuple[Figure, list[Axes]]:
    """That many axes over the run's steps, in rows."""
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(PANEL[0] * 3, PANEL[1] * rows))
    grid = figure.subplots(rows, columns, squeeze=False)
    axes = [axis for row in grid for axis in row]
    for axis in axes:
        axis.set_xlim(0, run.config.num_steps)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        axis.set_xlabel("train step")
    for empty in axes[count:]:
        empty.set_visible(False)
    return figure, axes[:count]


def _line(axis: Axes, rows: Sequence[Row], name: str, color: str, label: str = "") -> None:
    """A number over the steps, with its band where it has one."""
    has = [row for row in rows if row.get(name) is not None]
    steps, values = [row["step"] for row in has], [row[name] for row in has]
    axis.plot(steps, values, color=color, linewidth=1.6, label=label or None)
    if name.startswith("reward/"):  # a step with one scored group has no error, and leaves a gap in the band
        errors = [CONFIDENCE * row.get("reward_se/" + name.removeprefix("reward/"), nan) for row in has]
        low, high = ([value + sign * error for value, error in zip(values, errors, strict=True)] for sign in (-1, 1))
        axis.fill_between(steps, low, high, color=color, alpha=0.2, linewidth=0)


def _reward(run: RunData) -> Figure | None:
    if not run.rows and not run.evaluations:
        return None
    figure, [left, right] = _panels(run, 2)
    figure.set_size_inches(PANEL[0] * 3, PANEL[1] * 1.35)
    _line(left, run.rows, "reward/mean", COLORS[0])
    left.set_title("reward of training poems")
    steps = [step for step, _ in run.evaluations]
    structure = [summary["structure_mean"] for _, summary in run.evaluations]
    bars = [
        [mean - summary["structure_ci"][0] for mean, (_, summary) in zip(structure, run.evaluations, strict=True)],
        [summary["structure_ci"][1] - mean for mean, (_, summary) in zip(structure, run.evaluations, strict=True)],
    ]
    if steps:
        right.errorbar(steps, structure, yerr=bars, color=COLORS[0], linewidth=1.6, capsize=3, label="structure")
    for name, label, color in (
        ("strict_575", "exactly 5-7-5", COLORS[1]), ("topic_mention", "topic named", COLORS[2]),
        ("distinct_2", "distinct word pairs", COLORS[3]),
    ):  # fmt: skip
        values = [summary[name] for _, summary in run.evaluations]
        right.plot(steps, values, color=color, linewidth=1.6, marker="o", markersize=3, label=label)
    right.set_ylim(-0.03, 1.03)
    right.set_title("held-out topics")
    if steps:
        right.legend(loc="lower right", fontsize=9)
    return figure


def _components(run: RunData) -> Figure | None:
    errors = {name for row in run.rows for name in row if name.startswith("reward_se/")}
    names = sorted({name.removeprefix("reward_se/") for name in errors} - {"mean"})
    if not names:
        return None
    figure, axes = _panels(run, len(names))
    for axis, name, color in zip(axes, names, COLORS * len(names), strict=False):
        _line(axis, run.rows, f"reward/{name}", color)
        axis.set_title(name)
    return figure


def _time(run: RunData) -> Figure | None:
    if not run.rows:
        return None
    figure, [axis] = _panels(run, 1)
    phases = [name for name in run.rows[-1] if name.startswith("time/")]
    steps = [row["step"] for row in run.rows]
    values = [[row.get(name, 0.0) for row in run.rows] for name in phases]
    labels = [name.removeprefix("time/").removesuffix("_s") for name in phases]
    axis.stackplot(steps, values, labels=labels, colors=COLORS, alpha=0.75, linewidth=0)
    axis.set_ylabel("seconds")
    axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=9)
    return figure


def _health(run: RunData) -> Figure | None:
    names = [name for name in HEALTH if any(row.get(name) for row in run.rows)]
    if not names:
        return None
    figure, axes = _panels(run, len(names))
    for axis, name in zip(axes, names, strict=True):
        _line(axis, run.rows, name, COLORS[0])
        axis.set_title(HEALTH[name])
        axis.set_ylim(bottom=0)
    return figure
