"""The `rlhaiku` command. Exit status: 0 done, 1 the run failed, 2 bad input, 130 interrupted with the state saved."""

import json
import sys
import time
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from launch.checks import check_run
from launch.plan import H100_PRICE, make_plan
from launch.resources import Resources
from rlhaiku.config import describe_settings, load_config, preset_names, read_config, with_overrides
from rlhaiku.errors import BadInput, RlhaikuError

app = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False,
    help="Teach a language model to write 5-7-5 haiku with GRPO, on explicit Ray actors.",
)

Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, see `rlhaiku settings`; may be repeated."),
]
RUNS = Path("runs")
CHAOS_SAVE_INTERVAL = 5
"""What dies with a trainer is made again from the last checkpoint: with --chaos there are more of them."""


@app.command()
def train(
    preset: Annotated[str, typer.Option(help=f"One of: {', '.join(preset_names())}.")] = "laptop",
    overrides: Overrides = None,
    output_dir: Annotated[Path | None, typer.Option(help="Run directory; a new one under runs/ by default.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest complete checkpoint.")] = False,
    chaos: Annotated[
        int | None, typer.Option(metavar="SEED", help="Kill actors at random moments, to see the run recover.")
    ] = None,
) -> None:
    """Train a model, and compare it with what it was on held-out topics."""
    if resume:
        output_dir = output_dir or _newest_run()
        config = with_overrides(read_config(output_dir / "config.toml"), overrides or [])
    else:
        config = load_config(preset, overrides or [])
    if chaos is not None:
        save_interval = min(CHAOS_SAVE_INTERVAL, config.output.save_interval)
        config = with_overrides(config, [f"output.save_interval={save_interval}"])
    directory = output_dir or RUNS / time.strftime(f"{preset}-%Y%m%d-%H%M%S")
    check_run(config, directory, resume)
    from launch.local import run  # loads ray and torch, which neither --help nor a mistake should wait for

    try:
        result = run(config, output_dir=directory, resume=resume, chaos=chaos)
    except KeyboardInterrupt:  # the second: how to go on was said
        raise typer.Exit(130) from None
    if not result.finished:
        raise typer.Exit(130)


@app.command()
def report(
    directory: Annotated[Path | None, typer.Argument(help="A run directory; the newest by default.")] = None,
) -> None:
    """Draw a run, finished or not, as one HTML page and some PNGs: curves, time, health, poems."""
    from launch.report import write_report

    print(write_report(directory or _newest_run()))


@app.command()
def evaluate(
    checkpoint: Annotated[
        Path | None, typer.Argument(help="A run's checkpoints/step-NNNNNN, or any Hugging Face directory.")
    ] = None,
    base: Annotated[str | None, typer.Option(help="Model to compare with; by default what the run began with.")] = None,
    overrides: Overrides = None,
    output: Annotated[Path | None, typer.Option(help="Also write the result as JSON.")] = None,
    url: Annotated[str, typer.Option(help="Score what a server serves instead, e.g. launch/serve.py.")] = "",
    preset: Annotated[str, typer.Option(help="Whose evaluation; by default the run's, with --url reference.")] = "",
    model: Annotated[str, typer.Option(help="With --url: what the server calls the model.")] = "qwen3-4b-haiku",
) -> None:
    """Score a checkpoint against its base on the held-out topics, paired by prompt; or a model behind a URL.

    A URL does not say what a run was trained on: `--set data.path=DIRECTORY` names its prompts, as `rlhaiku prepare`
    wrote them.
    """
    from launch.console import comparison_view, describe, make_console

    if bool(url) == bool(checkpoint):
        raise BadInput("evaluate takes a checkpoint or --url", f"{checkpoint} and {url!r}", "Give one of them.")
    overrides = overrides or []
    if url:
        from launch.evaluate_url import evaluate_url

        summary = evaluate_url(load_config(preset or "reference", overrides), url, model)
        make_console().print(Text(describe(summary)), highlight=False, soft_wrap=True)
        result = summary.to_dict()
    else:
        from launch.evaluate import evaluate_pair

        assert checkpoint is not None
        trained = checkpoint / "hf" if (checkpoint / "hf").is_dir() else checkpoint
        of_run = checkpoint.resolve().parents[1] / "config.toml"
        config = read_config(of_run) if of_run.is_file() and not preset else load_config(preset or "laptop")
        config = with_overrides(config, overrides)
        comparison = evaluate_pair(config, base=base or config.model.path, trained=str(trained))
        make_console().print(comparison_view(comparison))
        result = comparison.to_dict()
    if output:
        output.write_text(json.dumps(result, indent=1))


@app.command()
def prepare(
    output: Annotated[Path, typer.Argument(help="Directory for train.parquet, test.parquet and manifest.json.")],
    source: Annotated[str, typer.Option(help="embedded, or the tutorial's statworx/haiku (a download).")] = "embedded",
    split: Annotated[
        Literal["topics", "tutorial"], typer.Option(help="tutorial: its last rows are the test, its columns are kept.")
    ] = "topics",
) -> None:
    """Write prompts as a data set, by default the embedded ones with topics split into train and held-out."""
    from rlhaiku.haiku.statworx import prepare as prepare_data

    Console().print_json(json.dumps(prepare_data(output, source, split).to_dict()))


@app.command()
def score(
    file: Annotated[str, typer.Argument(help="A text file, or - for the standard input; `---` separates poems.")] = "-",
    topic: Annotated[str, typer.Option(help="What the poem should be about.")] = "",
    mode: Annotated[
        Literal["default", "seed"], typer.Option(help="seed: the tutorial's score, quirks included.")
    ] = "default",
    as_json: Annotated[bool, typer.Option("--json", help="One object a line.")] = False,
) -> None:
    """Show a poem's syllables, what it earns, and why."""
    from launch.score import print_scores, read_poems, score_poem

    print_scores([score_poem(poem, topic, mode) for poem in read_poems(file)], as_json)


@app.command()
def plan(
    preset: Annotated[str, typer.Option(help=f"One of: {', '.join(preset_names())}.")] = "reference",
    overrides: Overrides = None,
    price: Annotated[float, typer.Option(help="US dollars per GPU hour.")] = H100_PRICE,
    as_json: Annotated[bool, typer.Option("--json", help="The same as one JSON object.")] = False,
) -> None:
    """Say what `modal run launch/cluster.py` would do, offline: placement, memory, time, cost; refuse with reasons."""
    from launch.console import make_console
    from launch.plan_view import plan_view

    made = make_plan(load_config(preset, overrides or []), Resources.from_environment(), price)
    if as_json:
        print(json.dumps(made.to_dict()))
    else:
        make_console().print(plan_view(made))
    if made.refusals:
        raise typer.Exit(2)


@app.command()
def settings(
    preset: Annotated[str, typer.Option(help=f"One of: {', '.join(preset_names())}.")] = "laptop",
    overrides: Overrides = None,
) -> None:
    """List every setting that --set can change, with its value and meaning."""
    table = Table(box=None, pad_edge=False)
    for heading in ("setting", "value", "meaning"):
        table.add_column(heading, overflow="fold")
    for row in describe_settings(load_config(preset, overrides or [])):
        table.add_row(*map(escape, row))
    Console().print(table)


def main() -> None:
    """Runs the command and turns rlhaiku's errors into an exit status and a readable message."""
    try:
        app()
    except BadInput as error:
        _fail(2, str(error))
    except RlhaikuError as error:
        _fail(1, "\n".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", [])]))


def _fail(status: int, message: str) -> None:
    Console(stderr=True, soft_wrap=True).print(Text("error ", style="red") + message, highlight=False)
    sys.exit(status)


def _newest_run() -> Path:
    runs = sorted(RUNS.glob("*/config.toml"), key=lambda path: path.stat().st_mtime)
    if not runs:
        remedy = "Name its directory; with `train` that is --output-dir."
        raise BadInput("there must be a run to go on with or to draw", str(RUNS), remedy)
    return runs[-1].parent
