"""Paired measurements: two ways of doing the same, in turns, in one run; only their ratio is reported."""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # before anybody imports transformers
SETTLE_S = 120.0
RESAMPLES = 2000
PACKAGES = ("numpy", "ray", "aiohttp", "torch", "transformers")


@dataclass(frozen=True)
class Paired:
    """What a paired measurement found. `ratio` is baseline time / our time: above 1, we are faster."""

    name: str
    ratio: float
    low: float
    """Lower end of the 90 % bootstrap interval of the median ratio."""
    high: float
    baseline_s: list[float]
    ours_s: list[float]
    baseline_cpu_s: list[float]
    ours_cpu_s: list[float]
    goal: float | None
    note: str


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds of one call (the CPU of this process and its finished children)."""
    cpu, wall = sum(os.times()[:4]), time.perf_counter()
    work()
    return time.perf_counter() - wall, sum(os.times()[:4]) - cpu


def paired(
    name: str,
    baseline: Callable[[], object],
    ours: Callable[[], object],
    *,
    pairs: int = 7,
    goal: float | None = None,
    note: str = "",
) -> Paired:
    """Times both in turns, order alternating, after one warm-up of each; prints a line."""
    baseline(), ours()
    walls: tuple[list[float], list[float]] = ([], [])
    cpus: tuple[list[float], list[float]] = ([], [])
    for pair in range(pairs):
        for side in (0, 1) if pair % 2 == 0 else (1, 0):
            wall, cpu = timed((baseline, ours)[side])
            walls[side].append(wall)
            cpus[side].append(cpu)
    ratios = np.array(walls[0]) / np.array(walls[1])
    resamples = np.random.default_rng(0).integers(pairs, size=(RESAMPLES, pairs))
    low, high = np.percentile(np.median(ratios[resamples], axis=1), (5, 95))
    result = Paired(name, float(np.median(ratios)), float(low), float(high), *walls, *cpus, goal, note)
    met = "" if goal is None else f"  goal {goal:g}: {'met' if result.ratio >= goal else 'NOT met'}"
    before_ms, after_ms = (1000 * float(np.median(side)) for side in walls)
    print(f"{name:<58} {result.ratio:6.2f}x [{low:.2f}, {high:.2f}]  {before_ms:.2f} -> {after_ms:.2f} ms{met}")
    return result


def refuse_when_busy(force: bool) -> float:
    """The load average, or an exit: times taken on a busy machine say nothing. What ran before may first fade."""
    cores, deadline = os.cpu_count() or 1, time.monotonic() + SETTLE_S
    while (load := os.getloadavg()[0]) > cores and not force and time.monotonic() < deadline:
        time.sleep(5)
    if load > cores and not force:
        sys.exit(f"the load average must not exceed the {cores} cores; it is {load:.1f}. Wait, or add --force.")
    return load


def standard_main(description: str | None, measure: Callable[[bool], list[Paired]]) -> None:
    """The command line every benchmark shares; `measure(smoke)` does the work."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/latest.jsonl"))
    parser.add_argument("--force", action="store_true", help="measure on a busy machine all the same")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: shows that it runs, measures nothing")
    options = parser.parse_args()
    load = refuse_when_busy(options.force or options.smoke)
    results = measure(options.smoke)
    if not options.smoke:
        write_results(options.output, results, load)


def circumstances(load: float) -> dict[str, object]:
    """Everything needed to read a number later."""
    return {
        "command": " ".join([Path(sys.executable).name, *sys.argv]),
        "date": time.strftime("%Y-%m-%d %H:%M:%S"),
        "device": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "load_before": load,
        "order": "ABBA",
    }


def write_results(path: Path, results: list[Paired], load: float) -> None:
    """Appends one JSON line per result, with its circumstances."""
    with path.open("a") as file:
        file.writelines(json.dumps(circumstances(load) | asdict(result)) + "\n" for result in results)
