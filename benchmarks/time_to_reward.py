"""How long until the held-out reward that TRL's GRPOTrainer reaches in N steps: TRL's seconds over ours.

    python -m benchmarks.time_to_reward --peer-python PATH [--peer-steps N] [--seeds 0 1 2] [--set KEY=VALUE ...]
                                        [--gpu vllm|torch] [--keep DIR] [--smoke] [--force]

Both train with the settings of the preset, at a constant learning rate. TRL's final model answers the held-out prompts
through `rlhaiku evaluate`; ours answers the same ones every few steps, and the clock is read at the first evaluation
that is as good. Starting up, evaluations and checkpoints are on nobody's clock.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.grpo_step import ROOT, TIMEOUT_S, peer_settings, run_ours, run_peer
from benchmarks.measure import circumstances, refuse_when_busy
from rlhaiku.config import RunConfig, load_config, with_overrides, write_config

EVALUATE = """
import json, sys
from pathlib import Path
from launch.evaluate import evaluate_pair
from rlhaiku.config import read_config
config = read_config(Path(sys.argv[1]))
print(json.dumps(evaluate_pair(config, config.model.path, sys.argv[2]).to_dict()))
"""
EVALUATE_EVERY = 5


def configure(options: argparse.Namespace, seed: int) -> RunConfig:
    """The preset with a constant learning rate; ours may take twice TRL's steps."""
    steps = options.peer_steps * 2
    engine = [f"rollout.engine={options.gpu}"] if options.gpu else []
    return with_overrides(load_config("one-gpu" if options.gpu else "laptop"), [
        *engine, f"seed={seed}", f"num_steps={steps}", f"evaluation.interval={EVALUATE_EVERY}",
        "trainer.lr_schedule=constant", "trainer.lr_warmup_steps=0", f"output.save_interval={steps}", *options.set,
    ])


def held_out(config: RunConfig, model: Path, scratch: Path) -> dict[str, Any]:
    """Structure x legitimacy and the rest, of a model that somebody else trained."""
    write_config(config, scratch / "evaluate.toml")
    command = [sys.executable, "-c", EVALUATE, str(scratch / "evaluate.toml"), str(model)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=TIMEOUT_S, check=False)
    if done.returncode:
        sys.exit(f"the peer's model could not be evaluated:\n{done.stderr[-3000:]}")
    summary: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])["trained"]
    return summary


def curve(directory: Path, seconds: list[float]) -> list[tuple[int, float, float]]:
    """(step, seconds of training until then, structure x legitimacy) of every evaluation of a run."""
    clock = [0.0, *accumulate(seconds)]
    points = []
    for file in sorted((directory / "eval").glob("step-*.json")):
        step = int(file.stem.removeprefix("step-"))
        points.append((step, clock[step], json.loads(file.read_text())["summary"]["structure_mean"]))
    return points


def first_as_good(points: list[tuple[int, float, float]], target: float) -> float | None:
    """Seconds until the first evaluation that reaches `target`; None if none does."""
    return next((seconds for _, seconds, reached in points if reached >= target), None)


def measure(options: argparse.Namespace, seed: int, scratch: Path) -> dict[str, Any]:
    """One seed: TRL, its evaluation, then ours."""
    config = configure(options, seed)
    steps = {"steps": options.peer_steps, "save": True}
    peer = run_peer(options.peer_python, peer_settings(config) | steps, scratch)
    print(f"seed {seed}: TRL's {options.peer_steps} steps took {sum(peer['seconds']):.1f} s", flush=True)
    theirs = held_out(config, scratch / "trl" / "final", scratch)
    mine = run_ours(config, scratch / "ours")
    points = curve(scratch / "ours", mine["seconds"])
    target, peer_s = theirs["structure_mean"], sum(peer["seconds"])
    ours_s = first_as_good(points, target)
    reached = f"ours in {ours_s:.1f} s, {peer_s / ours_s:.2f}x" if ours_s else f"ours not within {points[-1][1]:.1f} s"
    print(f"seed {seed}: TRL reached {target:.3f} in {peer_s:.1f} s; {reached}; "
          f"ours ends at {points[-1][2]:.3f} after {points[-1][1]:.1f} s", flush=True)
    return {"seed": seed, "target": target, "peer_s": peer_s, "ours_s": ours_s, "curve": points, "theirs": theirs,
            "peer_reward": peer["reward"], "our_reward": mine["reward"]}


def main() -> None:
    """Every seed, and the median of their ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--peer-steps", type=int, default=40)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", nargs="*", default=[], help="settings for both sides, e.g. trainer.lr=1e-5")
    parser.add_argument("--gpu", choices=["vllm", "torch"], help="on one GPU, with this engine; TRL with its vLLM")
    parser.add_argument("--keep", type=Path, help="leave runs here, one folder per seed")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/latest.jsonl"))
    parser.add_argument("--force", action="store_true")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    load = refuse_when_busy(options.force or options.smoke)
    if options.smoke:
        options.seeds, options.peer_steps = [0], 3
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for seed in options.seeds:
            scratch = (options.keep or Path(name)).absolute() / f"seed-{seed}"
            scratch.mkdir(parents=True)
            rows.append(measure(options, seed, scratch))
    ratios = [row["peer_s"] / row["ours_s"] for row in rows if row["ours_s"]]
    goal = 2.5 if options.gpu else 1.5
    ratio = median(ratios) if len(ratios) == len(rows) else 0.0
    print(f"time to equal held-out reward: TRL / rlhaiku {ratio:.2f}x {[round(each, 2) for each in ratios]} "
          f"(goal {goal}: {'met' if ratio >= goal else 'NOT met'})")
    if not options.smoke:
        row = {"name": "time to equal held-out reward", "ratio": ratio, "ratios": ratios, "goal": goal, "seeds": rows}
        with options.output.open("a") as file:
            file.write(json.dumps(circumstances(load) | row) + "\n")


if __name__ == "__main__":
    main()
