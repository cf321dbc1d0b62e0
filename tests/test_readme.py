"""What the README shows is run as it stands there."""

import io
import re
import runpy
import sqlite3
import subprocess
import sys
from contextlib import closing, redirect_stdout
from pathlib import Path

import pytest

import rlhaiku
from rlhaiku.config import load_config

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def experiment(cluster, config, tmp_path_factory):
    """Only what `load_config` finds is smaller: a tiny model, a few steps. The directory, and what was said."""
    [code] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(code.splitlines()) <= 20
    directory, said = tmp_path_factory.mktemp("experiment"), io.StringIO()
    (directory / "experiment.py").write_text(code)
    asked = []

    def load(preset, overrides):
        asked.append((preset, overrides))
        return config

    with pytest.MonkeyPatch.context() as patch, redirect_stdout(said):
        patch.setattr(rlhaiku, "load_config", load)
        patch.chdir(directory)
        runpy.run_path("experiment.py", run_name="__main__")
    assert asked == [("laptop", ["num_steps=30"])]
    return directory / "runs/sea", said.getvalue()


def test_the_experiment_runs(experiment, config):
    directory, said = experiment
    rewards = [row for row in (directory / "metrics.jsonl").read_text().splitlines() if "reward/mean" in row]
    assert len(rewards) == config.num_steps
    assert "Comparison(" in said and "reward=sea_words" in said
    assert (directory / "report.html").is_file() and (directory / "report" / "reward.png").is_file()


def test_the_query_finds_the_best_poems(experiment):
    directory, _ = experiment
    [query] = re.findall(r'sqlite3 -readonly \S+ "(.*?)"', README, re.DOTALL)
    with closing(sqlite3.connect(f"file:{directory / 'ledger.sqlite'}?mode=ro", uri=True)) as ledger:
        rows = ledger.execute(query).fetchall()
    assert len(rows) == 5 and [row[2] for row in rows] == sorted((row[2] for row in rows), reverse=True)


def test_the_poem_is_scored_as_shown():
    shown = r"^    (printf [^\n]*? rlhaiku score[^\n]*)\n\n```\n(.*?)```"
    [(command, block)] = re.findall(shown, README, re.DOTALL | re.MULTILINE)
    rlhaiku_command = f"{sys.executable} -c 'from launch.cli import main; main()'"
    command = command.replace("| rlhaiku", f"| {rlhaiku_command}")
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT, check=True)
    assert [line.rstrip() for line in done.stdout.splitlines()] == [line.rstrip() for line in block.splitlines()]


def test_every_setting_that_is_shown_is_one():
    shown = [line for line in README.splitlines() if "--set" in line]
    pairs = []
    for line in shown:
        preset = (re.findall(r"--preset (\S+?)`?(?:\s|$)", line) or ["laptop"])[-1]
        for quoted, bare in re.findall(r"--set (?:'([^']*)'|([^\s`]+))", line):
            pairs.append((preset, quoted or bare))
    assert len(pairs) >= 10
    for preset, setting in pairs:
        load_config(preset, [setting])


def test_every_linked_file_is_there():
    for page in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        for target in re.findall(r"\]\((?!http)([^)#]+)", (ROOT / page).read_text()):
            assert (ROOT / target).exists(), f"{page} links {target}"


def test_every_command_that_is_shown_exists():
    from typer.testing import CliRunner

    from launch.cli import app

    commands = set(re.findall(r"(?:^    (?:.*\| )?|`)rlhaiku (\w+)", README, re.MULTILINE))
    assert {"train", "evaluate", "report", "plan", "score", "prepare", "settings"} <= commands
    for command in commands:
        assert CliRunner().invoke(app, [command, "--help"]).exit_code == 0, command
