"""How long until a held-out reward, fixed beforehand or nearly the best that TRL reaches: TRL's seconds over ours.

    python -m benchmarks.time_to_reward --peer-python PATH [--target 0.9] [--steps 25] [--seeds 0 1 2] [--every 5]
                                        [--set KEY=VALUE ...] [--gpu vllm|torch] [--keep DIR] [--smoke] [--force]

Both train with the settings of the preset, without a penalty for repeats, at a constant learning rate, and both models
answer the same held-out prompts after every few steps, ours in the run and TRL's afterwards by the same code. A clock
is read at the first of these evaluations that reaches the target. Starting up, evaluations and checkpoints are on
nobody's clock: the first step, which TRL compiles and allocates in, counts as long as the median of the others. The
other side begins with each seed.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.grpo_step import ALONE, TIMEOUT_S, peer_settings, run_ours, run_peer
from benchmarks.measure import ROOT, Results, begin, parser
from benchmarks.sides import said
from rlhaiku.config import RunConfig, load_config, with_overrides, write_config

EVALUATE = """
import json, sys
from pathlib import Path
from launch.checks import check_placement
from launch.evaluate import evaluate_pair
from launch.ray_runtime import local_ray
from rlhaiku.config import read_config
config, pair = read_config(Path(sys.argv[1])), sys.argv[2:]
placement = check_placement(config)
with local_ray(placement.total_cpus, placement.num_gpus):
    found = evaluate_pair(config, pair[0], pair[-1])
print("REACHED " + json.dumps([each.structure_mean for each in (found.base, found.trained)][: len(pair)]))
"""
PAIRS_ON_A_GPU = 4
"""Of small models, evaluated side by side: nobody's clock runs."""
NEARLY = 0.98
"""Of the best: on a plateau that one is anywhere."""
Point = tuple[int, float, float]
"""Step, seconds of training until then, structure x legitimacy."""


def configure(options: argparse.Namespace, seed: int) -> RunConfig:
    """The preset with a constant learning rate and an evaluation every few steps."""
    engine = [f"rollout.engine={options.gpu}"] if options.gpu else []
    return with_overrides(load_config("one-gpu" if options.gpu else "laptop"), [
        *engine, f"seed={seed}", f"num_steps={options.steps}", f"evaluation.interval={options.every}",
        "trainer.lr_schedule=constant", "trainer.lr_warmup_steps=0", f"output.save_interval={options.steps}", ALONE,
        *options.set,
    ])


def held_out(config: RunConfig, models: Sequence[Path], target: float, scratch: Path) -> list[float]:
    """Structure x legitimacy of models that somebody else trained, in order: of all up to one that reaches `target`."""
    write_config(config, scratch / "evaluate.toml")

    def pair(start: int) -> list[float]:
        command = [sys.executable, "-c", EVALUATE, str(scratch / "evaluate.toml"), *map(str, models[start : start + 2])]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=TIMEOUT_S, check=False)
        if done.returncode:
            sys.exit(f"the peer's models could not be evaluated:\n{done.stderr[-3000:]}")
        found: list[float] = said(done.stdout, "REACHED ")
        return found

    reached: list[float] = []
    with ThreadPoolExecutor() as pool:
        at_once = 2 * (PAIRS_ON_A_GPU if config.cluster.gpus_per_node else 1)
        while len(reached) < len(models) and max(reached, default=-math.inf) < target:
            starts = range(len(reached), min(len(models), len(reached) + at_once), 2)
            reached += [value for some in pool.map(pair, starts) for value in some]
    return reached


def clock_of(seconds: list[float]) -> list[float]:
    """Seconds of training before each step and after the last."""
    return [0.0, *accumulate([median(seconds[1:] or seconds), *seconds[1:]])]


def curve(directory: Path, seconds: list[float]) -> list[Point]:
    """Every evaluation of a run of ours."""
    clock = clock_of(seconds)
    points = []
    for file in sorted((directory / "eval").glob("step-*.json")):
        step = int(file.stem.removeprefix("step-"))
        points.append((step, clock[step], json.loads(file.read_text())["summary"]["structure_mean"]))
    return points


def first_as_good(points: list[Point], target: float) -> float | None:
    """Seconds until the first evaluation after a step that reaches `target`; None if none does."""
    return next((seconds for step, seconds, reached in points if step and reached >= target), None)


def peer_curve(options: argparse.Namespace, config: RunConfig, scratch: Path) -> tuple[list[Point], dict[str, Any]]:
    """TRL's run, and its saved models evaluated in their order, until one reaches the target if there is one."""
    peer = run_peer(options.peer_python, peer_settings(config) | {"save_interval": options.every}, scratch)
    clock = clock_of(peer["seconds"])
    models = sorted((scratch / "trl").glob("step-*"))
    reached = held_out(config, models, math.inf if options.target is None else options.target, scratch)
    steps = [int(model.name.removeprefix("step-")) for model in models]
    return [(step, clock[step], value) for step, value in zip(steps, reached, strict=False)], peer["packages"]


def measure(options: argparse.Namespace, seed: int, scratch: Path, results: Results) -> float | None:
    """One seed: both curves, and the ratio of their clocks at the target."""
    config = configure(options, seed)
    curves: dict[str, list[Point]] = {}
    packages: dict[str, str] = {}
    for side in ("baseline", "ours") if seed % 2 == 0 else ("ours", "baseline"):
        if side == "ours":
            curves[side] = curve(scratch / "ours", run_ours(config, scratch / "ours")["seconds"])
        else:
            curves[side], packages = peer_curve(options, config, scratch)
        shown = ", ".join(f"{reached:.3f} after {seconds:.0f} s" for _, seconds, reached in curves[side])
        print(f"  seed {seed}, {side}: {shown}", flush=True)
    target = options.target
    if target is None:
        target = NEARLY * max(reached for _, _, reached in curves["baseline"])
    theirs, mine = (first_as_good(curves[side], target) for side in ("baseline", "ours"))
    ratio = theirs / mine if theirs and mine else None
    results.add({
        "name": f"time to held-out structure {target:.3g}, seed {seed}", "kind": "speed-up", "ratio": ratio,
        "unit": "s", "order": "by seed", "peer_packages": packages, "note": " ".join(options.set),
        "samples": {
            f"{side}_{what}": [point[place] for point in points]
            for side, points in curves.items()
            for place, what in enumerate(("step", "s", "structure"))
        },
    })  # fmt: skip
    return ratio


def main() -> None:
    """Every seed, and the median of their ratios."""
    made = parser(__doc__)
    made.add_argument("--peer-python", required=True)
    made.add_argument("--target", type=float,
                      help="structure x legitimacy of the held-out prompts; by default nearly TRL's best")
    made.add_argument("--steps", type=int, default=25, help="of both sides, at most")
    made.add_argument("--every", type=int, default=5, help="steps between evaluations")
    made.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    made.add_argument("--set", nargs="*", default=[], help="settings for both sides, e.g. trainer.lr=1e-5")
    made.add_argument("--gpu", choices=["vllm", "torch"], help="on one GPU, with this engine; TRL with its vLLM")
    made.add_argument("--keep", type=Path, help="leave runs here, one folder per seed")
    options = made.parse_args()
    results = begin(options)
    if options.smoke:
        options.seeds, options.steps, options.target = [1], options.every, 0.0
        options.set = ["rollout.groups_per_step=2", "rollout.tile_groups=2", "evaluation.num_prompts=4", *options.set]
    ratios = []
    with tempfile.TemporaryDirectory() as name:
        for seed in options.seeds:
            scratch = (options.keep or Path(name)).absolute() / f"seed-{seed}"
            scratch.mkdir(parents=True)
            ratios.append(measure(options, seed, scratch, results))
    reached = [ratio for ratio in ratios if ratio is not None]
    ratio = median(reached) if len(reached) == len(ratios) else None
    what = f"{NEARLY:.0%} of the best that TRL reaches" if options.target is None else options.target
    record = results.add({
        "name": f"time to held-out structure, {what}: TRL / rlhaiku", "kind": "speed-up", "ratio": ratio,
        "low": min(reached, default=None), "high": max(reached, default=None), "goal": 2.5 if options.gpu else 1.5,
        "unit": "x", "samples": {"ratio": reached}, "order": "by seed",
        "note": f"median of {len(ratios)} seeds and their range; {' '.join(options.set)}".rstrip("; "),
    })  # fmt: skip
    shown = "not reached by both at every seed" if ratio is None else f"{ratio:.2f}x"
    print(f"{record.name} {shown} {[round(each, 2) for each in reached]} "
          f"(goal {record.goal}: {'met' if record.is_met else 'NOT met'})")


if __name__ == "__main__":
    main()
