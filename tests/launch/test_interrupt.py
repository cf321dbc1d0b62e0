"""A person presses Ctrl-C, or a machine is taken away: the step is finished, the state saved, the way on printed."""

import os
import signal
import subprocess
import sys
import time

import pytest

from rlhaiku.config import with_overrides, write_config

SCRIPT = """
import sys
from pathlib import Path
from launch.local import run
from rlhaiku.config import read_config
result = run(read_config(Path(sys.argv[1])), output_dir=sys.argv[2], resume=len(sys.argv) > 3)
print("finished" if result.finished else "stopped", result.state.step, flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_an_interrupted_run_is_saved_and_can_go_on(config, tmp_path, number):
    write_config(with_overrides(config, ["num_steps=500", "evaluation.interval=500"]), tmp_path / "config.toml")
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "config.toml"), str(tmp_path / "run")]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    deadline = time.monotonic() + 120
    metrics = tmp_path / "run" / "metrics.jsonl"
    while not metrics.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "finishing this step" in out
    assert f"train --resume --output-dir {tmp_path / 'run'}" in out
    status, step = out.split()[-2:]
    assert status == "stopped"
    assert (tmp_path / "run" / "checkpoints" / f"step-{int(step):06d}" / "coordinator.json").exists()
    assert len(metrics.read_text().splitlines()) == int(step)
