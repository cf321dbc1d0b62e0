"""How far a small chat model gets on one GPU, and what its poems look like: a run in several calls, each with its time.

    python -m benchmarks.gpu.learning_curve --model DIR --directory RUN --seconds 240 [--set KEY=VALUE ...] [--tar FILE]

The first call begins the run in RUN; a later one with the same settings goes on from its checkpoint. Each ends in time
with a checkpoint, says where the run got, and writes `report.html`; `--tar`: everything but the checkpoints, to take
along. DIR is e.g. what `benchmarks.smollm2` writes.
"""

import argparse
import json
import tarfile
import time
from pathlib import Path
from typing import Any

from launch.local import Hooks, run
from launch.report import write_report
from rlhaiku.config import RunConfig, load_config

LAST_STEPS_S = 30.0
"""Kept for the checkpoint and the report: a run is asked to stop so long before its time is up."""
KEPT = ("config.toml", "metrics.jsonl", "samples.jsonl", "eval", "report.html", "report")
POEMS = 6


def settings(model: Path, steps: int, overrides: list[str], preset: str) -> RunConfig:
    """The one-gpu preset with the torch engine, which starts in seconds, and few, cheap interruptions."""
    return load_config(preset, [
        "rollout.engine=torch", f"model.path={model}", f"num_steps={steps}", "trainer.lr=1e-5",
        "trainer.lr_warmup_steps=5", "trainer.micro_batch_tokens=16384", "rollout.max_tokens=48",
        "evaluation.max_tokens=48", "evaluation.interval=50", "evaluation.num_prompts=64", "output.save_interval=100",
        "output.poems_interval=25", *overrides,
    ])


def curve(directory: Path) -> list[tuple[int, dict[str, Any]]]:
    """(step, summary) of every evaluation so far."""
    files = sorted((directory / "eval").glob("step-*.json"))
    return [(int(f.stem.removeprefix("step-")), json.loads(f.read_text())["summary"]) for f in files]


def poems(directory: Path, count: int = POEMS) -> list[tuple[int, str]]:
    """(step, text) of sampled poems, evenly spread over the run."""
    file = directory / "samples.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    chosen = [rows[round(i * (len(rows) - 1) / max(1, count - 1))] for i in range(min(count, len(rows)))]
    return [(row["step"], row["text"]) for row in chosen]


def pack(directory: Path, file: Path) -> None:
    """What a reader wants of a run, without its checkpoints."""
    with tarfile.open(file, "w:gz") as tar:
        for name in KEPT:
            if (directory / name).exists():
                tar.add(directory / name, f"{directory.name}/{name}")


def tell(directory: Path) -> None:
    """Prints where the run is, and some poems on the way."""
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    for step, summary in curve(directory):
        low, high = summary["structure_ci"]
        print(f"step {step:5d}: structure x legitimacy {summary['structure_mean']:.3f} [{low:.3f}, {high:.3f}], strict "
              f"5-7-5 {summary['strict_575']:.1%}, topic {summary['topic_mention']:.2f}, distinct-2 "
              f"{summary['distinct_2']:.2f}")
    for step, text in poems(directory):
        print(f"-- step {step}\n{text.strip()}")
    gap = max(row["train/logprob_gap"] for row in rows)
    seconds = sum(row["time/rollout_s"] + row["time/train_s"] + row["time/sync_s"] for row in rows)
    print(f"{len(rows)} steps, {seconds:.0f} s of training, training reward of the last 20 steps "
          f"{sum(row['reward/mean'] for row in rows[-20:]) / len(rows[-20:]):.3f}, largest logprob gap {gap:.4f}")


def main() -> None:
    """One call's worth of the run."""
    began = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=240.0, help="of this call")
    parser.add_argument("--steps", type=int, default=2000, help="of the whole run")
    parser.add_argument("--preset", default="one-gpu")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    parser.add_argument("--tar", type=Path)
    options = parser.parse_args()
    stop_at = began + options.seconds - min(LAST_STEPS_S, options.seconds / 4)
    resume = (options.directory / "metrics.jsonl").exists()
    run(
        settings(options.model, options.steps, options.overrides, options.preset), output_dir=options.directory,
        resume=resume, hooks=Hooks(should_stop=lambda: time.monotonic() > stop_at),
    )
    print(write_report(options.directory))
    if options.tar:
        pack(options.directory, options.tar)
    tell(options.directory)


if __name__ == "__main__":
    main()
