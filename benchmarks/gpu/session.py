"""Everything that a GPU has to show, in stages that each end in time; for machines one has for minutes only.

    python -m benchmarks.gpu.session --output DIR [--seconds 560] [--smoke] LANE [LANE ...]

A lane is a card and its stages, one after the other: `0:gpu_tests,rollout_speed`, or `0+1:links` for stages that take
both; lanes run side by side. Each stage is a process of its own with a limit, and whatever it started ends with it; a
failure ends its stage alone. Stages write their results to DIR/results.jsonl as they come, those called slime_PART to
DIR/slime/PART.json, and all they say to DIR/cards-CARDS.log. `--list` names the stages. `--smoke` rehearses them, on
machines without a card too.

What one call leaves to the next (SmolLM2's files, the learning curve's run) is in --scratch.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.chaos import descendants
from benchmarks.gpu import slime_first_contact

ROOT = Path(__file__).parents[2]
TAIL = 12
"""Lines of every stage shown at its end; of one that failed, thrice as many."""
LEAST_S = 10.0
"""A stage is not begun with less left."""
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1", "RAY_AUTH_MODE": "disabled", "VLLM_USE_FLASHINFER_SAMPLER": "0", "VLLM_NO_USAGE_STATS": "1",
    "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TEARDOWN_CUPTI": "0", "DISABLE_CUPTI_LAZY_REINIT": "1",  # CUDA graphs are replayed after a profile, too
    "RAY_memory_monitor_refresh_ms": "0",  # some machines' memory grows only as it is used
}
"""A value the user has set wins."""
QWEN3 = "model.path={scratch}/qwen3 rollout.max_tokens=64 evaluation.max_tokens=64"
SMOLLM = "model.path={scratch}/smollm2 rollout.max_tokens=48 evaluation.max_tokens=48 trainer.micro_batch_tokens=16384"
TORCH = "rollout.engine=torch"


@dataclass(frozen=True)
class Stage:
    """A command after `python`, with {output}, {scratch}, {seconds} and {python} filled in."""

    command: str
    limit_s: float
    rehearsal: str | None = ""
    """What `--smoke` runs instead where that is not the command with `--smoke`; None if only a card can run it."""


def _overrides(*settings: str) -> str:
    return " ".join(f"--set {each}" for some in settings for each in some.split())


def _module(name: str, limit_s: float, arguments: str = "", rehearsal: str | None = "") -> Stage:
    file = "--output {output}/results.jsonl"
    whole = rehearsal and f"-m benchmarks.{rehearsal} {file} --smoke"
    return Stage(f"-m benchmarks.{name} {file} --force {arguments}".strip(), limit_s, whole)


def _contact(part: str, limit_s: float) -> Stage:
    return Stage(f"-m benchmarks.gpu.first_contact {part}", limit_s, None)


def _slime(part: str) -> Stage:
    limit_s = 30.0 + slime_first_contact.PARTS[part][1]
    return Stage(f"-m benchmarks.gpu.slime_first_contact --output {{output}}/slime {part}", limit_s, None)


def _run(name: str, limit_s: float, *settings: str) -> Stage:
    """A benchmark that runs a preset, while the other lane works too."""
    file = "--output {output}/results.jsonl"
    made = f"-m benchmarks.{name} {file} --force --preset one-gpu {_overrides(*settings)}"
    return Stage(made, limit_s, f"-m benchmarks.{name} {file} --preset laptop --smoke")


def _curve() -> Stage:
    """A run of SmolLM2, which the next call goes on with."""
    run = "-m benchmarks.gpu.learning_curve --directory {scratch}/curve --tar {output}/curve.tar.gz"
    short = "--preset laptop --model bundled --seconds 20 --steps 400"
    fewer = _overrides("evaluation.num_prompts=4 evaluation.interval=400")
    return Stage(f"{run} --model {{scratch}}/smollm2 --seconds {{seconds}}", 560, f"{run} {short} {fewer}")


LINKS = "-m benchmarks.gpu.links --output {output}/links.json"
SHAPES = "-m benchmarks.gpu.shapes {scratch}/qwen3"
PEER = "--peer-python {python}"
STAGES = {
    "links": Stage(LINKS, 90, LINKS),
    "gpu_tests": Stage("-m pytest -q -m gpu -W default tests/actors", 240, "-m pytest -q --co -m gpu tests/actors"),
    "torch_engine": _contact("torch_engine", 90),
    "recover": _contact("recover", 200),
    "engine": _contact("engine", 260),
    "train_step": _module("gpu.train_step", 330),
    "train_step_4B": _module("gpu.train_step", 200, "--sizes 4B"),
    "rollout_speed": _module("gpu.rollout_speed", 560),
    "sync_torch": _module("gpu.weight_sync", 150, "--engines torch", "gpu.weight_sync --engines torch"),
    "sync_vllm": _module("gpu.weight_sync", 220, "--engines vllm", None),
    "qwen3": Stage(f"{SHAPES} 0.6B", 90, f"{SHAPES} tiny"),
    "pack_shapes": _module("gpu.pack_shapes", 240, "--model {scratch}/smollm2", "gpu.pack_shapes"),
    "pack_shapes_qwen3": _module("gpu.pack_shapes", 240, "--model {scratch}/qwen3 --tokens 8192", "gpu.pack_shapes"),
    "idle_torch": _run("gpu.idle", 220, QWEN3, TORCH),
    "idle_vllm": _run("gpu.idle", 220, QWEN3, "rollout.engine=vllm"),
    "smollm2": Stage("-m benchmarks.smollm2 {scratch}/smollm2", 120, None),
    **{name: _module("grpo_step", limit_s, f"{PEER} --gpu {sides} --pairs 1 --model {{scratch}}/smollm2", None)
       for name, limit_s, sides in (
           ("step", 500, "torch vllm"), ("step_torch", 300, "torch"), ("step_liger", 300, "torch --liger"),
       )},
    **{f"to_reward_{seed}": _module(
        "time_to_reward", 560,
        f"{PEER} --gpu torch --seeds {seed} --steps 80 --every 10 --target 0.9 --set {SMOLLM} trainer.lr=5e-5", None,
    ) for seed in range(3)},
    "curve": _curve(),
    **{f"slime_{part}": _slime(part) for part in slime_first_contact.PARTS},
}


@dataclass(frozen=True)
class Session:
    """Where a session writes, and when it ends."""

    output: Path
    scratch: Path
    deadline: float
    """On the monotonic clock."""
    smoke: bool

    def left_s(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()


def command(session: Session, stage: Stage, limit_s: float) -> list[str] | None:
    """What to run, or None if it needs a card and this is a rehearsal."""
    text = stage.command
    if session.smoke:
        if stage.rehearsal is None:
            return None
        text = stage.rehearsal or f"{text} --smoke"
    python, seconds = sys.executable, int(limit_s - 20)
    filled = text.format(output=session.output, scratch=session.scratch, seconds=seconds, python=python)
    return [sys.executable, *filled.split()]


def run_stage(session: Session, cards: str, name: str) -> str:
    """Runs one stage on its cards; returns and prints how it went."""
    stage = STAGES[name]
    limit_s = min(stage.limit_s, session.left_s())
    asked = command(session, stage, limit_s)
    if asked is None:
        return _say(session, cards, name, "skipped: needs a card")
    if session.left_s() < LEAST_S:
        return _say(session, cards, name, "skipped: no time left")
    began = time.monotonic()
    environment = ENVIRONMENT | os.environ | {"CUDA_VISIBLE_DEVICES": cards.replace("+", ",")}
    log = session.output / f"cards-{cards.replace('+', '-')}.log"
    start = log.stat().st_size if log.exists() else 0
    with log.open("a") as file:
        # A session of its own: what a stage has started must not outlive it.
        process = subprocess.Popen(asked, cwd=ROOT, env=environment, stdout=file, stderr=file, start_new_session=True)
        try:
            status = f"exit {process.wait(limit_s)}"
        except subprocess.TimeoutExpired:
            status = f"cut off after {limit_s:.0f} s"
            for pid in descendants(process.pid):  # those that have a session of their own too
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)
    status = "passed" if status == "exit 0" else status
    with log.open(errors="replace") as file:
        file.seek(start)
        said = [line.rstrip()[:300] for line in file.read().splitlines() if line.strip()]
    tail = "\n".join(f"    {line}" for line in said[-TAIL * (1 if status == "passed" else 3) :])
    return _say(session, cards, name, f"{status}, {time.monotonic() - began:.0f} s\n{tail}")


def _say(session: Session, cards: str, name: str, what: str) -> str:
    print(f"[{cards}] {name}: {what}", flush=True)
    row = {"stage": name, "cards": cards, "status": what.splitlines()[0], "left_s": round(session.left_s())}
    with (session.output / "stages.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    return what


def run_lane(session: Session, lane: str) -> dict[str, str]:
    """A card's stages in their order; how each went."""
    cards, _, names = lane.partition(":")
    return {name: run_stage(session, cards, name).splitlines()[0] for name in names.split(",")}


def main() -> None:
    """All lanes side by side."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("lanes", nargs="*", metavar="LANE")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/session"))
    parser.add_argument("--scratch", type=Path, default=Path("/dev/shm/rlhaiku-session"))
    parser.add_argument("--seconds", type=float, default=560.0)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    wrong = [name for lane in options.lanes for name in lane.partition(":")[2].split(",") if name not in STAGES]
    if options.list or wrong or not options.lanes:
        print("\n".join(f"{name:16} {stage.limit_s:4.0f} s  {stage.command}" for name, stage in STAGES.items()))
        sys.exit(f"no stage is called {', '.join(wrong)}" if wrong else 0)
    for directory in (options.output, options.scratch):
        directory.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + options.seconds
    session = Session(options.output.absolute(), options.scratch.absolute(), deadline, options.smoke)
    with ThreadPoolExecutor(len(options.lanes)) as pool:
        results = list(pool.map(lambda lane: run_lane(session, lane), options.lanes))
    print(json.dumps({lane.partition(":")[0]: found for lane, found in zip(options.lanes, results, strict=True)}))


if __name__ == "__main__":
    main()
