"""What a person sees of a run: a header, one line per step, poems now and then, before and after at the end.

Whatever comes from outside (poems, topics, paths, errors) is shown as text: it is never markup, and never steers the
terminal.
"""

import re
import shlex
import shutil
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from itertools import starmap
from pathlib import Path
from statistics import fmean
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from launch.live import LiveView
from launch.rewards import OWN, from_python
from rlhaiku.checkpoints import RunState
from rlhaiku.config import RunConfig, describe_settings, load_config, preset_names
from rlhaiku.errors import RlhaikuError
from rlhaiku.evaluation import Answer, Comparison, EvalSummary, answers_of, summarize
from rlhaiku.haiku.structure import score_structure
from rlhaiku.health import advise
from rlhaiku.judge import JudgeSettings
from rlhaiku.metrics import StepReport
from rlhaiku.types import ScoredGroup

WIDTH = 110
"""Columns when the output is not a terminal."""
HEALTHY_STEPS = 10
"""So long must a sign be away before its advice is given again."""
MOST_NAMED = 4
"""Changed settings that the header names."""
MOST_CHANGED = 12
"""Changed settings beyond which a run is no longer one of the preset."""
CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | dict.fromkeys(
    [*range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A), *range(0xD800, 0xE000)], 0xFFFD
)
"""Characters that steer a terminal, turn its text around or cannot be written, and what is shown for them."""


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
        self._advised: dict[str, int] = {}
        """The last step in which each sign was seen."""
        self._started = time.perf_counter()
        self._step_seconds: list[float] = []
        self.recoveries: list[tuple[str, float]] = []
        """Who died and was replaced, and the seconds it took."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def header(self, placed: str, num_prompts: int, num_held_out: int, inline_below: int) -> None:
        """Says what will run, and where; `inline_below`: poems that the driver scores itself, 0 for none."""
        config, rollout = self._config, self._config.rollout
        inline = f"; up to {inline_below - 1} poems at once are scored in the driver" if inline_below else ""
        facts = Table.grid(padding=(0, 2))
        for name, value in (
            ("model", config.model.path),
            ("preset", _preset(config)),
            ("prompts", f"{num_prompts} to train on, {num_held_out} held out"),
            ("a step", f"{rollout.groups_per_step} prompts x {rollout.group_size} completions, {config.num_steps} "
                       f"steps, staleness <= {rollout.max_staleness}, seed {config.seed}"),
            ("actors", f"{rollout.engine} engine, {config.trainer.backend} trainer: {placed}"),
            ("reward", f"{' + '.join(starmap(_term, config.reward.functions.items()))}; judge: {self._judge}{inline}"),
            ("output", str(self._directory)),
        ):  # fmt: skip
            facts.add_row(name, Text(visible(value)))
        self._console.print(Panel(facts, title="rlhaiku", title_align="left", expand=False))
        self._tell(("starting Ray and the actors ...", "dim"))

    def step(self, report: StepReport) -> None:
        """A new live view, or one line; poems every `output.poems_interval` steps; advice when a sign appears."""
        row, step = report.metrics, report.state.step
        self._step_seconds.append(sum(report.seconds.values()))
        if self._live.is_on:
            self._live.update(row, self._eta(step))
        else:
            self._print_line(report, row)
        if step % self._config.output.poems_interval == 0:
            if self._live.is_on:  # its steps leave no lines behind
                self._tell((f"step {step}", "dim"))
            self._console.print(_poems(report.groups[:2]))
        for name, advice in advise(row).items():
            if name not in self._advised or step - self._advised[name] > HEALTHY_STEPS:
                self._tell((advice.sign, "yellow"), f": {advice.remedy}")
            self._advised[name] = step

    def _print_line(self, report: StepReport, row: Mapping[str, float]) -> None:
        named = {name: row[f"reward/{name}"] for name in ("structure", "strict", "topic") if f"reward/{name}" in row}
        shares = "".join(f"  {name} {value:.2f}" for name, value in named.items())
        lost = f"  unscored {row['reward/unscored']:.0f}" if row["reward/unscored"] else ""
        seconds = report.seconds
        self._tell(
            f"step {report.state.step:>4}/{self._config.num_steps}  reward ", (f"{row['reward/mean']:.3f}", "bold"),
            f"{shares}  flat groups {row['group/zero_variance_share']:.2f}", (lost, "red"),
            (f"  {row['rollout/tokens_per_s']:.0f} tok/s  rollout {seconds['rollout']:.2f} train "
             f"{seconds['train']:.2f} sync {seconds['sync']:.3f} s  eta {self._eta(report.state.step)}", "dim"),
        )  # fmt: skip

    def evaluation(self, state: RunState, groups: Sequence[ScoredGroup]) -> None:
        """One line; on a terminal that is too narrow, more of them."""
        said = f" after step {state.step}: {describe(summarize(answers_of(groups)))}"
        self._tell(("eval", "bold cyan"), _folded(said, self._console.width - 4) if self._console.is_terminal else said)

    def resuming(self, state: RunState, attempt: int, problems: Sequence[str], changed: Sequence[str] = ()) -> None:
        """Says from where, which checkpoints were passed over, and what is no longer as in the attempt before."""
        for problem in problems:
            self._tell(("unusable checkpoint", "red"), f" {problem}; going back to the one before")
        where = f"after step {state.step}" if state.step else "from the beginning, since there is no checkpoint yet"
        if changed:
            said = f"changed since the last attempt: {', '.join(changed)}"
            self._tell(f"resuming {where}, attempt {attempt}; ", (said, "yellow"), ", so nothing is replayed")
        else:
            self._tell(f"resuming {where}, attempt {attempt}; rollouts that were finished are replayed from the ledger")

    def died(self, name: str, why: str) -> None:
        """One line; a hang comes with its report."""
        self._tell((f"{name} died and is being replaced", "yellow"), why and f": {why}")

    def recovered(self, name: str, seconds: float, up_s: float) -> None:
        """One line; what is beyond the start of a process and the loading of a model is ours."""
        self.recoveries.append((name, seconds))
        since = f"{seconds:.1f} s after its death was noticed, {up_s:.1f} s after its successor was up"
        self._tell((f"{name} works again, {since}", "yellow"))

    def restarting(self, death: RlhaikuError) -> None:
        """One line, and why."""
        self._tell(("starting again from the newest checkpoint", "yellow"), f", since {death}")

    def stopping(self) -> None:
        """Acknowledges the first Ctrl-C."""
        self._tell(("finishing this step, then saving; Ctrl-C again to end at once", "yellow"))

    def ended_at_once(self) -> None:
        """Acknowledges the second Ctrl-C."""
        self._live.stop()
        self._tell("ended at once; go on from the newest checkpoint with")
        self._offer("", self._resume())

    def end(self, comparison: Comparison | None, report: str = "") -> None:
        """Before and after, how to go on, and what is said of the report."""
        self._live.stop()
        if comparison is None:
            self._tell("interrupted, state saved; go on with")
            self._offer("", self._resume())
        else:
            self._console.print(comparison_view(comparison))
            where = "" if self._resume_with else f"; everything is in {self._directory}"
            self._tell(f"done in {(time.perf_counter() - self._started) / 60:.1f} minutes{where}")
            if not (self._resume_with and from_python(self._config)):  # else only the notebook has the reward
                self._offer("train it further", self._resume(self._config.num_steps * 2))
            if not self._resume_with:  # else the directory is somewhere a person cannot type commands about
                newest = sorted(self._directory.glob("checkpoints/step-*"))[-1:]
                for checkpoint in newest:
                    self._offer("score the model again", f"{rlhaiku_here()} evaluate {shlex.quote(str(checkpoint))}")
                bigger = {0: "train --preset one-gpu", 1: "plan --preset reference"}
                if more := bigger.get(self._config.cluster.gpus_per_node):
                    self._offer("a bigger model, on GPUs", f"{rlhaiku_here()} {more}")
                self._offer("your own model", f"{rlhaiku_here()} train --set model.path=DIRECTORY_OR_HUB_ID")
        if report:
            self._tell(report)

    def _resume(self, num_steps: int | None = None) -> str:
        """What to type to go on, up to `num_steps` in all."""
        if self._resume_with:
            return self._resume_with + ("" if num_steps is None else f" --steps {num_steps}")
        if own := from_python(self._config):  # the command line would train on with another reward
            given = "".join(f", {argument}={name}" for argument, name in own.items())
            config = "config" if num_steps is None else f'with_overrides(config, ["num_steps={num_steps}"])'
            return f"run({config}{given}, output_dir={str(self._directory)!r}, resume=True)"
        more = "" if num_steps is None else f" --set num_steps={num_steps}"
        return f"{rlhaiku_here()} train --resume --output-dir {shlex.quote(str(self._directory))}{more}"

    def _offer(self, what: str, command: str) -> None:
        """A command to copy: never broken into lines but by the terminal itself."""
        line = Text.assemble(f"  {what:<26}" if what else "  ", (visible(command), "bold"))
        self._console.print(line, highlight=False, soft_wrap=True)

    def _tell(self, *parts: str | tuple[str, str]) -> None:
        """A line in a log; on a terminal broken between words."""
        shown = [visible(part) if isinstance(part, str) else (visible(part[0]), part[1]) for part in parts]
        self._console.print(Text.assemble(*shown), highlight=False, soft_wrap=not self._console.is_terminal)

    def _eta(self, step: int) -> str:
        left = fmean(self._step_seconds[-10:]) * (self._config.num_steps - step)
        return f"{int(left // 60)}:{int(left % 60):02d}"


def visible(text: str) -> str:
    """The text with control characters, but for line ends and tabs, as pictures: it cannot steer a terminal."""
    return text.translate(CONTROLS)


def _folded(text: str, width: int) -> str:
    """The text in lines of that width, broken where there are two spaces."""
    glued = re.sub("(?<! ) (?! )", "\N{NO-BREAK SPACE}", text)
    lines = textwrap.wrap(glued, width, subsequent_indent="    ", drop_whitespace=True)
    return "\n".join(lines).replace("\N{NO-BREAK SPACE}", " ")


def rlhaiku_here() -> str:
    """How to type `rlhaiku` in the working directory: the command that belongs to this Python."""
    beside = Path(sys.executable).with_name("rlhaiku")
    found = shutil.which("rlhaiku")
    if not beside.exists() or (found and Path(found).samefile(beside)):
        return "rlhaiku"
    return shlex.quote(str(beside.relative_to(Path.cwd()) if beside.is_relative_to(Path.cwd()) else beside))


def _preset(config: RunConfig) -> str:
    """The preset a run was made from, and what was changed."""
    name, changed = _nearest_preset(config)
    if len(changed) > MOST_CHANGED:
        return "none"
    more = len(changed) - MOST_NAMED
    said = ", ".join(changed[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
    return f"{name}; changed: {said}" if changed else name


def _nearest_preset(config: RunConfig) -> tuple[str, list[str]]:
    """The shipped preset that a configuration differs from in the fewest settings, and those settings."""
    mine = {key: value for key, value, _ in describe_settings(config)}
    changed = {
        name: [key for key, value, _ in describe_settings(load_config(name)) if mine[key] != value]
        for name in preset_names()
    }
    name = min(changed, key=lambda name: len(changed[name]))
    return name, changed[name]


def _term(name: str, weight: float) -> str:
    """One reward function in the sum."""
    shown = f"{name.removeprefix(OWN)} (your own)" if name.startswith(OWN) else name
    return shown if weight == 1 else f"{weight:g} x {shown}"


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
    )


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
        poems.add_row(Text(visible(base.topic)), poem_view(base.text), poem_view(trained.text))
    return Group(table, poems)


def poem_view(text: str) -> Table:
    """A poem with its syllables counted: green where a line fits, yellow one off, red otherwise."""
    view = Table.grid(padding=(0, 1))
    view.add_column(justify="right", min_width=2)
    for line in score_structure(text).lines:
        off = 9 if line.target is None else abs(line.syllables - line.target)
        style = "green" if off == 0 else "yellow" if off == 1 else "red"
        view.add_row(Text(str(line.syllables), style=style), Text(visible(line.text)))
    if not view.rows:
        view.add_row("", Text("(nothing)", style="dim"))
    return view


def _poems(groups: Sequence[ScoredGroup]) -> Table:
    """The first completion of each group: never chosen by how good it is."""
    table = Table.grid(padding=(0, 4))
    answers: list[Answer] = [answers_of([scored])[0] for scored in groups]
    table.add_row(*(Text(f"   {visible(answer.topic)}", style="dim") for answer in answers))
    table.add_row(*(poem_view(answer.text) for answer in answers))
    return table
