"""What a person sees of a run: a header, one line per step, poems now and then, before and after at the end."""

import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from launch.live import LiveView
from rlhaiku.checkpoints import RunState
from rlhaiku.config import RunConfig
from rlhaiku.errors import RlhaikuError
from rlhaiku.evaluation import Answer, Comparison, EvalSummary, answers_of, summarize
from rlhaiku.haiku.structure import score_structure
from rlhaiku.health import Advice, advise
from rlhaiku.judge import JudgeSettings
from rlhaiku.metrics import StepReport, step_metrics
from rlhaiku.types import ScoredGroup

WIDTH = 110
"""Columns when the output is not a terminal."""


class ConsoleReporter:
    """Tells a run's story on the terminal."""

    def __init__(
        self, config: RunConfig, directory: Path, judge: JudgeSettings | None = None, resume_with: str = ""
    ) -> None:
        """`resume_with`: the command that goes on with this run, where it is not the local one."""
        self._config, self._directory, self._resume_with = config, directory, resume_with
        self._judge = f"{judge.model} at {judge.url}" if judge else "off"
        self._console = make_console()
        self._live = LiveView(self._console, config.num_steps)
        self._advised: dict[str, Advice] = {}
        self._started = time.perf_counter()
        self._step_seconds: list[float] = []
        self.recoveries: list[tuple[str, float]] = []
        """Who died and was replaced, and the seconds it took."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def header(self, num_prompts: int, num_held_out: int, inline_below: int) -> None:
        """Says what will run, and where; `inline_below`: poems that the driver scores itself, 0 for none."""
        rollout, trainer, reward = self._config.rollout, self._config.trainer, self._config.reward
        inline = f"; up to {inline_below - 1} poems at once are scored in the driver" if inline_below else ""
        self._console.print(Panel(
            f"model     {self._config.model.path}\n"
            f"prompts   {num_prompts} to train on, {num_held_out} held out\n"
            f"a step    {rollout.groups_per_step} prompts x {rollout.group_size} completions, "
            f"{self._config.num_steps} steps, staleness <= {rollout.max_staleness}, seed {self._config.seed}\n"
            f"actors    {rollout.num_engines} {rollout.engine} engines x {rollout.threads_per_engine} thread, "
            f"{trainer.backend} trainer x {trainer.threads} threads, {reward.num_workers} reward worker\n"
            f"reward    {', '.join(reward.functions)}; judge: {self._judge}{inline}\n"
            f"output    {self._directory}",
            title="rlhaiku", title_align="left", expand=False,
        ))
        self._console.print("[dim]starting Ray and the actors ...[/]")

    def step(self, report: StepReport) -> None:
        """A new live view, or one line; poems every `output.poems_interval` steps; advice when a sign appears."""
        row = step_metrics(report)
        self._step_seconds.append(sum(report.seconds.values()))
        if self._live.is_on:
            self._live.update(row, self._eta(report.state.step))
        else:
            self._print_line(report, row)
        if report.state.step % self._config.output.poems_interval == 0:
            self._console.print(_poems(report.groups[:2]))
        advice = advise(row)
        for name in advice.keys() - self._advised.keys():
            self._tell(f"[yellow]{escape(advice[name].sign)}[/]: {escape(advice[name].remedy)}")
        self._advised = advice

    def _print_line(self, report: StepReport, row: Mapping[str, float]) -> None:
        named = {name: row[f"reward/{name}"] for name in ("structure", "strict", "topic") if f"reward/{name}" in row}
        shares = "".join(f"  {name} {value:.2f}" for name, value in named.items())
        lost = f"  [red]unscored {row['reward/unscored']:.0f}[/]" if row["reward/unscored"] else ""
        seconds = report.seconds
        self._console.print(
            f"step {report.state.step:>4}/{self._config.num_steps}  reward [bold]{row['reward/mean']:.3f}[/]{shares}"
            f"  flat groups {row['group/zero_variance_share']:.2f}{lost}"
            f"  [dim]{row['rollout/tokens_per_s']:.0f} tok/s  rollout {seconds['rollout']:.2f} train "
            f"{seconds['train']:.2f} sync {seconds['sync']:.3f} s  eta {self._eta(report.state.step)}[/]",
            highlight=False, soft_wrap=True,
        )

    def evaluation(self, state: RunState, groups: Sequence[ScoredGroup]) -> None:
        """One line."""
        summary = summarize(answers_of(groups))
        said = f"[bold cyan]eval[/] after step {state.step}: {describe(summary)}"
        self._console.print(said, highlight=False, soft_wrap=True)

    def resuming(self, state: RunState, attempt: int, problems: Sequence[str], changed: Sequence[str] = ()) -> None:
        """Says from where, which checkpoints were passed over, and what is no longer as in the attempt before."""
        for problem in problems:
            self._tell(f"[red]unusable checkpoint[/] {escape(problem)}; going back to the one before")
        where = f"after step {state.step}" if state.step else "from the beginning, since there is no checkpoint yet"
        replay = "rollouts that were finished are replayed from the ledger"
        if changed:
            replay = f"[yellow]changed since the last attempt: {', '.join(changed)}[/], so nothing is replayed"
        self._tell(f"resuming {where}, attempt {attempt}; {replay}")

    def died(self, name: str, why: str) -> None:
        """One line; a hang comes with its report."""
        self._tell(f"[yellow]{escape(name)} died and is being replaced[/]{escape(why and f': {why}')}")

    def recovered(self, name: str, seconds: float, up_s: float) -> None:
        """One line; what is beyond the start of a process and the loading of a model is ours."""
        self.recoveries.append((name, seconds))
        since = f"{seconds:.1f} s after its death was noticed, {up_s:.1f} s after its successor was up"
        self._tell(f"[yellow]{escape(name)} works again, {since}[/]")

    def restarting(self, death: RlhaikuError) -> None:
        """One line, and why."""
        self._tell(f"[yellow]starting again from the newest checkpoint[/], since {escape(str(death))}")

    def stopping(self) -> None:
        """Acknowledges the first Ctrl-C."""
        self._console.print("[yellow]finishing this step, then saving; Ctrl-C again to end at once[/]")

    def ended_at_once(self) -> None:
        """Acknowledges the second Ctrl-C."""
        self._live.stop()
        self._tell(f"ended at once; go on from the newest checkpoint with\n  [bold]{self._resume_command()}[/]")

    def end(self, comparison: Comparison | None) -> None:
        """Before and after, and how to go on."""
        self._live.stop()
        command, resume = _command(), self._resume_command()
        if comparison is None:
            said = f"interrupted, state saved; go on with\n  [bold]{resume}[/]"
            self._console.print(said, highlight=False, soft_wrap=True)
            return
        self._console.print(comparison_view(comparison))
        minutes = (time.perf_counter() - self._started) / 60
        if self._resume_with:  # this directory is somewhere a person cannot type commands about
            said = f"done in {minutes:.1f} minutes; train it further with\n  [bold]{resume}[/]"
            self._console.print(said, highlight=False, soft_wrap=True)
            return
        newest = sorted(self._directory.glob("checkpoints/step-*"))[-1]
        self._console.print(
            f"done in {minutes:.1f} minutes; everything is in [bold]{self._directory}[/]\n"
            f"  score the model again   [bold]{command} evaluate {newest}[/]\n"
            f"  train it further        [bold]{resume} --set num_steps={self._config.num_steps * 2}[/]\n"
            f"  your own model          [bold]{command} train --set model.path=DIRECTORY_OR_HUB_ID[/]",
            highlight=False, soft_wrap=True,
        )

    def _resume_command(self) -> str:
        return self._resume_with or f"{_command()} train --resume --output-dir {self._directory}"

    def _tell(self, said: str) -> None:
        self._console.print(said, highlight=False, soft_wrap=True)

    def _eta(self, step: int) -> str:
        left = fmean(self._step_seconds[-10:]) * (self._config.num_steps - step)
        return f"{int(left // 60)}:{int(left % 60):02d}"


def _command() -> str:
    return "rlhaiku" if shutil.which("rlhaiku") else ".venv/bin/rlhaiku"


def make_console() -> Console:
    """A rich console that keeps its width when piped, so that logs look like terminals."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)


def describe(summary: EvalSummary) -> str:
    """One evaluation in a line."""
    low, high = summary.structure_ci
    return (
        f"structure {summary.structure_mean:.3f} [{low:.3f}, {high:.3f}]  strict 5-7-5 {summary.strict_575:.1%}"
        f"  topic {summary.topic_mention:.1%}  distinct-2 {summary.distinct_2:.3f}"
        f"  ({summary.prompts} prompts x {summary.completions // summary.prompts})"
    ).replace("[", "\\[")


def comparison_view(comparison: Comparison) -> RenderableType:
    """The held-out numbers before and after, and five poems of each, side by side."""
    table = Table(title="held-out topics, before and after", title_justify="left")
    for heading in ("", "base", "trained", "paired difference, 95 % interval"):
        table.add_column(heading, justify="left" if not heading else "right")
    before, after = comparison.base.to_dict(), comparison.trained.to_dict()
    labels = {"structure_mean": "structure", "strict_575": "strict 5-7-5", "topic_mention": "topic mentioned"}
    for key, label in {**labels, "distinct_2": "distinct-2"}.items():
        difference = comparison.differences.get(key)
        shown = f"{difference.mean:+.3f}  [{difference.low:+.3f}, {difference.high:+.3f}]" if difference else ""
        table.add_row(label, f"{before[key]:.3f}", f"{after[key]:.3f}", Text(shown))
    poems = Table(title="first completion of five held-out prompts", title_justify="left", show_lines=True)
    for heading in ("topic", "base", "trained"):
        poems.add_column(heading)
    for base, trained in comparison.pairs:
        poems.add_row(base.topic, poem_view(base.text), poem_view(trained.text))
    return Group(table, poems)


def poem_view(text: str) -> Text:
    """A poem with its syllables counted: green where a line fits, yellow one off, red otherwise."""
    view = Text()
    for line in score_structure(text).lines:
        off = 9 if line.target is None else abs(line.syllables - line.target)
        view.append(f"{line.syllables:>2} ", style="green" if off == 0 else "yellow" if off == 1 else "red")
        view.append(f"{line.text}\n")
    view.rstrip()
    return view


def _poems(groups: Sequence[ScoredGroup]) -> Table:
    """The first completion of each group: never chosen by how good it is."""
    table = Table.grid(padding=(0, 4))
    answers: list[Answer] = [answers_of([scored])[0] for scored in groups]
    table.add_row(*(f"   [dim]{answer.topic}[/]" for answer in answers))
    table.add_row(*(poem_view(answer.text) for answer in answers))
    return table
