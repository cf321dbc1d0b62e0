"""What the coordinator costs: the part of a step in which neither engine, reward, trainer nor sync was at work. And
what writing the ledger costs: its share of a step, whether or not somebody worked meanwhile.

    python -m benchmarks.coordinator_overhead [--preset laptop] [--set KEY=VALUE ...] [--smoke] [--output FILE]

Spans are recorded inside the actors, around the work itself, on the machine's own clock; a step's overhead is its wall
time minus the union of the spans in it.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from statistics import median
from typing import Any

import ray

from actors.engines.gpu_torch_engine import GpuTorchEngine
from actors.engines.torch_engine import TorchEngine
from actors.engines.vllm_engine import VllmEngine
from actors.reward_worker import RewardWorker
from actors.trainers.torch_trainer import TorchTrainer
from benchmarks.gpu.timeline import read_spans, union_s
from benchmarks.measure import circumstances
from launch import start
from launch.local import run
from rlhaiku.config import load_config
from rlhaiku.coordinator import Coordinator
from rlhaiku.ledger import Ledger

GOAL = 0.02
FIRST_STEP = 3
"""Earlier ones warm up."""


def spanned(cls: type, methods: Sequence[str], directory: Path) -> type:
    """The class with each method's beginning and end appended to a file of its process."""

    def around(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)  # what Ray has written on it, too
        def method(self: object, *arguments: object, **named: object) -> object:
            began = time.time()
            result = function(self, *arguments, **named)
            with (directory / f"{cls.__name__}-{id(self)}.spans").open("a") as file:
                file.write(json.dumps([began, time.time()]) + "\n")
            return result

        return method

    return type(cls.__name__, (cls,), {name: around(getattr(cls, name)) for name in methods})


def main() -> None:
    """Runs a preset for some steps and prints the overhead."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/latest.jsonl"))
    parser.add_argument("--preset", default="laptop")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    steps = 4 if options.smoke else 20
    config = load_config(options.preset, [
        f"num_steps={steps}", f"evaluation.interval={steps}", "evaluation.num_prompts=2", *options.overrides,
    ])
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for engine in (TorchEngine, GpuTorchEngine, VllmEngine):
            setattr(start, engine.__name__, spanned(engine, ["generate", "receive_weights"], directory))
        start.TorchTrainer = spanned(TorchTrainer, ["train_step", "send_weights"], directory)  # type: ignore[misc]
        start.RewardWorker = spanned(RewardWorker, ["rewards_now"], directory)  # type: ignore[misc]
        Coordinator.step = spanned(Coordinator, ["step"], directory).step  # type: ignore[attr-defined,method-assign]
        Ledger.record = spanned(Ledger, ["record"], directory).record  # type: ignore[attr-defined,method-assign]
        load = os.getloadavg()[0]
        run(config, output_dir=directory / "run")
        windows = [span for path in directory.glob("Coordinator-*.spans") for span in read_spans(path)]
        written = [span for path in directory.glob("Ledger-*.spans") for span in read_spans(path)]
        work = [span for path in directory.glob("[!CL]*.spans") for span in read_spans(path)]
    shares, overheads_ms, ledger_shares = [], [], []
    for began, ended in windows[FIRST_STEP:]:
        ledger_shares.append(union_s(written, (began, ended)) / (ended - began))
        idle_s = ended - began - union_s(work, (began, ended))
        shares.append(idle_s / (ended - began))
        overheads_ms.append(1000 * idle_s)
    share, ledger_share = median(shares), median(ledger_shares)
    met = "met" if share <= GOAL else "NOT met"
    print(f"coordinator overhead: {share:.1%} of a step, {median(overheads_ms):.0f} ms (goal {GOAL:.0%}: {met})")
    print(f"writing the ledger: {ledger_share:.1%} of a step (goal {GOAL:.0%}: "
          f"{'met' if ledger_share <= GOAL else 'NOT met'})")
    if not options.smoke:
        name = f"coordinator overhead, {options.preset} preset"
        row = {"name": name, "overrides": options.overrides, "share": share, "ms": overheads_ms,
               "ledger_share": ledger_share, "goal": GOAL}
        with options.output.open("a") as file:
            file.write(json.dumps(circumstances(load) | row) + "\n")


if __name__ == "__main__":
    main()
