"""What the coordinator costs: the part of a step in which neither engine, reward, trainer nor sync was at work. And
what writing the ledger costs: its share of a step, whether or not somebody worked meanwhile.

    python -m benchmarks.coordinator_overhead [--preset laptop] [--set KEY=VALUE ...] [--smoke] [--output FILE]

Spans are recorded inside the actors, around the work itself, on the machine's own clock; a step's overhead is its wall
time minus the union of the spans in it.
"""

import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from inspect import iscoroutinefunction
from pathlib import Path
from statistics import median
from typing import Any

import ray

from actors.engines.gpu_torch_engine import GpuTorchEngine
from actors.engines.torch_engine import TorchEngine
from actors.engines.vllm_engine import VllmEngine
from actors.reward_worker import RewardWorker
from actors.trainers.torch_trainer import TorchTrainer
from benchmarks.gpu.timeline import Span, gaps, medians_by_name, read_spans, union_s
from benchmarks.measure import Results, begin, interval, parser
from launch import start
from launch.local import run
from rlhaiku.config import load_config
from rlhaiku.coordinator import Coordinator
from rlhaiku.ledger import Ledger

GOAL = 0.02
ENGINES = (TorchEngine, GpuTorchEngine, VllmEngine)
FIRST_STEP = 3
"""Earlier ones warm up."""


def spanned(cls: type, methods: Sequence[str], directory: Path) -> type:
    """The class with each method's beginning and end appended to a file of its process; methods may be coroutines."""

    @contextmanager
    def written_down(self: object) -> Iterator[None]:
        began = time.time()
        yield
        with (directory / f"{cls.__name__}-{id(self)}.spans").open("a") as file:
            file.write(json.dumps([began, time.time()]) + "\n")

    def around(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)  # what Ray has written on it, too
        def method(self: object, *arguments: object, **named: object) -> object:
            with written_down(self):
                return function(self, *arguments, **named)

        @wraps(function)
        async def coroutine(self: object, *arguments: object, **named: object) -> object:
            with written_down(self):
                return await function(self, *arguments, **named)

        return coroutine if iscoroutinefunction(function) else method

    return type(cls.__name__, (cls,), {name: around(getattr(cls, name)) for name in methods})


def shares(windows: Sequence[Span], work: Sequence[Span]) -> list[float]:
    """Of each window, the share in which nobody of `work` was busy."""
    return [1 - union_s(work, window) / (window[1] - window[0]) for window in windows]


def watch(directory: Path) -> None:
    """Has every actor of the next run, its coordinator and its ledger leave their spans in `directory`."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    for engine in ENGINES:
        setattr(start, engine.__name__, spanned(engine, ["generate", "receive_weights"], directory))
    start.TorchTrainer = spanned(TorchTrainer, ["train_step", "send_weights"], directory)  # type: ignore[misc]
    start.RewardWorker = spanned(RewardWorker, ["rewards_now", "score"], directory)  # type: ignore[misc]
    Coordinator.step = spanned(Coordinator, ["step"], directory).step  # type: ignore[attr-defined,method-assign]
    Ledger.record = spanned(Ledger, ["record"], directory).record  # type: ignore[attr-defined,method-assign]


def steps_of(directory: Path) -> list[Span]:
    """Every step of a run that was watched."""
    return [span for path in directory.glob("Coordinator-*.spans") for span in read_spans(path)]


def add_overhead(results: Results, directory: Path, windows: Sequence[Span], what: str, note: str) -> None:
    """Prints and appends what the coordinator and the ledger took of these steps of a run that was watched."""
    written = [span for path in directory.glob("Ledger-*.spans") for span in read_spans(path)]
    by_class: defaultdict[str, list[Span]] = defaultdict(list)
    for path in directory.glob("[!CL]*.spans"):
        by_class[path.stem.partition("-")[0]] += read_spans(path)
    work = [span for spans in by_class.values() for span in spans]
    lengths = [ended - began for began, ended in windows]
    busy = [1 - share for share in shares(windows, written)]
    for part, values, more in (
        ("coordinator overhead", shares(windows, work), note),
        ("writing the ledger", busy, f"whether or not others worked; {note}"),
    ):
        seconds = [share * length for share, length in zip(values, lengths, strict=True)]
        _add_share(results, f"{part}, {what}", values, seconds, more)
    middle = medians_by_name([gaps(by_class, window) for window in windows])
    shown = ", ".join(f"{between} {1000 * seconds:.1f}" for between, seconds in middle.items() if seconds)
    print(f"  median milliseconds in which nobody was at work, by who had been and who was next: {shown}", flush=True)


def _add_share(results: Results, name: str, values: list[float], seconds: list[float], note: str) -> None:
    """Prints a share of a step and appends its record."""
    low, high = interval(values)
    made = results.add({
        "name": name, "kind": "share", "ratio": median(values), "low": low, "high": high, "goal": GOAL, "unit": "s",
        "samples": {"share": values, "seconds": seconds}, "order": "one side", "note": note,
    })  # fmt: skip
    met = "met" if made.is_met else "NOT met"
    print(f"{name}: {median(values):.1%} of a step [{low:.1%}, {high:.1%}], {1000 * median(seconds):.0f} ms "
          f"(goal {GOAL:.0%}: {met})", flush=True)


def main() -> None:
    """Runs a preset for some steps and prints the overhead."""
    options = parser(__doc__)
    options.add_argument("--preset", default="laptop")
    options.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    chosen = options.parse_args()
    results = begin(chosen)
    steps, smaller = (5, ["rollout.groups_per_step=4", "rollout.tile_groups=2"]) if chosen.smoke else (20, [])
    config = load_config(chosen.preset, [
        f"num_steps={steps}", f"evaluation.interval={steps}", "evaluation.num_prompts=2", *smaller, *chosen.overrides,
    ])
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        watch(directory)
        run(config, output_dir=directory / "run")
        windows = steps_of(directory)[FIRST_STEP:]
        note = f"{len(windows)} steps after {FIRST_STEP} to warm up; {' '.join(chosen.overrides)}".rstrip("; ")
        add_overhead(results, directory, windows, f"{chosen.preset} preset", note)


if __name__ == "__main__":
    main()
