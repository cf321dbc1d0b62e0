"""A judge that goes away in the middle of a run: the same weights to the last bit, and what it cost.

    python -m benchmarks.judge_outage [--steps N] [--outage-s S] [--set KEY=VALUE ...]

Two runs of the laptop preset with every poem judged by a real HTTP server on 127.0.0.1. In the second the server resets
every connection for a while, from the middle of the run on.
"""

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch

from launch.local import run
from rlhaiku.config import RunConfig, load_config
from tests.judge_server import JudgeServer, ServerThread

COUNTERS = ("judged", "unjudged", "requests", "retries", "outages", "seconds_open")


def run_once(config: RunConfig, directory: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any], float]:
    """Final weights, the metrics of the last step, and the longest rollout and scoring of a step in seconds."""
    run(config, output_dir=directory)
    checkpoint = directory / "checkpoints" / f"step-{config.num_steps:06d}" / "trainer.pt"
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "time/rollout_s" in row]
    longest_s = max(row["time/rollout_s"] for row in steps)
    return torch.load(checkpoint, weights_only=True)["weights"], steps[-1], longest_s


def go_away(server: JudgeServer, after: int, outage_s: float) -> None:
    """Waits until the server has had `after` requests, then fails all for `outage_s` seconds."""
    while len(server.bodies) < after:
        time.sleep(0.005)
    server.always = "reset"
    time.sleep(outage_s)
    server.always = ""


def main() -> None:
    """Runs both and prints what they ended with; exits with 1 if the weights differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--outage-s", type=float, default=30.0)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    # Without the cache the second run asks as often as the first.
    overrides = [f"num_steps={options.steps}", "reward.gate=off", "judge.cache=false", *options.set]
    config = load_config("laptop", overrides)
    with tempfile.TemporaryDirectory() as root, ServerThread() as server:
        os.environ["LLM_JUDGE_URL"] = server.url
        calm, calm_row, calm_s = run_once(config, Path(root) / "calm")
        asked = len(server.bodies)
        trouble = threading.Thread(target=go_away, args=(server, asked + asked // 2, options.outage_s), daemon=True)
        trouble.start()
        stormy, stormy_row, stormy_s = run_once(config, Path(root) / "stormy")
        trouble.join()
    equal = calm.keys() == stormy.keys() and all(torch.equal(calm[name], stormy[name]) for name in calm)
    print(f"\n{'':<28}{'calm':>10}{'outage':>10}")
    for name in COUNTERS:
        print(f"{'judge/' + name:<28}{calm_row['judge/' + name]:>10.4g}{stormy_row['judge/' + name]:>10.4g}")
    print(f"{'reward/unscored, last step':<28}{calm_row['reward/unscored']:>10}{stormy_row['reward/unscored']:>10}")
    print(f"{'longest rollout + scoring, s':<28}{calm_s:>10.1f}{stormy_s:>10.1f}")
    print(f"weights after {options.steps} steps: {'equal to the last bit' if equal else 'NOT EQUAL'}")
    sys.exit(0 if equal else 1)


if __name__ == "__main__":
    main()
