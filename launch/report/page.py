"""Fills the page."""

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from statistics import fmean

from jinja2 import Environment, StrictUndefined

from launch.report.data import Row, RunData, read_run
from rlhaiku.files import writing
from rlhaiku.health import Advice, advise

REPORT_FILE = "report.html"
TILES = {
    "structure_mean": ("structure × legitimacy", "{:.3f}"),
    "strict_575": ("exactly 5-7-5", "{:.1%}"),
    "topic_mention": ("topic named", "{:.1%}"),
    "distinct_2": ("distinct word pairs", "{:.3f}"),
}
"""Numbers of an evaluation, see `EvalSummary`: label and format."""


def write_report(directory: Path) -> Path:
    """Writes `report.html` and `report/*.png` of a run, as far as it has come; returns the page's path.

    Raises BadInput if the directory holds no run, OutputFailed if the page cannot be written.
    """
    from launch.report.charts import draw_charts  # loads matplotlib, which nobody else should wait for

    run = read_run(directory)
    path = directory / REPORT_FILE
    with writing(path):
        charts = draw_charts(run, directory / "report")
        partial = path.with_suffix(".partial")
        partial.write_text(_render(run, charts), encoding="utf-8")
        partial.replace(path)  # somebody may be reading it
    return path


def try_report(directory: Path) -> str:
    """Writes the report and says where it is; a run that is done is not undone by a drawing that fails."""
    try:
        return f"look at it: {write_report(directory)}"
    except Exception as error:
        return f"no report ({type(error).__name__}: {error}); try again with: rlhaiku report {directory}"


def _render(run: RunData, charts: Sequence[object]) -> str:
    # Poems are a model's words: everything is escaped but the charts, which we drew.
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = resources.files("launch.report").joinpath("page.html").read_text(encoding="utf-8")
    return environment.from_string(template).render(
        run=run, charts=charts, tiles=_tiles(run), facts=_facts(run), advice=_advice(run.rows),
        is_done=bool(run.rows) and run.rows[-1]["step"] >= run.config.num_steps,
    )  # fmt: skip


def _tiles(run: RunData) -> list[tuple[str, str, str]]:
    """Label, value before the first step, value after the last one evaluated."""
    if not run.evaluations:
        return []
    base, last = run.evaluations[0][1], run.evaluations[-1][1]
    return [(label, shown.format(base[name]), shown.format(last[name])) for name, (label, shown) in TILES.items()]


def _facts(run: RunData) -> list[tuple[str, str]]:
    config, rows = run.config, run.rows
    rollout = config.rollout
    facts = [
        ("model", Path(config.model.path).name),
        ("train steps", f"{len(rows)} of {config.num_steps}"),
        ("a step", f"{rollout.groups_per_step} prompts × {rollout.group_size} completions"),
        ("engines", f"{rollout.num_engines} × {rollout.engine}"),
        ("trainer", config.trainer.backend),
        ("staleness", f"at most {rollout.max_staleness}"),
        ("seed", str(config.seed)),
    ]
    if rows:
        seconds = [sum(value for name, value in row.items() if name.startswith("time/")) for row in rows]
        facts.append(("a step takes", f"{fmean(seconds):.2f} s"))
    return facts


def _advice(rows: Sequence[Row]) -> list[tuple[int, int, Advice]]:
    """Each sign of trouble: in how many steps, in which last, and the words of that step."""
    seen: dict[str, tuple[int, int, Advice]] = {}
    for row in rows:
        for name, found in advise(row).items():
            count = seen[name][0] if name in seen else 0
            seen[name] = (count + 1, int(row["step"]), found)
    return list(seen.values())
