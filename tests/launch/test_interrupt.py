"""A person presses Ctrl-C, or a machine is taken away: the step is finished, the state saved, the way on printed."""

import os
import signal
import subprocess
import sys
import time

from rlhaiku.config import with_overrides, write_config

RLHAIKU = [sys.executable, "-c", "from launch.cli import main; main()"]
SCRIPT = """
import sys
from pathlib import Path
from launch.local import run
from rlhaiku.config import read_config
result = run(read_config(Path(sys.argv[1])), output_dir=sys.argv[2], resume=len(sys.argv) > 3)
print("finished" if result.finished else "stopped", result.state.step, flush=True)
"""


def interrupt_once_it_trains(command, number, directory):
    """The command's output and exit status; Ctrl-C goes to the whole group, as a terminal's does."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1", "COLUMNS": "300"},
    )
    deadline = time.monotonic() + 120
    metrics = directory / "metrics.jsonl"
    while not metrics.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    out, err = process.communicate(timeout=120)
    assert "finishing this step" in out, err
    assert f"train --resume --output-dir {directory}" in out
    return out, err, process.returncode


def test_sigterm_ends_a_run_from_python_with_its_state_saved(config, tmp_path):
    write_config(with_overrides(config, ["num_steps=500", "evaluation.interval=500"]), tmp_path / "config.toml")
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "config.toml"), str(tmp_path / "run")]
    out, err, status = interrupt_once_it_trains(command, signal.SIGTERM, tmp_path / "run")
    assert status == 0, err
    said, step = out.split()[-2:]
    assert said == "stopped"
    assert (tmp_path / "run" / "checkpoints" / f"step-{int(step):06d}" / "coordinator.json").exists()
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == int(step)


def test_ctrl_c_ends_the_command_with_130_and_the_printed_command_goes_on(config, tmp_path):
    directory = tmp_path / "run"
    directory.mkdir()
    write_config(with_overrides(config, ["num_steps=500", "evaluation.interval=500"]), directory / "config.toml")
    resume = [*RLHAIKU, "train", "--resume", "--output-dir", str(directory)]  # from its settings alone: from the start
    _, err, status = interrupt_once_it_trains(resume, signal.SIGINT, directory)
    assert status == 130, err
    assert "Traceback" not in err
    step = len((directory / "metrics.jsonl").read_text().splitlines())
    changed = subprocess.run([*resume, "--set", "seed=1"], capture_output=True, text=True, timeout=120, check=False)
    assert changed.returncode == 2 and "must have the seed it began with" in changed.stderr
    more = [*resume, "--set", f"num_steps={step + 1}"]
    done = subprocess.run(more, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert f"resuming after step {step}, attempt 2; changed since the last attempt: settings" in done.stdout
    assert len((directory / "metrics.jsonl").read_text().splitlines()) == step + 1
