"""TensorBoard and W&B get the numbers of a run, by the names of the one table."""

import json
import os
import struct
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
import sys
from pathlib import Path

from launch.sinks import open_sinks
from rlhaiku.config import load_config
from tests.launch.test_sinks import report

config = load_config("laptop", ['output.sinks=["wandb:pond-project/frog-group"]'])
with open_sinks(config, Path(sys.argv[1]), 0) as [sink]:
    sink.step(report(1))
"""


def report(step):
    groups = (make_scored(0, [2.0, 0.0]), make_scored(1, [1.0, 0.5 * step]))
    stats = TrainStats(step - 1, 0.1, 1.0, 1e-4, 0.0, 0.001, 0.0, 20, 50)
    made = make_batch(step - 1, groups, AlgorithmConfig(), temperature=1.0)
    seconds = {"rollout": 2.0, "train": 1.0, "sync": 0.1}
    return StepReport(RunState(step, step), groups, made, stats, SyncReport(step, 1, 400, 0.5), seconds, {})


def test_tensorboard_has_every_number_once_even_after_a_resume(tmp_path):
    pytest.importorskip("tensorboard", reason="needs the extra: .venv/bin/pip install -e '.[tensorboard]'")
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


def wandb_records(directory):
    """What a W&B run kept in its file: LevelDB's log format after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    [kept] = directory.glob("wandb/offline-run-*/run-*.wandb")
    data, at, whole = kept.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # no header fits into the rest of the block
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or its last part
            yield Record.FromString(whole)
            whole = b""


def test_wandb_offline_keeps_project_group_and_numbers(tmp_path):
    """In a process of its own: wandb leaves threads and environment variables behind."""
    pytest.importorskip("wandb", reason="needs the extra: .venv/bin/pip install -e '.[wandb]'")
    environment = os.environ | {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    environment.pop("WANDB_API_KEY", None)
    done = subprocess.run(
        [sys.executable, "-c", WANDB, str(tmp_path)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    records = list(wandb_records(tmp_path))
    [run] = [record.run for record in records if record.HasField("run")]
    assert (run.project, run.run_group) == ("pond-project", "frog-group")
    [row] = [record.history.item for record in records if record.HasField("history")]
    kept = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in row}
    expected = {name: value for name, value in step_metrics(report(1)).items() if name != "step"}
    assert {name: kept[name] for name in expected} == expected


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
    pytest.importorskip("wandb", reason="needs the extra: .venv/bin/pip install -e '.[wandb]'")
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    config = load_config("laptop", ['output.sinks=["wandb"]'])
    with pytest.raises(BadInput, match="WANDB_API_KEY"):
        check_sinks(config)
    monkeypatch.setenv("WANDB_MODE", "offline")
    check_sinks(config)


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr("launch.checks.find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"pip install -e '\.\[tensorboard\]'"):
        check_sinks(load_config("laptop", ['output.sinks=["tensorboard"]']))
