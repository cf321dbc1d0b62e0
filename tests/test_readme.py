"""What the README shows is run as it stands there."""

import re
import runpy
from pathlib import Path

import rlhaiku

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_experiment_runs(cluster, config, tmp_path, monkeypatch, capsys):
    """Only what `load_config` finds is smaller: a tiny model, a few steps."""
    [code] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(code.splitlines()) <= 20
    (tmp_path / "experiment.py").write_text(code)
    asked = []

    def load(preset, overrides):
        asked.append((preset, overrides))
        return config

    monkeypatch.setattr(rlhaiku, "load_config", load)
    monkeypatch.chdir(tmp_path)
    runpy.run_path("experiment.py", run_name="__main__")
    assert asked == [("laptop", ["num_steps=30"])]
    rewards = [row for row in (tmp_path / "runs/sea/metrics.jsonl").read_text().splitlines() if "reward/mean" in row]
    assert len(rewards) == config.num_steps
    said = capsys.readouterr().out
    assert "Comparison(" in said and "reward=sea_words" in said
    assert (tmp_path / "runs/sea/report.html").is_file() and (tmp_path / "runs/sea/report/reward.png").is_file()


def test_every_linked_file_is_there():
    for page in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        for target in re.findall(r"\]\((?!http)([^)#]+)", (ROOT / page).read_text()):
            assert (ROOT / target).exists(), f"{page} links {target}"


def test_every_command_that_is_shown_exists():
    from typer.testing import CliRunner

    from launch.cli import app

    commands = set(re.findall(r"(?:^    (?:\$ )?|`)rlhaiku (\w+)", README, re.MULTILINE))
    assert {"train", "evaluate", "report", "plan", "score", "prepare", "settings"} <= commands
    for command in commands:
        assert CliRunner().invoke(app, [command, "--help"]).exit_code == 0, command
