"""The report, looked at by a real browser: what it shows, that it needs nothing else, that poems stay text."""

import json
import re
import shutil
import subprocess

import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from typer.testing import CliRunner

from launch.cli import app
from launch.report import write_report
from launch.report.charts import _line
from rlhaiku.batching import make_batch
from rlhaiku.checkpoints import RunState
from rlhaiku.config import AlgorithmConfig, load_config, write_config
from rlhaiku.errors import BadInput
from rlhaiku.metrics import RunFiles, StepReport
from rlhaiku.types import Scored, SyncReport, TrainStats, Unscored
from tests.tiny import make_scored

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
NASTY = '</script><script>document.title="owned"</script><img src=x onerror="document.title=\'owned\'">\nplain & simple'
POEM = "an old silent pond\na frog jumps into the pond\nsplash silence again"


def groups(step):
    """Two groups of three: one with a poem that attacks the page, one with a poem that could not be scored."""
    parts = {"structure": 0.5 + step / 10, "legitimacy": 1.0, "legitimacy/words": 1.0}
    return (
        make_scored(2 * step, [Scored(1.0, parts), Scored(0.5, parts), Scored(0.0, parts)], text=NASTY),
        make_scored(2 * step + 1, [Scored(0.7, parts), Scored(0.2, parts), Unscored("judge down")], text=POEM),
    )


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory):
    """Four steps, poems kept of every second one, evaluated before and after, as a run writes them."""
    directory = tmp_path_factory.mktemp("runs") / "frogs & ponds"
    directory.mkdir()
    config = load_config("laptop", ["num_steps=4"])
    write_config(config, directory / "config.toml")
    files = RunFiles(directory, samples_interval=2)
    for step in range(5):
        state = RunState(step, step)
        if step in (0, 4):
            files.evaluation(state, groups(step))
        if step:
            stats = TrainStats(step - 1, 0.1, 1.0, 1e-4, 0.0, 0.001 * step, 0.0, 20, 50)
            seconds = {"rollout": 2.0, "train": 1.0, "sync": 0.1}
            made = make_batch(step - 1, groups(step), AlgorithmConfig(), temperature=1.0)
            files.step(StepReport(state, groups(step), made, stats, SyncReport(step, 1, 400, 0.1), seconds, {}))
    write_report(directory)
    return directory


@pytest.fixture(scope="module")
def rendered(run_directory, tmp_path_factory):
    """The document after its script has run, without a network, and what the browser complained about."""
    if BROWSER is None:
        pytest.skip("needs chromium or chrome")
    profile = tmp_path_factory.mktemp("profile")
    done = subprocess.run(
        [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}",
         "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--dump-dom",
         (run_directory / "report.html").as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def test_the_browser_shows_every_poem_of_the_last_step(rendered):
    document, complaints = rendered
    assert complaints == []
    steps = re.findall(r'<div class="step" data-step="(\d+)"([^>]*)>', document)
    assert [(step, "hidden" in rest) for step, rest in steps] == [("2", True), ("4", False)]
    assert re.findall(r'data-step="(\d+)" aria-pressed="true"', document) == ["4"]
    assert document.count('<article class="poem">') == 2 * 2 * 3
    assert document.count("<svg") == 4


def test_a_poem_cannot_become_part_of_the_page(rendered):
    document, _ = rendered
    assert "<title>frogs &amp; ponds · rlhaiku</title>" in document
    assert "&lt;img" in document and "<img" not in document


def test_the_page_needs_nothing_else(run_directory):
    page = (run_directory / "report.html").read_text()
    assert not re.search(r'(?:src|href)="(?!#|data:)', page)
    assert not re.search(r"url\((?!#)|@import", page)


def test_what_is_said_of_a_poem(run_directory):
    page = (run_directory / "report.html").read_text()
    assert '<span class="line fits"><b>5</b>an old silent pond</span>' in page
    assert '<span class="line fits"><b>7</b>a frog jumps into the pond</span>' in page
    assert "<dt>advantage</dt><dd>+1.00</dd>" in page and "<dt>weights</dt><dd>v0</dd>" in page
    assert "<dt>unscored</dt><dd>judge down</dd>" in page
    assert "4 steps, last after step 4:</b> 1 completions could not be scored" in page


def test_charts_are_there_as_images_too(run_directory):
    images = {path.name: imread(path) for path in (run_directory / "report").iterdir()}
    assert images.keys() == {"reward.png", "components.png", "time.png", "health.png"}
    for name, pixels in images.items():
        height, width = pixels.shape[:2]
        assert 1500 <= width <= 1800 and 300 <= height <= 1500, name
        assert pixels[..., :3].std() > 0.05 and pixels[0, 0, :3].min() == 1, f"{name} is drawn on white"


def test_held_out_answers_stand_beside_each_other(run_directory):
    page = (run_directory / "report.html").read_text()
    table = page[page.index('<section id="held-out">') :].partition("</table>")[0]
    assert re.findall(r"<th>(after step \d+|topic\d+)</th>", table)[:2] == ["after step 0", "after step 4"]
    assert table.count("<tr><th>topic") == 1 + 4 and "frog jumps" in table


def band_parts(rows):
    """How many pieces the band of the mean reward is in."""
    axis = Figure().subplots()
    _line(axis, rows, "reward/mean", "black")
    return sum(len(band.get_paths()) for band in axis.collections)


def test_a_step_without_an_interval_leaves_a_gap_in_the_band_and_nothing_else(run_directory):
    rows = [json.loads(line) for line in (run_directory / "metrics.jsonl").read_text().splitlines()]
    many = [row | {"step": step} for step, row in enumerate(rows * 3)]
    assert band_parts(many) == 1
    del many[5]["reward_se/mean"]
    assert band_parts(many) == 2


def test_advice_keeps_its_capitals(run_directory):
    page = (run_directory / "report.html").read_text()
    assert "a judge needs LLM_JUDGE_URL to answer" in page and "Samples.jsonl has the reasons" in page


def test_an_evaluation_that_is_only_half_there_is_left_out(run_directory):
    path = run_directory / "eval" / "step-000002.json"
    path.write_text((run_directory / "eval" / "step-000004.json").read_text()[:500])
    try:
        assert "after step 2" not in write_report(run_directory).read_text()
    finally:
        path.unlink()


@pytest.mark.parametrize(("scheme", "is_dark"), [("light", False), ("dark", True)])
def test_the_page_is_light_or_dark_as_the_reader_is(run_directory, tmp_path, scheme, is_dark):
    """A picture by the browser: paper, ink and charts follow."""
    if BROWSER is None:
        pytest.skip("needs chromium or chrome")
    picture = tmp_path / "page.png"
    flags = ["--blink-settings=preferredColorScheme=0"] if is_dark else ["--blink-settings=preferredColorScheme=1"]
    subprocess.run(
        [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
         "--window-size=1200,1400", "--hide-scrollbars", *flags, f"--screenshot={picture}",
         (run_directory / "report.html").as_uri()],
        capture_output=True, timeout=120, check=True,
    )  # fmt: skip
    pixels = imread(picture)[..., :3].mean(axis=2)
    paper, ink = (pixels[:, :20].mean(), pixels.max() if is_dark else pixels.min())
    assert (paper < 0.2 and ink > 0.8) if is_dark else (paper > 0.9 and ink < 0.3)


def test_a_run_that_has_only_begun(tmp_path, run_directory):
    """No evaluation, no poems, and a row that is being written at this moment."""
    write_config(load_config("laptop"), tmp_path / "config.toml")
    assert "has not reached its end" in write_report(tmp_path).read_text()
    row = (run_directory / "metrics.jsonl").read_text().splitlines()[0]
    (tmp_path / "metrics.jsonl").write_text(f"{row}\n{row[:50]}")
    assert "1 of 80" in write_report(tmp_path).read_text()


def test_a_directory_without_a_run_is_bad_input(tmp_path):
    with pytest.raises(BadInput, match="run directory"):
        write_report(tmp_path)


def test_report_is_a_command(run_directory):
    (run_directory / "report.html").unlink()
    done = CliRunner().invoke(app, ["report", str(run_directory)])
    assert done.exit_code == 0 and "report.html" in done.output
    assert (run_directory / "report.html").exists()
