"""TensorBoard and W&B get the numbers of a run, by the names of the one table."""

import os
import subprocess
import sys
import threading

import pytest

from launch import sinks
from launch.checks import check_sinks
from launch.sinks import open_sinks
from rlhaiku.batching import make_batch
from rlhaiku.checkpoints import RunState
from rlhaiku.config import AlgorithmConfig, load_config
from rlhaiku.errors import BadInput
from rlhaiku.metric_names import describe_metric
from rlhaiku.metrics import StepReport, evaluation_metrics, step_metrics
from rlhaiku.types import SyncReport, TrainStats
from tests.tiny import make_scored

WANDB = """
from pathlib import Path
import sys
from launch.sinks import open_sinks
from rlhaiku.config import load_config
from tests.launch.test_sinks import report
config = load_config("laptop", ['output.sinks=["wandb:haiku/first"]'])
with open_sinks(config, Path(sys.argv[1]), 0) as [sink]:
    sink.step(report(1))
import wandb
"""


def report(step):
    groups = (make_scored(0, [2.0, 0.0]), make_scored(1, [1.0, 0.5 * step]))
    stats = TrainStats(step - 1, 0.1, 1.0, 1e-4, 0.0, 0.001, 0.0, 20, 50)
    made = make_batch(step - 1, groups, AlgorithmConfig(), temperature=1.0)
    seconds = {"rollout": 2.0, "train": 1.0, "sync": 0.1}
    return StepReport(RunState(step, step), groups, made, stats, SyncReport(step, 1, 400, 0.5), seconds, {})


def test_tensorboard_has_every_number_once_even_after_a_resume(tmp_path):
    pytest.importorskip("tensorboard", reason="needs the extra: pip install 'rlhaiku[tensorboard]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = load_config("laptop", ['output.sinks=["tensorboard"]'])
    with open_sinks(config, tmp_path, 0) as [sink]:
        sink.evaluation(RunState(0, 0), report(1).groups)
        for step in (1, 2, 3):
            sink.step(report(step))
    with open_sinks(config, tmp_path, 2) as [sink]:  # step 3 is made again
        sink.step(report(3))
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    names = (step_metrics(report(1)).keys() | evaluation_metrics(RunState(0, 0), report(1).groups).keys()) - {"step"}
    assert set(events.Tags()["scalars"]) == names
    assert all(describe_metric(name) for name in names)
    rewards = [(event.step, event.value) for event in events.Scalars("reward/mean")]
    assert rewards == [(step, step_metrics(report(step))["reward/mean"]) for step in (1, 2, 3)]


def test_wandb_offline_keeps_project_group_and_numbers(tmp_path):
    """In a process of its own: wandb leaves threads and environment variables behind."""
    pytest.importorskip("wandb", reason="needs the extra: pip install 'rlhaiku[wandb]'")
    environment = os.environ | {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    environment.pop("WANDB_API_KEY", None)
    done = subprocess.run(
        [sys.executable, "-c", WANDB, str(tmp_path)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    [kept] = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    data = kept.read_bytes()
    for expected in (b"haiku", b"first", b"reward/mean", b"time/rollout_s"):
        assert expected in data


def test_an_upload_that_does_not_end_is_left_behind_with_the_way_to_send_it(tmp_path, monkeypatch, capsys):
    over = threading.Event()

    class Run:
        dir = str(tmp_path / "wandb" / "run-1" / "files")

        def finish(self):
            over.wait(30)

    monkeypatch.setattr(sinks, "FINISH_S", 0.05)
    log = object.__new__(sinks.WandbLog)
    log._run = Run()
    log.close()
    assert f"wandb sync {tmp_path / 'wandb' / 'run-1'}" in capsys.readouterr().out
    over.set()


def test_wandb_without_a_key_is_refused_before_anything_starts(monkeypatch):
    pytest.importorskip("wandb", reason="needs the extra: pip install 'rlhaiku[wandb]'")
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    config = load_config("laptop", ['output.sinks=["wandb"]'])
    with pytest.raises(BadInput, match="WANDB_API_KEY"):
        check_sinks(config)
    monkeypatch.setenv("WANDB_MODE", "offline")
    check_sinks(config)


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr("launch.checks.find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"rlhaiku\[tensorboard\]"):
        check_sinks(load_config("laptop", ['output.sinks=["tensorboard"]']))
