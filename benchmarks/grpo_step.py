"""A whole GRPO step, generation to updated weights, against TRL's GRPOTrainer.

Same model, prompts, group size, lengths, reward, clipping, learning rate and thread count, no KL, one optimizer step.

    python -m benchmarks.grpo_step --peer-python PATH [--gpu torch [vllm] [--liger]] [--model DIR] [--smoke] [--force]

DIR is a Hugging Face directory, e.g. what `benchmarks.smollm2` writes; on CPUs its steps are 2 groups of 8 x 32 tokens.
PATH is the Python of an environment with trl, torch and transformers (and pydantic). Sides take turns, a fresh process
each; the first step of each process is not counted.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import fmean, median
from typing import Any

from benchmarks.measure import ROOT, Results, begin, interval, parser
from benchmarks.models import bundled
from benchmarks.sides import OURS, PEER_ENVIRONMENT, guards, own_gap, said
from launch.checks import resolve_model
from launch.local import load_prompts
from launch.ray_cluster import free_port
from rlhaiku.config import RunConfig, load_config, with_overrides, write_config

THREADS, GPU_THREADS = 2, 8
LR = 1e-5
"""On CPUs, for a model of one's own; the laptop preset's is the bundled model's."""
GPU_TOKENS = 16_384
"""A step's in one micro-batch, as TRL takes them."""
ALONE = "reward.repeat_penalty=0"
"""Which `one-gpu` has, and TRL's reward functions cannot."""
WARM_UP = 1
"""Steps of a process that are not counted: its first has everything else in it."""
PHASES = ("rollout", "train", "sync")
"""Of a step of ours; the rest of it is the coordinator's."""
TIMEOUT_S = 1800.0


def settings(model: Path, options: argparse.Namespace, engine: str | None) -> RunConfig:
    """Some steps of the same size for both sides, and as little evaluation as there can be; `engine`: on a GPU."""
    groups, steps, max_tokens = (
        (2, 3, 8) if options.smoke else (32, 12, 48) if options.gpu else (2, 4, 32) if options.model else (16, 6, 48)
    )
    on_gpu = [f"rollout.engine={engine}", f"trainer.micro_batch_tokens={GPU_TOKENS}"]
    more = on_gpu if engine else [f"trainer.lr={LR}"] if options.model else []
    return with_overrides(load_config("one-gpu" if options.gpu else "laptop"), [
        *more, f"model.path={model}", f"num_steps={steps}", f"rollout.groups_per_step={groups}",
        f"rollout.tile_groups={groups if options.gpu else groups // 2}", f"rollout.max_tokens={max_tokens}",
        "trainer.lr_schedule=constant", "trainer.lr_warmup_steps=0", f"evaluation.interval={steps}", ALONE,
        "evaluation.num_prompts=4", f"evaluation.max_tokens={max_tokens}",
        f"output.save_interval={steps}",
    ])


def peer_settings(config: RunConfig) -> dict[str, Any]:
    """A run of ours as TRL's side takes it, in JSON."""
    if config.reward.repeat_penalty:
        sys.exit("reward.repeat_penalty must be 0 in a comparison: TRL's reward function sees no whole step")
    prompts, _ = load_prompts(config)
    return {
        "gpu": config.cluster.gpus_per_node > 0,
        "model": resolve_model(config.model.path),
        "threads": GPU_THREADS if config.cluster.gpus_per_node else THREADS,
        "groups": config.rollout.groups_per_step,
        "group_size": config.rollout.group_size,
        "max_tokens": config.rollout.max_tokens,
        "steps": config.num_steps,
        "lr": config.trainer.lr,
        "adam_beta1": config.trainer.adam_beta1,
        "adam_beta2": config.trainer.adam_beta2,
        "weight_decay": config.trainer.weight_decay,
        "seed": config.seed,
        "topic_weight": config.reward.topic_weight,
        "prompts": [{"text": prompt.text, "topic": prompt.topic} for prompt in prompts],
    }


def run_peer(python: str, peer: dict[str, Any], scratch: Path) -> dict[str, Any]:
    """TRL's seconds per step, rewards, mean lengths and packages.

    With `save_interval` in `peer`, its models are in `scratch/trl/step-NNNNNN`.
    """
    file = scratch / "peer.json"
    file.write_text(json.dumps(peer | {"output_dir": str(scratch / "trl")}))
    command = [python, str(ROOT / "benchmarks" / "peers" / "trl_grpo.py"), str(file)]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    own = {
        "PYTHONPATH": path, "OMP_NUM_THREADS": str(peer["threads"]),
        "MASTER_PORT": str(free_port()),  # TRL would take 29500, as the one beside it on another card does
    }  # fmt: skip
    environment = PEER_ENVIRONMENT | os.environ | own
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=TIMEOUT_S, check=False)
    if done.returncode:
        sys.exit(f"the peer failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    result: dict[str, Any] = said(done.stdout, "RESULT ")
    return result


def run_ours(config: RunConfig, directory: Path) -> dict[str, Any]:
    """The same of ours, with the gap between trainer and engine; a step is all of it, on the wall's clock."""
    scratch = directory.parent
    write_config(config, scratch / "ours.toml")
    command = [sys.executable, "-c", OURS, str(scratch / "ours.toml"), str(directory)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    if done.returncode:
        sys.exit(f"our run failed:\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}")
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return {
        "seconds": said(done.stdout, "SECONDS "),
        **{phase: [row[f"time/{phase}_s"] for row in rows] for phase in PHASES},
        "gap": [row["train/logprob_gap"] for row in rows],
        "reward": [row["reward/mean"] for row in rows],
        "length": [row["completion/length_mean"] for row in rows],
    }


def take_turns(
    options: argparse.Namespace, scratch: Path, model: Path
) -> tuple[list[dict[str, Any]], dict[str | None, list[dict[str, Any]]]]:
    """Runs of TRL, and of ours with each engine; every second turn goes backwards."""
    configs = {engine: settings(model, options, engine) for engine in options.gpu or [None]}
    peer = peer_settings(next(iter(configs.values()))) | {"liger": options.liger}
    peers: list[dict[str, Any]] = []
    ours: dict[str | None, list[dict[str, Any]]] = {engine: [] for engine in configs}
    for turn in range(1 if options.smoke else options.pairs):
        for side in ("TRL", *configs)[:: 1 if turn % 2 == 0 else -1]:
            if side == "TRL":
                peers.append(run_peer(options.peer_python, peer, scratch))
            else:
                ours[side].append(run_ours(configs[side], scratch / f"ours-{side}-{turn}"))
        for engine, runs in ours.items():
            print(f"  turn {turn}{f', {engine}' if engine else ''}: {_step_s(peers[-1]):.2f} -> "
                  f"{_step_s(runs[-1]):.2f} s", flush=True)
    return peers, ours


def _step_s(run: dict[str, Any]) -> float:
    return median(run["seconds"][WARM_UP:])


def add_ratio(
    results: Results, what: str, peers: list[dict[str, Any]], ours: list[dict[str, Any]], goal: float, gap: float
) -> None:
    """Prints the ratio of the runs' median steps and appends its record; `gap`: the model's own, 0 if it matters not.
    """
    found = guards(peers, ours, WARM_UP, gap)
    medians = [f"{phase} {median(value for run in ours for value in run[phase][WARM_UP:]):.3f}" for phase in PHASES]
    print(*found, f"a step of ours: {', '.join(medians)} s", sep="\n")
    samples = {
        f"{who}_{named}": [value for run in side for value in run[key][WARM_UP:]]
        for who, side in (("baseline", peers), ("ours", ours))
        for key, named in (("seconds", "step_s"), ("length", "tokens"), ("reward", "reward"))
    } | {f"ours_{phase}_s": [value for run in ours for value in run[phase][WARM_UP:]] for phase in PHASES}
    samples |= {"baseline_s": [_step_s(run) for run in peers], "ours_s": [_step_s(run) for run in ours]}
    ratios = [theirs / mine for theirs, mine in zip(samples["baseline_s"], samples["ours_s"], strict=True)]
    low, high = interval(ratios)
    lengths = f"mean length {fmean(samples['baseline_tokens']):.1f} and {fmean(samples['ours_tokens']):.1f} tokens"
    is_void = any(line.startswith("VOID") for line in found)
    record = results.add({
        "name": f"GRPO step, {what}: TRL / rlhaiku", "kind": "speed-up", "ratio": median(ratios), "low": low,
        "high": high, "goal": None if is_void else goal, "unit": "s", "samples": samples,
        "order": "ABBA" if len(ratios) > 1 else "one pair", "peer_packages": peers[0]["packages"],
        "note": f"{lengths}; baseline_s and ours_s: a run's median step after the first {WARM_UP}; " + "; ".join(found),
    })  # fmt: skip
    print(f"{record.name} {record.ratio:.2f}x [{low:.2f}, {high:.2f}] {[round(ratio, 2) for ratio in ratios]}, "
          f"{fmean(samples['baseline_s']):.2f} -> {fmean(samples['ours_s']):.2f} s, {lengths} "
          f"(goal {goal}: {'void' if is_void else 'met' if record.is_met else 'NOT met'})", flush=True)


def main() -> None:
    """Takes turns and prints the ratio."""
    made = parser(__doc__)
    made.add_argument("--peer-python", required=True)
    made.add_argument("--gpu", nargs="+", choices=["vllm", "torch"],
                      help="on one GPU, with these engines; TRL with its vLLM")
    made.add_argument("--model", type=Path, help="a Hugging Face directory; by default the bundled model")
    made.add_argument("--pairs", type=int, default=5)
    made.add_argument("--liger", action="store_true", help="on a GPU: TRL with Liger's kernels, too")
    options = made.parse_args()
    results = begin(options)
    model = options.model or bundled()
    with tempfile.TemporaryDirectory() as name:
        peers, ours = take_turns(options, Path(name), model)
        base = next(Path(name).glob("ours-*/eval/step-000000.json"))
        gap = own_gap(model, base) if options.gpu else 0.0
    what = (options.model.name if options.model else "bundled model") + ", TRL with Liger" * options.liger
    for engine, runs in ours.items():
        add_ratio(results, f"{what}, one GPU, {engine}" if engine else what, peers, runs, 3 if engine else 1.7, gap)


if __name__ == "__main__":
    main()
