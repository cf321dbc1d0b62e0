"""Kills at random moments of real runs: whose death, what was lost, and whether the run is that of a calm one.

    python -m benchmarks.chaos [--kills 50] [--kills-per-run 10] [--seed 0] [--minutes 20]

Every run is the bundled model with real Ray actors, in a process of its own. This process finds the actors' processes
from outside, in /proc, and kills them with SIGKILL, stops them with SIGSTOP (a hang), kills the driver, or all of it,
at any moment, also while a run starts or starts again; a dead driver is started again with --resume. A kill counts if
the signal reached a living process of a run that was not over.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from statistics import median

from rlhaiku.config import load_config
from rlhaiku.haiku.reward import HaikuReward
from rlhaiku.types import Prompt, Reward

STEPS, GROUPS, SAMPLES = 12, 16, 8
SETTINGS = {
    "num_steps": STEPS, "trainer.lr_schedule": "constant", "evaluation.interval": STEPS, "evaluation.num_prompts": 8,
    "output.save_interval": 1, "output.poems_interval": 1, "cluster.wait_timeout_s": 20,
    "reward.functions": {"benchmarks.chaos:slow_haiku": 1.0},
}
VICTIMS = {  # and how often each is chosen
    "rollout engine": 6, "reward worker": 4, "trainer": 3, "rollout engine, stopped": 1, "trainer, stopped": 1,
    "driver": 3, "everything": 2,
}
DRIVERS = "driver", "everything"
CLASSES = {"rollout engine": "TorchEngine", "reward worker": "RewardWorker", "trainer": "TorchTrainer"}
MEAN_S, LEAST_S = 4.0, 1.0
RUN_TIMEOUT_S, REAP_S, TICK_S = 600.0, 30.0, 0.1
POEM_S = 0.001
"""What a poem takes to score, so that reward workers are at work now and then when they are killed."""
DIED = re.compile(r"(?P<who>rollout engine \d+|reward worker \d+|the trainer) \(pid (?P<pid>\d+) on")
RECOVERED = re.compile(r"^(?P<who>[a-z ]+\d*) works again, (?P<seconds>[\d.]+) s after .*, (?P<up>[\d.]+) s after")
STEP = re.compile(r"^step +\d+/", re.MULTILINE)
_HAIKU = HaikuReward(load_config("laptop").reward.topic_weight)


def slow_haiku(prompt: Prompt, text: str) -> Reward:
    """The laptop preset's reward, but never in the driver, where only rlhaiku's own functions are called."""
    time.sleep(POEM_S)
    return _HAIKU(prompt, text)


@dataclass
class Tally:
    """What all runs together came to."""

    kills: Counter[str] = field(default_factory=Counter)
    noticed: Counter[str] = field(default_factory=Counter)
    """Kills that the run reported, by victim; with the others the driver died too, or the run ended unharmed."""
    recoveries_s: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    up_s: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """The part of a recovery after the successor's start."""
    crash_loops: int = 0
    """Drivers that gave up, since kills came faster than steps; started again by hand as the others."""
    runs: int = 0
    equal: Counter[str] = field(default_factory=Counter)
    """Runs with the calm run's weights, metrics, poems."""
    lost: int = 0
    duplicated: int = 0
    failures: list[str] = field(default_factory=list)


class Run:
    """One run and all its drivers."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.log = directory, directory.with_suffix(".log")
        self.victims: dict[int, str] = {}
        """By process: who was killed or stopped, and how it is called."""
        self._restart: tuple[str, int, float] | None = None
        """The last death of a driver: the victim, where the log then ended, and when the next one was started."""
        self.driver = self._start(["--preset", "laptop", *_settings()])

    def _start(self, how: list[str]) -> subprocess.Popen[bytes]:
        """A driver in a session of its own."""
        train = "from launch.cli import main; main()", "train"
        command = [sys.executable, "-c", *train, "--output-dir", str(self.directory), *how]
        root = str(Path(__file__).parents[1])
        environment = os.environ | {"PYTHONUNBUFFERED": "1", "COLUMNS": "200", "PYTHONPATH": root}
        self.began = len(self.text()) if self.log.exists() else 0
        with self.log.open("ab") as out:
            return subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True, env=environment)

    def start_again(self, victim: str) -> None:
        """As a person would: with --resume where there is something to resume."""
        self._restart = victim, len(self.text()), time.monotonic()
        resume = ["--resume"] if (self.directory / "config.toml").exists() else ["--preset", "laptop", *_settings()]
        self.driver = self._start(resume)

    def gave_up(self) -> bool:
        """Whether the driver ended because actors died without end."""
        return self.driver.poll() == 1 and "CrashLoop" in self.text()[self.began :]

    def watch(self, tally: Tally) -> None:
        """Notes the first step that a new driver finishes."""
        if self._restart is None:
            return
        victim, offset, started_s = self._restart
        if STEP.search(self.text(), offset):
            tally.recoveries_s[victim].append(time.monotonic() - started_s)
            self._restart = None

    def text(self) -> str:
        """What its drivers have printed."""
        return self.log.read_text(errors="replace")

    def is_over(self) -> bool:
        """Nothing is trained any more."""
        return (self.directory / "checkpoints" / f"step-{STEPS:06d}").exists() and "done in" in self.text()

    def find(self, victim: str) -> list[int]:
        """The processes a victim's name stands for; none if it is not up at the moment, or was stopped before."""
        if victim == "driver":
            return [self.driver.pid]
        if victim == "everything":
            return [self.driver.pid, *descendants(self.driver.pid)]
        wanted = f"ray::{CLASSES[victim.partition(',')[0]]}"
        found = {pid: command_line(pid) for pid in descendants(self.driver.pid) if pid not in self.victims}
        # A stopped start ends after actors.actor.START_TIMEOUT_S, ten minutes: nothing to see for a benchmark.
        unfit = "__init__" if victim.endswith("stopped") else "\n"
        return [pid for pid, title in found.items() if title.startswith(wanted) and unfit not in title]

    def strike(self, victim: str, rng: Random) -> bool:
        """Kills or stops one victim; false if nothing was hit."""
        pids = self.find(victim)
        if not pids or self.is_over():
            return False
        number = signal.SIGSTOP if victim.endswith("stopped") else signal.SIGKILL
        chosen = pids if victim == "everything" else [rng.choice(pids)]
        for pid in chosen:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        if victim in DRIVERS:
            if self.driver.wait(REAP_S) != -signal.SIGKILL:  # it was just ending
                return False
            self.start_again(victim)
        else:
            self.victims[chosen[0]] = victim
        return True


def _settings() -> list[str]:
    shown = {key: value if isinstance(value, str) else json.dumps(value) for key, value in SETTINGS.items()}
    shown["reward.functions"] = '{ "benchmarks.chaos:slow_haiku" = 1.0 }'
    return [part for key, value in shown.items() for part in ("--set", f"{key}={value}")]


def descendants(pid: int) -> list[int]:
    """Every process below one."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parents[int(status.parent.name)] = int(status.read_text().rpartition(")")[2].split()[1])
    found: list[int] = []
    layer = {pid}
    while layer:
        layer = {child for child, parent in parents.items() if parent in layer}
        found += sorted(layer)
    return found


def command_line(pid: int) -> str:
    """Of a living process, else empty."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


def one_run(run: Run, rng: Random, tally: Tally, most_kills: int) -> None:
    """A run, killed now and then until it has had enough, then left to finish."""
    deadline, kills = time.monotonic() + RUN_TIMEOUT_S, 0
    next_s = time.monotonic() + LEAST_S + rng.expovariate(1 / MEAN_S)
    while (run.driver.poll() is None or run.gave_up()) and time.monotonic() < deadline:
        if run.gave_up():
            tally.crash_loops += 1
            run.start_again("crash loop")
        time.sleep(TICK_S)
        run.watch(tally)
        if kills == most_kills or time.monotonic() < next_s:
            continue
        next_s = time.monotonic() + LEAST_S + rng.expovariate(1 / MEAN_S)
        (victim,) = rng.choices(list(VICTIMS), weights=list(VICTIMS.values()))
        if run.strike(victim, rng):
            kills += 1
            tally.kills[victim] += 1
    tally.runs += 1
    _read_log(run, tally)
    if run.driver.returncode != 0:
        tally.failures.append(f"{run.directory.name} ended with {run.driver.returncode}:\n{run.text()[-3000:]}")
        run.driver.kill()


def _read_log(run: Run, tally: Tally) -> None:
    """Which of the killed the run missed, and how long it took until somebody did their work again."""
    replaced: dict[str, str] = {}
    for line in run.text().splitlines():
        died, recovered = DIED.search(line), RECOVERED.search(line)
        if died and (victim := run.victims.pop(int(died["pid"]), None)):
            tally.noticed[victim] += 1
            replaced["the trainer" if line.startswith("starting again") else died["who"]] = victim
        if recovered and (victim := replaced.pop(recovered["who"], None)):
            tally.recoveries_s[victim].append(float(recovered["seconds"]))
            tally.up_s[victim].append(float(recovered["up"]))


def compare(directory: Path, calm: Path, tally: Tally) -> None:
    """Weights to the last bit, metrics but for times, every poem; and each group once among what was trained."""
    import torch

    weights = [torch.load(newest(run) / "trainer.pt", weights_only=True)["weights"] for run in (directory, calm)]
    tally.equal["weights"] += all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])
    tally.equal["metrics"] += metrics(directory) == metrics(calm)
    tally.equal["poems"] += poems(directory) == poems(calm)
    rows = [json.loads(line) for line in (directory / "samples.jsonl").read_text().splitlines()]
    counts = Counter(row["group"] for row in rows)  # the ledger's index forbids a claim twice: it could not show one
    tally.lost += len(set(range(STEPS * GROUPS)) - counts.keys())
    tally.duplicated += sum(count > SAMPLES for count in counts.values())


def newest(directory: Path) -> Path:
    """The checkpoint after the last step."""
    return directory / "checkpoints" / f"step-{STEPS:06d}"


def metrics(directory: Path) -> list[dict[str, float]]:
    """Rows without what differs between any two runs."""
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("time/") and not k.endswith("_per_s")} for row in rows]


def poems(directory: Path) -> dict[str, str]:
    """Every poem of training and evaluations, with what it earned."""
    paths = [directory / "samples.jsonl", *sorted(directory.glob("eval/*.json"))]
    return {path.name: path.read_text() for path in paths}


def report(tally: Tally, seconds: float) -> str:
    """The table for RESULTS.md."""
    lines = [
        "| victim | kills | noticed | recovery p50 | max | of it after the start: p50 | max |",
        "|---|---|---|---|---|---|---|",
    ]
    for victim in VICTIMS:
        times = [_shown(values[victim]) for values in (tally.recoveries_s, tally.up_s)]
        noticed = tally.kills[victim] if victim in DRIVERS else tally.noticed[victim]
        lines.append(f"| {victim} | {tally.kills[victim]} | {noticed} | {times[0]} | {times[1]} |")
    equal = ", ".join(f"{count} with its {what}" for what, count in tally.equal.items())
    lines.append(
        f"\n{tally.kills.total()} kills in {tally.runs} runs, {seconds / 60:.1f} minutes: {tally.lost} groups lost, "
        f"{tally.duplicated} trained twice, {tally.crash_loops} times a driver gave up and was started again; of "
        f"{tally.runs} runs, compared with the calm one to the bit: {equal}."
    )
    return "\n".join(lines + tally.failures)


def _shown(times: list[float]) -> str:
    return f"{median(times):.1f} s | {max(times):.1f} s" if times else "- | -"


def main() -> None:
    """Runs until enough were killed; exit status 1 if anything was lost, doubled or different."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--kills-per-run", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=20, help="begin no further run after so long")
    options = parser.parse_args()
    rng, tally, started = Random(options.seed), Tally(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="rlhaiku-chaos-") as name:
        root = Path(name)
        calm = Run(root / "calm")
        if calm.driver.wait(RUN_TIMEOUT_S) != 0:
            sys.exit(calm.text())
        while tally.kills.total() < options.kills and time.monotonic() - started < 60 * options.minutes:
            run = Run(root / f"run-{tally.runs}")
            one_run(run, rng, tally, min(options.kills_per_run, options.kills - tally.kills.total()))
            if tally.failures:
                break
            compare(run.directory, calm.directory, tally)
            minutes = (time.monotonic() - started) / 60
            said = f"{tally.kills.total()} kills, {minutes:.1f} minutes, equal: {dict(tally.equal)}"
            print(f"run {tally.runs}: {said}", flush=True)
    print(report(tally, time.monotonic() - started))
    differs = any(count < tally.runs for count in tally.equal.values())
    sys.exit(bool(tally.failures or tally.lost or tally.duplicated or differs))


if __name__ == "__main__":
    main()
