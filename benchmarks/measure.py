"""Paired measurements: two ways of doing the same, in turns, in one run; only their ratio is reported.

Whatever is measured becomes a `Record`, one JSON line, written as soon as it is there: a time limit loses nothing.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, computed_field

ROOT = Path(__file__).parents[1]
LATEST = ROOT / "benchmarks" / "latest.jsonl"
SETTLE_S = 120.0
RESAMPLES = 2000
ASK_S = 20.0
"""Longest wait for git or the driver."""
SWITCHES = ("RLHAIKU_KERNELS",)
"""Of the environment: they are written in front of the command."""
PACKAGES = ("numpy", "ray", "aiohttp", "torch", "transformers", "vllm")


class Record(BaseModel):
    """One line of results: what was found, and everything needed to read it later."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    kind: Literal["speed-up", "share"]
    """`speed-up`: baseline / ours, the more the better; `share`: a part of the whole, the less the better."""
    ratio: float | None
    """Median over the samples; None if one side never got there."""
    low: float | None = None
    """Lower end of the 90 % bootstrap interval of the median, or what `note` says."""
    high: float | None = None
    goal: float | None = None
    unit: str
    """Of the samples, where their name does not say another."""
    samples: dict[str, list[float]]
    """Everything that was measured, in the order in which it was."""
    order: Literal["ABBA", "one pair", "by seed", "one side"]
    """How the sides took turns; `by seed`: the other one begins with each seed."""
    bound: str = ""
    """What the machine allows, measured in the same run."""
    note: str = ""
    command: str
    date: str
    commit: str
    """`+` at its end: with changes that are not committed."""
    device: str
    gpu: str
    cores: int
    python: str
    packages: dict[str, str]
    peer_packages: dict[str, str] = {}
    """Of the other side, where it ran in an environment of its own."""
    load: float
    """Load average before the program began to measure."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def is_met(self) -> bool | None:
        """Whether the goal is reached; None without one."""
        if self.goal is None:
            return None
        if self.ratio is None:
            return False
        return self.ratio <= self.goal if self.kind == "share" else self.ratio >= self.goal


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
    bound: str = ""


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
    low, high = interval(ratios.tolist())
    result = Paired(name, float(np.median(ratios)), low, high, *walls, *cpus, goal, note)
    met = "" if goal is None else f"  goal {goal:g}: {'met' if result.ratio >= goal else 'NOT met'}"
    before_ms, after_ms = (1000 * float(np.median(side)) for side in walls)
    said = f"{name:<58} {result.ratio:6.2f}x [{low:.2f}, {high:.2f}]  {before_ms:.2f} -> {after_ms:.2f} ms{met}"
    print(said, flush=True)
    return result


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 90 % bootstrap interval of their median."""
    resamples = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.percentile(np.median(np.array(values)[resamples], axis=1), (5, 95))
    return float(low), float(high)


def refuse_when_busy(force: bool) -> float:
    """The load average, or an exit: times taken on a busy machine say nothing. What ran before may first fade."""
    cores, deadline = os.cpu_count() or 1, time.monotonic() + SETTLE_S
    while (load := os.getloadavg()[0]) > cores and not force and time.monotonic() < deadline:
        time.sleep(5)
    if load > cores and not force:
        sys.exit(f"the load average must not exceed the {cores} cores; it is {load:.1f}. Wait, or add --force.")
    return load


class Results:
    """Where a program's records go, with the circumstances that they share."""

    def __init__(self, path: Path | None, load: float) -> None:
        """Without a path nothing is kept."""
        self._path, self._load = path, load

    def add(self, record: dict[str, object]) -> Record:
        """Completes a record, and appends it at once."""
        made = Record.model_validate(circumstances(self._load) | record)
        if self._path:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a") as file:
                file.write(made.model_dump_json() + "\n")
                file.flush()
                os.fsync(file.fileno())
        return made

    def add_paired(self, result: Paired) -> Record:
        """Appends what `paired` found."""
        samples = {
            name: getattr(result, name) for name in ("baseline_s", "ours_s", "baseline_cpu_s", "ours_cpu_s")
            if getattr(result, name)
        }  # fmt: skip
        return self.add({
            "name": result.name, "kind": "speed-up", "ratio": result.ratio, "low": result.low, "high": result.high,
            "goal": result.goal, "unit": "s", "samples": samples, "order": "ABBA", "bound": result.bound,
            "note": result.note,
        })  # fmt: skip


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--output", type=Path, help=f"append records to this file, by default {LATEST.name}")
    made.add_argument("--force", action="store_true", help="measure on a busy machine all the same")
    made.add_argument("--smoke", action="store_true", help="tiny sizes: shows that it runs, and measures nothing")
    return made


def begin(options: argparse.Namespace) -> Results:
    """The records of a program; exits on a busy machine. A smoke run keeps them only where it is told to."""
    load = refuse_when_busy(options.force or options.smoke)
    return Results(options.output or (None if options.smoke else LATEST), load)


def standard_main(description: str | None, measure: Callable[[bool], Iterable[Paired]]) -> None:
    """The command line of benchmarks without options of their own; `measure(smoke)` does the work, one by one."""
    options = parser(description).parse_args()
    results = begin(options)
    for result in measure(options.smoke):
        results.add_paired(result)


def read_results(path: Path) -> list[Record]:
    """Every record of a file; raises ValidationError for a line that is none."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [Record.model_validate({key: line[key] for key in line if key != "is_met"}) for line in lines]


def circumstances(load: float) -> dict[str, object]:
    """What all records of a program have in common."""
    gpus = _ask("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
        gpus = gpus[: len(visible.split(","))]
    switches = [f"{name}={os.environ[name]}" for name in SWITCHES if name in os.environ]
    return {
        "command": " ".join([*switches, Path(sys.executable).name, "-m", _module(), *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d %H:%M:%S"),
        "commit": _commit(),
        "device": _processor(),
        "gpu": f"{len(gpus)} x {gpus[0]}" if gpus else "",
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "load": load,
    }


def _module() -> str:
    program = Path(sys.argv[0]).resolve()
    return ".".join(program.relative_to(ROOT).with_suffix("").parts) if program.is_relative_to(ROOT) else program.name


def _processor() -> str:
    """As its maker calls it; `platform.processor()` is empty on Linux."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _commit() -> str:
    head = _ask("git", "-C", str(ROOT), "rev-parse", "--short=10", "HEAD")
    changed = _ask("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no")
    return (head[0] if head else "unknown") + ("+" if changed else "")


def _ask(*command: str) -> list[str]:
    """Lines of what it prints; none if it cannot."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ASK_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.splitlines() if done.returncode == 0 else []


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
