"""Bad input ends with exit status 2 and rule, value, remedy, before any actor starts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from launch import cli

RLHAIKU = [sys.executable, "-c", "from launch.cli import main; main()"]


def rlhaiku(*arguments, cwd):
    environment = os.environ | {"COLUMNS": "200", "NO_COLOR": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run([*RLHAIKU, *map(str, arguments)], capture_output=True, text=True, cwd=cwd, env=environment)


def test_help_is_readable(tmp_path):
    done = rlhaiku("--help", cwd=tmp_path)
    assert done.returncode == 0
    for command in ("train", "evaluate", "prepare"):
        assert command in done.stdout
    train = rlhaiku("train", "--help", cwd=tmp_path)
    assert all(word in train.stdout for word in ("--preset", "laptop", "--set", "KEY=VALUE", "--resume"))


@pytest.mark.parametrize(("arguments", "expected"), [
    (["--preset", "labtop"], ["labtop", "Did you mean 'laptop'"]),
    (["--set", "rollout.group_size=1"], ["rollout.group_size", "1", "--set"]),
    (["--set", "rollout.grup_size=4"], ["rollout.grup_size", "Did you mean 'rollout.group_size'"]),
    (["--set", "model.path=/no/such/model"], ["model.path", "/no/such/model", "config.json"]),
    (["--set", "data.path=/no/such/data"], ["data.path", "/no/such/data", "rlhaiku prepare"]),
    (["--set", "trainer.threads=4096"], ["cores", "4096", "trainer.threads"]),
    (["--output-dir", "/proc/nope"], ["--output-dir must be writable", "/proc/nope"]),
    (["--preset", "reference"], ["8 NVIDIA GPUs", "--preset one-gpu"]),
    (["--resume"], ["there must be a run", "--output-dir"]),
    (["--resume", "--output-dir", "empty"], ["config.toml", "empty"]),
    (["--no-such-option"], ["--no-such-option"]),
])
def test_bad_input_exits_2_with_rule_value_remedy(tmp_path, arguments, expected):
    done = rlhaiku("train", *arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    for words in expected:
        assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert "starting Ray" not in done.stdout


def test_a_second_ctrl_c_is_an_interrupt_too(tmp_path, monkeypatch):
    def run(*arguments, **keywords):
        raise KeyboardInterrupt

    monkeypatch.setattr("launch.local.run", run)
    done = CliRunner().invoke(cli.app, ["train", "--output-dir", str(tmp_path / "run")])
    assert done.exit_code == 130


def test_a_hub_id_is_left_to_transformers(tmp_path):
    done = rlhaiku("train", "--set", "model.path=someone/some-model", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "someone/some-model" in done.stderr
    assert "Traceback" not in done.stderr


def test_prepare_writes_the_data_set_that_is_shipped(tmp_path):
    done = rlhaiku("prepare", tmp_path / "data", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads((tmp_path / "data" / "manifest.json").read_text())
    shipped = Path(__file__).parents[2] / "rlhaiku" / "assets" / "data"
    assert (tmp_path / "data" / "manifest.json").read_text() == (shipped / "manifest.json").read_text()
