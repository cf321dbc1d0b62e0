"""Kills at random moments of real runs: whose death, what was lost, and whether the weights are those of a calm run.

    python -m benchmarks.chaos [--kills 50] [--seed 0] [--output FILE]

Every run is the bundled model with real Ray actors, in a process of its own. This process finds the actors' processes
from outside, in /proc, and kills them with SIGKILL, stops them with SIGSTOP (a hang), kills the driver, or all of it; a
dead driver is started again with --resume.
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

from rlhaiku.ledger import Ledger

STEPS = 12
SETTINGS = {
    "num_steps": STEPS, "trainer.lr_schedule": "constant", "reward.num_workers": 1, "evaluation.interval": STEPS,
    "evaluation.num_prompts": 8, "output.save_interval": 2, "cluster.wait_timeout_s": 20,
}
VICTIMS = {  # and how often each is chosen
    "rollout engine": 4, "reward worker": 2, "trainer": 3, "rollout engine, stopped": 1, "driver": 2, "everything": 1,
}
CLASSES = {"rollout engine": "TorchEngine", "reward worker": "RewardWorker", "trainer": "TorchTrainer"}
MEAN_S, LEAST_S = 5.0, 2.0
RUN_TIMEOUT_S = 900.0
RECOVERED = re.compile(r"(?:the )?([a-z ]+?)(?: \d+)? works again, ([\d.]+) s after")


@dataclass
class Tally:
    """What all runs together came to."""

    kills: Counter[str] = field(default_factory=Counter)
    recoveries_s: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    runs: int = 0
    equal: int = 0
    lost: int = 0
    duplicated: int = 0
    failures: list[str] = field(default_factory=list)


def start(directory: Path, resume: bool, log: Path) -> subprocess.Popen[bytes]:
    """A driver in a session of its own."""
    settings = [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    how = ["--resume"] if resume else ["--preset", "laptop", *settings]
    train = "from launch.cli import main; main()", "train"
    command = [sys.executable, "-c", *train, "--output-dir", str(directory), *how]
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "COLUMNS": "200"}
    with log.open("ab") as out:
        return subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True, env=environment)


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


def find(driver: int, victim: str) -> list[int]:
    """The processes a victim's name stands for; none if it is not up at the moment."""
    if victim == "driver":
        return [driver]
    if victim == "everything":
        return [driver, *descendants(driver)]
    wanted = f"ray::{CLASSES[victim.partition(',')[0]]}"
    found = []
    for pid in descendants(driver):
        with suppress(OSError):
            if Path(f"/proc/{pid}/cmdline").read_text().startswith(wanted):
                found.append(pid)
    return found


def strike(driver: int, victim: str, rng: Random) -> bool:
    """Kills or stops one victim; false if there was none."""
    pids = find(driver, victim)
    if not pids or not find(driver, "trainer"):  # a run that only starts is not worth a kill
        return False
    number = signal.SIGSTOP if victim.endswith("stopped") else signal.SIGKILL
    for pid in pids if victim == "everything" else [rng.choice(pids)]:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
    return True


def one_run(directory: Path, rng: Random, tally: Tally, most_kills: int) -> None:
    """A run, killed now and then until it has had enough, then left to finish."""
    log = directory.with_suffix(".log")
    driver = start(directory, False, log)
    deadline = time.monotonic() + RUN_TIMEOUT_S
    kills = 0
    while time.monotonic() < deadline:
        with suppress(subprocess.TimeoutExpired):
            driver.wait(LEAST_S + rng.expovariate(1 / MEAN_S))
        if driver.returncode == -signal.SIGKILL:
            driver = start(directory, (directory / "ledger.sqlite").exists(), log)
        elif driver.returncode is not None:
            break
        elif kills < most_kills and (directory / "ledger.sqlite").exists():
            (victim,) = rng.choices(list(VICTIMS), weights=list(VICTIMS.values()))
            if strike(driver.pid, victim, rng):
                kills += 1
                tally.kills[victim] += 1
    tally.runs += 1
    if driver.returncode != 0:
        tally.failures.append(f"{directory.name} ended with {driver.returncode}:\n{log.read_text()[-1500:]}")
        driver.kill()
    for who, seconds in RECOVERED.findall(log.read_text()):
        tally.recoveries_s[who.strip()].append(float(seconds))


def compare(directory: Path, calm: Path, tally: Tally) -> None:
    """Weights to the last bit, every claim once."""
    import torch

    ours, theirs = (
        torch.load(run / "checkpoints" / f"step-{STEPS:06d}" / "trainer.pt", weights_only=True)["weights"]
        for run in (directory, calm)
    )
    tally.equal += all(torch.equal(ours[name], theirs[name]) for name in theirs)
    with Ledger(directory / "ledger.sqlite") as ledger:
        claims = Counter(claim for step in ledger.lineage() for claim in step.trained + step.dropped)
    tally.lost += STEPS * 16 - len(claims)
    tally.duplicated += sum(count - 1 for count in claims.values())


def report(tally: Tally, seconds: float) -> str:
    """The table for RESULTS.md."""
    lines = ["| victim | kills | replaced or restarted in the run | recovery p50 | max |", "|---|---|---|---|---|"]
    for victim in VICTIMS:
        times = tally.recoveries_s.get(victim, [])
        shown = f"{len(times)} | {median(times):.1f} s | {max(times):.1f} s" if times else "- | - | -"
        lines.append(f"| {victim} | {tally.kills[victim]} | {shown} |")
    lines.append(
        f"\n{tally.kills.total()} kills in {tally.runs} runs, {seconds / 60:.1f} minutes: {tally.lost} groups lost, "
        f"{tally.duplicated} trained twice, {tally.equal} of {tally.runs} runs with the calm run's weights to the bit."
    )
    return "\n".join(lines + tally.failures)


def main() -> None:
    """Runs until enough were killed; exit status 1 if anything was lost, doubled or different."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--kills-per-run", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng, tally, started = Random(options.seed), Tally(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="rlhaiku-chaos-") as name:
        root = Path(name)
        calm = root / "calm"
        driver = start(calm, False, root / "calm.log")
        if driver.wait(RUN_TIMEOUT_S) != 0:
            sys.exit((root / "calm.log").read_text())
        while tally.kills.total() < options.kills and not tally.failures:
            directory = root / f"run-{tally.runs}"
            one_run(directory, rng, tally, min(options.kills_per_run, options.kills - tally.kills.total()))
            if not tally.failures:
                compare(directory, calm, tally)
            print(f"run {tally.runs}: {tally.kills.total()} kills so far, {tally.equal} runs equal", flush=True)
    print(report(tally, time.monotonic() - started))
    sys.exit(bool(tally.failures or tally.lost or tally.duplicated or tally.equal < tally.runs))


if __name__ == "__main__":
    main()
