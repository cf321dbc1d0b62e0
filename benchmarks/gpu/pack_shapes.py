"""What new shapes of packs cost the torch trainer on a GPU, and what a step takes once they have come some times.

    python -m benchmarks.gpu.pack_shapes [--model DIR] [--passes 6] [--tokens 16384] [--groups 32]
                                         [--smoke] [--output FILE] [--force]

The same steps over and over, of completions of changing lengths: with layers that prepare themselves for shapes
(`actors/trainers/layer_graphs.py`), and with plain ones, whose attention is cuDNN's, on packs of few columns and on
packs as wide as the prepared ones'. Each side is a process of its own, since what cuDNN has prepared stays; one before
them, which is not counted, has the kernels compiled.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from array import array
from pathlib import Path

from benchmarks.gpu.roofline import DEVICE, wait_for_device
from benchmarks.measure import ROOT, Results, begin, parser
from benchmarks.models import VOCABULARY, bundled
from benchmarks.sides import said
from rlhaiku.types import GroupKey, TrainBatch, TrainGroup, TrainSample

LENGTHS = (44, 44, 40, 36, 32, 28, 24, 20, 22, 25, 27, 30, 34, 38)
"""Mean completion of each step, in tokens: about what a small chat model writes while it learns to be short."""
SPREAD, SHORTEST, LONGEST = 6.0, 4, 48
TIMEOUT_S = 300.0
SIDES = ("plain", "plain, as wide", "prepared")


def batch(mean: int, seed: int, groups: int) -> TrainBatch:
    """Groups of 8 completions, whose lengths spread around `mean`."""
    draw = random.Random(seed)

    def tokens(count: int) -> list[int]:
        return [draw.randrange(VOCABULARY) for _ in range(count)]

    def sample() -> TrainSample:
        length = max(SHORTEST, min(LONGEST, round(draw.gauss(mean, SPREAD))))
        return TrainSample(array("i", tokens(length)), array("d", [-8.0] * length), draw.uniform(-1, 1), 0)

    return TrainBatch(0, 1.0, tuple(
        TrainGroup(
            GroupKey(claim, 0, str(claim)), tuple(tokens(draw.randrange(44, 52))), tuple(sample() for _ in range(8))
        )
        for claim in range(groups)
    ))  # fmt: skip


def run_side(side: str, options: argparse.Namespace) -> None:
    """One side's steps; prints their seconds, by pass."""
    from actors.trainers.layer_graphs import COLUMNS
    from actors.trainers.torch_trainer import TorchTrainer, TrainerSpec
    from rlhaiku.config import AlgorithmConfig, load_config

    config = load_config("one-gpu", [f"trainer.micro_batch_tokens={options.tokens}", "trainer.lr=1e-12"]).trainer
    batches = [batch(mean, place, options.groups) for place, mean in enumerate(LENGTHS)]
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights"
        trainer = TorchTrainer(TrainerSpec(str(options.model), weights, 1, 100, config, AlgorithmConfig(), DEVICE))
        policy = trainer._policy
        if side != "prepared":
            columns = COLUMNS if side == "plain" else policy.columns
            policy.columns, policy.keeps_gradients, policy._layers = columns, False, None
        seconds: list[list[float]] = []
        for _ in range(options.passes):
            seconds.append([])
            for made in batches:
                began = time.perf_counter()
                trainer.train_step(made)
                wait_for_device()
                seconds[-1].append(time.perf_counter() - began)
    print("SECONDS " + json.dumps(seconds), flush=True)


def seconds_of(side: str, options: argparse.Namespace, passes: int) -> list[list[float]]:
    """One side's steps in a process of their own."""
    command = [sys.executable, "-m", "benchmarks.gpu.pack_shapes", "--side", side, "--model", str(options.model),
               "--passes", str(passes), "--tokens", str(options.tokens), "--groups", str(options.groups)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    if done.returncode:
        sys.exit(f"the {side} side failed:\n{done.stderr[-3000:]}")
    found: list[list[float]] = said(done.stdout, "SECONDS ")
    return found


def compare(options: argparse.Namespace, results: Results) -> None:
    """All sides; for each plain one a record of all steps but the very first, and one of the last pass."""
    for side in SIDES:
        seconds_of(side, options, 1)
    steps = {side: seconds_of(side, options, options.passes) for side in SIDES}
    for side, passes in steps.items():
        for number, one in enumerate(passes, start=1):
            shown = " ".join(f"{each:.3f}" for each in one)
            print(f"  {side}, pass {number}: {sum(one):.2f} s: {shown}", flush=True)
    every = {side: [each for one in passes for each in one][1:] for side, passes in steps.items()}
    for side in SIDES[:-1]:
        for name, (theirs, ours) in {
            "all steps but the very first": (every[side], every["prepared"]),
            "the last pass": (steps[side][-1], steps["prepared"][-1]),
        }.items():
            record = results.add({
                "name": f"train steps of changing shapes, {options.model.name}, {name}: {side} / prepared",
                "kind": "speed-up", "ratio": sum(theirs) / sum(ours), "unit": "s", "order": "one pair",
                "samples": {"baseline_s": theirs, "ours_s": ours},
                "note": f"{options.groups} x 8, {options.tokens} tokens, {options.passes} passes",
            })  # fmt: skip
            print(f"{record.name} {record.ratio:.2f}x, {sum(theirs):.2f} -> {sum(ours):.2f} s", flush=True)


def main() -> None:
    """Compares, or is one of the sides."""
    made = parser(__doc__)
    made.add_argument("--model", type=Path, default=bundled())
    made.add_argument("--passes", type=int, default=6)
    made.add_argument("--tokens", type=int, default=16_384, help="of a micro-batch")
    made.add_argument("--groups", type=int, default=32)
    made.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = made.parse_args()
    if options.smoke:
        options.passes, options.groups = 2, 2
    options.model = options.model.resolve()
    if options.side:
        run_side(options.side, options)
    else:
        compare(options, begin(options))


if __name__ == "__main__":
    main()
