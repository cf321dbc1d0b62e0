"""Real processes die or hang in the middle of real runs; the weights, poems and metrics are those of a calm run."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
import ray
import torch

from actors.actor import Actor
from actors.weight_sync import SharedMemorySync
from launch import chaos, checks, local, start
from launch.local import run
from rlhaiku.config import with_overrides, write_config
from rlhaiku.errors import BadInput, CrashLoop, OutputFailed
from rlhaiku.ledger import Ledger

STEPS = 4
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test file
DRIVER = """
import sys
from pathlib import Path
from launch.local import run
from rlhaiku.config import read_config
run(read_config(Path(sys.argv[1])), output_dir=sys.argv[2], resume=sys.argv[3] == "resume")
"""


@pytest.fixture(scope="module")
def calm_run(cluster, config, tmp_path_factory):
    directory = tmp_path_factory.mktemp("calm") / "run"
    run(config, output_dir=directory)
    return directory


def weights(directory):
    return torch.load(directory / "checkpoints" / f"step-{STEPS:06d}" / "trainer.pt", weights_only=True)["weights"]


def metrics(directory):
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("time/") and not k.endswith("_per_s")} for row in rows]


def assert_same_run(directory, calm):
    ours, theirs = weights(directory), weights(calm)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert metrics(directory) == metrics(calm)
    assert (directory / "samples.jsonl").read_text() == (calm / "samples.jsonl").read_text()
    for path in (calm / "eval").iterdir():
        assert (directory / "eval" / path.name).read_text() == path.read_text()
    with Ledger(directory / "ledger.sqlite") as ledger:
        assert [claim for step in ledger.lineage() for claim in step.trained + step.dropped] == list(range(STEPS * 6))


def dying_trainer(marker):
    """A TorchTrainer that dies once, with the gradient of step 2 computed and the optimizer not yet stepped."""

    class DyingTrainer(start.TorchTrainer):
        def train_step(self, batch):
            if batch.step == 2 and not marker.exists():
                marker.touch()
                self._optimizer.step = lambda: os._exit(1)
            return super().train_step(batch)

    return DyingTrainer


def test_a_trainer_killed_between_gradient_and_step(calm_run, config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(start, "TorchTrainer", dying_trainer(tmp_path / "died"))
    result = run(with_overrides(config, ["output.save_interval=1"]), output_dir=tmp_path / "run")
    assert result.finished and (tmp_path / "died").exists()
    assert [who for who, _ in result.recoveries] == ["the trainer"]
    assert_same_run(tmp_path / "run", calm_run)
    assert "starting again from the newest checkpoint" in capsys.readouterr().out


def test_a_run_with_chaos_is_a_calm_run(calm_run, config, tmp_path, monkeypatch):
    """Nobody is killed twice without a step between, which on a slow machine would be a crash loop."""
    monkeypatch.setattr(chaos, "MEAN_S", 0.5)
    struck, metrics = Counter(), tmp_path / "run" / "metrics.jsonl"
    seen = {}

    def counted(actor, strike=Actor.strike):
        steps = metrics.read_text().count("\n") if metrics.exists() else 0
        if seen.get(actor.name) != steps and strike(actor):
            seen[actor.name] = steps
            struck[actor.name] += 1

    monkeypatch.setattr(Actor, "strike", counted)
    result = run(with_overrides(config, ["output.save_interval=1"]), output_dir=tmp_path / "run", chaos=7)
    assert result.finished
    assert struck and result.recoveries, struck
    assert_same_run(tmp_path / "run", calm_run)


@pytest.mark.parametrize("with_engine", [False, True], ids=["alone", "with its engine"])
def test_a_weight_relay_that_dies_ends_the_attempt(calm_run, config, tmp_path, monkeypatch, capsys, with_engine):
    """What happens when a node is lost: its engine cannot be replaced where it was, nor get what comes next."""
    monkeypatch.setattr(checks, "available_cores", lambda: 3)
    lost = []

    def lose_one(self, weight_version, publish=SharedMemorySync.publish):
        report = publish(self, weight_version)
        if weight_version == 3 and not lost:
            lost.extend([self._relays[1], *([self._engines.actors[1]] if with_engine else [])])
            for actor in lost:
                ray.kill(actor.handle)
        return report

    monkeypatch.setattr(SharedMemorySync, "publish", lose_one)
    overrides = ["rollout.num_engines=2", "cluster.num_nodes=2"]
    result = run(with_overrides(config, overrides), output_dir=tmp_path / "run")
    out = capsys.readouterr().out
    assert result.finished and len(lost) == 1 + with_engine
    assert "weight relay" in out and "starting again from the newest checkpoint" in out
    assert_same_run(tmp_path / "run", calm_run)


def test_a_trainer_that_always_dies_ends_the_run_with_a_report(cluster, config, tmp_path, monkeypatch):
    class DeadlyTrainer(start.TorchTrainer):
        def train_step(self, batch):
            os._exit(1)

    monkeypatch.setattr(start, "TorchTrainer", DeadlyTrainer)
    with pytest.raises(CrashLoop, match=r"3 times in a row it did not get beyond step 0[\s\S]*the trainer \(pid"):
        run(config, output_dir=tmp_path / "run")


def test_an_engine_that_hangs_is_replaced(calm_run, config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(checks, "available_cores", lambda: 3)
    stopped = []

    def stop_one(*arguments, **keywords):
        context = start.start_actors(*arguments, **keywords)

        def later(cast):
            while not (tmp_path / "run" / "metrics.jsonl").exists():
                time.sleep(0.05)
            stopped.append(cast.actors()[0].process().pid)
            os.kill(stopped[0], signal.SIGSTOP)

        class Watched:
            def __enter__(self):
                cast = context.__enter__()
                threading.Thread(target=later, args=(cast,), daemon=True).start()
                return cast

            def __exit__(self, *error):
                return context.__exit__(*error)

        return Watched()

    monkeypatch.setattr(local, "start_actors", stop_one)
    overrides = ["rollout.num_engines=2", "cluster.wait_timeout_s=15"]
    result = run(with_overrides(config, overrides), output_dir=tmp_path / "run")
    assert stopped and not Path(f"/proc/{stopped[0]}").exists()
    out = capsys.readouterr().out
    assert f"rollout engine 0 (pid {stopped[0]}" in out and "died and is being replaced" in out
    assert {who for who, _ in result.recoveries} <= {"rollout engine 0"}, "or the hang was noticed by a sync"
    assert_same_run(tmp_path / "run", calm_run)


def test_everything_killed_at_once_and_resumed(calm_run, config, tmp_path):
    write_config(config, tmp_path / "config.toml")
    command = [sys.executable, "-c", DRIVER, str(tmp_path / "config.toml"), str(tmp_path / "run")]
    driver = subprocess.Popen([*command, "start"], start_new_session=True, stdout=subprocess.DEVNULL)
    metrics_file = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics_file.exists() and metrics_file.read_text().count("\n") >= 3) and time.monotonic() < deadline:
        time.sleep(0.02)
    driver.send_signal(signal.SIGSTOP)
    second = subprocess.run([*command, "resume"], capture_output=True, text=True, check=False)
    assert second.returncode == 1 and "LedgerLocked" in second.stderr, "one run at a time in a directory"
    family = descendants(driver.pid)
    assert len(family) > 5
    for pid in [driver.pid, *family]:
        os.kill(pid, signal.SIGKILL)
    assert driver.wait(30) == -signal.SIGKILL
    with pytest.raises(BadInput, match="must not hold another run"):
        run(config, output_dir=tmp_path / "run")
    done = subprocess.run([*command, "resume"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "attempt 2" in done.stdout
    assert_same_run(tmp_path / "run", calm_run)


def descendants(pid):
    """Every process below one, from /proc."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(status.parent.name)] = int(fields[1])
    found, layer = [], {pid}
    while layer:
        layer = {child for child, parent in parents.items() if parent in layer}
        found += layer
    return found


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_is_an_error_that_says_so_and_a_resume_goes_on(calm_run, config, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], check=True, timeout=10)
    try:
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(1_500_000))  # the first checkpoint fits, the second does not
        config = with_overrides(config, ["output.save_interval=1"])
        with pytest.raises(OutputFailed, match=r"partial: No space left on device[\s\S]*go on with --resume"):
            run(config, output_dir=disk / "run")
        kept = sorted(path.name for path in (disk / "run" / "checkpoints").glob("step-*"))
        assert kept and kept[-1] != f"step-{STEPS:06d}"
        ballast.unlink()
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True, timeout=10)
        assert run(config, output_dir=disk / "run", resume=True).finished
        assert_same_run(disk / "run", calm_run)
    finally:
        subprocess.run(["umount", str(disk)], check=True, timeout=10)
