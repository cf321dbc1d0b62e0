"""The whole cluster layout on the GPUs of one node, measured: every layout through one Ray, coordinator, reward pool.

    python -m benchmarks.eight_gpu [--gpus 8] [--steps 12] [--deadline 560] [--parts PART,...] [--output FILE] [--cpu]

Layouts are N trainer ranks beside N engines (colocated), or half the cards for either (split): with Megatron and SGLang
through slime's weight update (megatron), the same through persistent handles (persistent), or with our trainer and
engine (ours; `ahead`: one step ahead, which SGLang's engines cannot). In the first layout that comes so far, an engine
is killed (kill). FILE is written anew after each part; a value that could not be taken is null, and the reason is
beside it. It ends inside the deadline; what had no time left says so. `--cpu` rehearses it all without a card.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from actors.reward_worker import RewardSpec
from benchmarks.chaos import descendants
from benchmarks.gpu.ceilings import measure_ceilings
from benchmarks.gpu.goals import goals
from benchmarks.gpu.layout_run import LayoutRun
from benchmarks.gpu.memory import used_gb
from benchmarks.gpu.observe import observing
from benchmarks.measure import circumstances
from launch.checks import available_gpus, check_placement, gpu_memory_bytes
from launch.local import load_prompts, start_for
from launch.placement import is_slime, plan_gpus, plan_placement
from launch.plan import Plan, make_plan
from launch.ray_runtime import local_ray
from launch.resources import Resources
from rlhaiku.config import RunConfig, load_config, with_overrides
from rlhaiku.errors import BadInput, RunFailed
from rlhaiku.files import write_whole
from rlhaiku.haiku.reward import HaikuReward

ROOT = Path(__file__).parents[1]
GRACE_S = 12.0
"""Between the deadline and the end by force; a layout is told to end so long before the deadline."""
PROFILED, AFTER_KILL = 3, 3
"""Steps with profilers on, and steps in the first of which an engine is killed."""
SIZES = ("4B", "1.7B", "0.6B", "tiny")
"""From the largest; one that does not fit is replaced by the next."""
MICRO_BATCHES = (4096, 2048, 1024)
MODELS_BYTES = 16e9
LOG_CHARACTERS = 6000
REHEARSAL_S, KILL_S = 5.0, 100.0
"""Least time for a layout without cards, and for the death of an engine: SGLang starts anew in it."""
QUIET_S = 30.0
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1", "RAY_AUTH_MODE": "disabled", "WANDB_MODE": "disabled", "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "RAY_memory_monitor_refresh_ms": "0",  # some machines' memory grows only as it is used
}


@dataclass(frozen=True)
class Layout:
    """Who is where, and who trains."""

    backend: str
    is_colocated: bool
    estimate_s: float
    """On eight GPUs whose kernels are compiled: a layout is not begun with less left."""
    more: tuple[str, ...] = ()


LAYOUTS = {
    "colocated/megatron": Layout("megatron", True, 200),
    "colocated/ours": Layout("torch", True, 95),
    "colocated/persistent": Layout("megatron", True, 180, ("cluster.weight_path=slots",)),
    "split/megatron": Layout("megatron", False, 190),
    "split/ours": Layout("torch", False, 95),
    "split/ahead": Layout("torch", False, 95, ("rollout.max_staleness=1",)),
}
PARTS = ("ceilings", "kill", *LAYOUTS)


def main() -> None:
    """Runs everything in a process that is ended at the deadline; exits with 1 if a layout failed."""
    began = time.time()
    options = parse(sys.argv[1:])
    if options.began:
        Bench(options).run()
        return
    options.output.unlink(missing_ok=True)  # an earlier run's
    environment = ENVIRONMENT | os.environ
    paths = environment.get("PYTHONPATH", "").split(":")
    if str(ROOT) not in paths:  # actors and engines' servers start elsewhere
        environment["PYTHONPATH"] = ":".join([str(ROOT), *filter(None, paths)])
    with tempfile.TemporaryDirectory(dir=_fast_directory()) as name:
        scratch = str(options.scratch or name)
        inside = [*sys.argv[1:], "--scratch", scratch, "--began", str(began)]
        command = [sys.executable, "-u", "-m", "benchmarks.eight_gpu", *inside]
        passed = supervise(command, environment, began + options.deadline + GRACE_S, options.output)
    sys.exit(not passed)


def supervise(command: Sequence[str], environment: Mapping[str, str], until_s: float, output: Path) -> bool:
    """Whether the benchmark itself passed; it and all it has started are ended at a time, and its file tells of it."""
    process = subprocess.Popen(command, cwd=ROOT, env=dict(environment), start_new_session=True)
    try:
        status = process.wait(max(0.0, until_s - time.time()))
    except subprocess.TimeoutExpired:
        status = None
    finally:
        for pid in [*descendants(process.pid), process.pid]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait(30)
    if not output.exists():  # it ended before it had begun
        return False
    document = json.loads(output.read_text())
    for row in document["layouts"]:
        if row["status"] == "running":
            row |= {"status": "failed", "why": "ended by force" if status is None else f"exit status {status}"}
    write(output, document)
    print(json.dumps({row["name"]: row["status"] for row in document["layouts"]}))
    return status == 0 and not any(row["status"] == "failed" for row in document["layouts"])


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line; exits with a message for what is not on it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, default=0, help="default: all there are")
    parser.add_argument("--model", choices=SIZES, default="4B", help="the largest size of Qwen3 to try")
    parser.add_argument("--steps", type=int, default=12, help="of each layout, besides those profiled")
    parser.add_argument("--deadline", type=float, default=560.0, help="seconds for everything")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/eight_gpu.json"))
    parser.add_argument("--parts", default=",".join(["ceilings", "kill", *LAYOUTS]), help=", ".join(PARTS))
    parser.add_argument("--cpu", action="store_true", help="a rehearsal in small")
    parser.add_argument("--scratch", type=Path, help="where models are made, for the next call too")
    parser.add_argument("--began", type=float, default=0.0, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.parts = options.parts.split(",")
    if wrong := set(options.parts) - set(PARTS):
        parser.error(f"no part is called {', '.join(sorted(wrong))}; parts: {', '.join(PARTS)}")
    options.gpus = options.gpus or available_gpus()
    options.output = options.output.absolute()
    return options


class Bench:
    """All parts one after the other, and the document they fill."""

    def __init__(self, options: argparse.Namespace) -> None:
        """`options`: as `parse` returns them, with `began` and `scratch`."""
        self._options, self._scratch = options, options.scratch
        self._deadline = options.began + options.deadline
        self.document: dict[str, Any] = {
            "circumstances": circumstances(os.getloadavg()[0]) | {"gpus": options.gpus, "cpu_rehearsal": options.cpu},
            "ceilings": None, "layouts": [], "goals": [], "untaken": {},
        }  # fmt: skip

    def left_s(self) -> float:
        """Seconds until the deadline."""
        return self._deadline - time.time()

    def run(self) -> None:
        """Every part asked for; the file is whole after each of them."""
        options = self._options
        options.scratch.mkdir(parents=True, exist_ok=True)
        self._ceilings()
        made = {name: self.settings_of(name) for name in options.parts if name in LAYOUTS}
        slots = _slots([config for config, _ in made.values() if config])
        with ExitStack() as stack:
            has_ray = False
            for name, (config, size) in made.items():
                row = self.begin(name, config, size)
                if row["status"] == "running" and config:
                    if not has_ray:  # one for all of them
                        stack.enter_context(local_ray(slots, options.gpus))
                        has_ray = True
                    self._layout(config, row)
                self._write()

    def settings_of(self, name: str) -> tuple[RunConfig | None, str]:
        """The settings of a layout with the largest model that fits, and its size; or None and why not."""
        options, layout = self._options, LAYOUTS[name]
        if not layout.is_colocated and options.gpus < 2:
            return None, "a split needs two GPUs"
        steps = options.steps + PROFILED + AFTER_KILL
        try:
            if options.cpu:
                return rehearsal(layout, options.gpus, steps), "bundled"
            return fitting(layout, options.gpus, options.model, steps)
        except BadInput as error:
            return None, str(error)

    def begin(self, name: str, config: RunConfig | None, size: str) -> dict[str, Any]:
        """A new row for a layout, that says at once if it is skipped."""
        row: dict[str, Any] = {"name": name, "status": "running", "why": "", "model": size, "untaken": {}}
        needed_s = REHEARSAL_S if self._options.cpu else LAYOUTS[name].estimate_s
        if config is None:
            row |= {"status": "skipped", "model": None, "why": size}
        elif self.left_s() < needed_s + GRACE_S:
            row |= {"status": "skipped", "why": f"time: {self.left_s():.0f} s left, about {needed_s:.0f} needed"}
        self.document["layouts"].append(row)
        self._write()
        print(f"{name}: {row['status']} {row['why']}", flush=True)
        return row

    def _write(self) -> None:
        self.document["goals"] = goals(self.document)
        write(self._options.output, self.document)

    def _ceilings(self) -> None:
        if "ceilings" not in self._options.parts:
            self.document["untaken"]["ceilings"] = "not asked for"
        else:
            try:
                limit_s = max(1.0, self.left_s() / 3)
                self.document["ceilings"] = measure_ceilings(self._scratch / "links.json", limit_s)
            except (OSError, subprocess.SubprocessError) as error:
                self.document["untaken"]["ceilings"] = str(error)
        self._write()

    def _layout(self, config: RunConfig, row: dict[str, Any]) -> None:
        """One layout; whatever happens in it is written down."""
        began, name, used = time.time(), row["name"], used_gb()
        before = signal.signal(signal.SIGALRM, _interrupt)
        signal.setitimer(signal.ITIMER_REAL, max(0.1, self.left_s() - GRACE_S))
        try:
            with tempfile.TemporaryDirectory() as directory:
                self._measure(config, Path(directory), used, row)
            row["status"] = "done"
        except KeyboardInterrupt:
            row |= {"status": "failed", "why": "time: it did not end before the deadline", "log": actor_logs(began)}
        except Exception as error:
            row |= {"status": "failed", "why": f"{type(error).__name__}: {error}"[:2000], "log": actor_logs(began)}
            traceback.print_exc()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        _wait_for_quiet(used, min(QUIET_S, self.left_s()))
        print(f"{name}: {row['status']} after {time.time() - began:.0f} s {row['why'][:300]}", flush=True)

    def _measure(self, config: RunConfig, directory: Path, used: Sequence[float], row: dict[str, Any]) -> None:
        options = self._options
        if not options.cpu:
            model = make_model(self._scratch, row["model"], self.left_s())
            config = with_overrides(config, [f"model.path={model}"])
        row["config"] = config.model_dump()
        placement, (prompts, _) = check_placement(config), load_prompts(config)
        began = time.time()
        run = LayoutRun(config, prompts, directory, row, self.document["ceilings"])
        with observing(directory), start_for(config, placement, RewardSpec(((HaikuReward(), 1.0),)), run) as cast:
            row["start_s"] = time.time() - began
            with run.recording(cast):
                run.steady(options.steps)
                self._write()
                if options.cpu:
                    run.untaken("there is no card", "memory")
                else:
                    self._if_possible(run, "memory", lambda: run.memory(_plan(config, options.gpus), placement, used))
                self._if_possible(run, "idle", lambda: run.idle(PROFILED, options.cpu))
                if self._is_to_kill(row):
                    run.kill(AFTER_KILL)

    def _if_possible(self, run: LayoutRun, name: str, take: Callable[[], None]) -> None:
        """Takes a value; what cannot be asked for is no reason to lose what comes after it."""
        try:
            take()
        except RunFailed:
            raise
        except Exception as error:
            traceback.print_exc()
            run.untaken(f"{type(error).__name__}: {error}"[:500], name)
        self._write()

    def _is_to_kill(self, row: dict[str, Any]) -> bool:
        """Whether an engine is killed here: once, in the first layout that comes so far."""
        why = ""
        if "kill" not in self._options.parts:
            why = "not asked for"
        elif any(other.get("kill") for other in self.document["layouts"]):
            why = "done in another layout"
        elif not self._options.cpu and self.left_s() < KILL_S + GRACE_S:
            why = f"time: {self.left_s():.0f} s left, about {KILL_S:.0f} needed"
        if why:
            row |= {"kill": None}
            row["untaken"]["kill"] = why
        return not why


def fitting(layout: Layout, gpus: int, largest: str, steps: int) -> tuple[RunConfig | None, str]:
    """The settings with the largest model, and for it the largest micro-batch, that `rlhaiku plan` sees fit the cards.
    """
    refusal = ""
    for size in SIZES[SIZES.index(largest):-1]:
        for micro_batch in MICRO_BATCHES:
            config = settings(layout, gpus, [f"model.path=Qwen/Qwen3-{size}", f"num_steps={steps}",
                                             f"trainer.micro_batch_tokens={micro_batch}"])
            plan = _plan(config, gpus)
            if not plan.refusals:
                return config, size
            refusal = "; ".join(plan.refusals)
    return None, f"nothing fits: {refusal}"


def settings(layout: Layout, gpus: int, more: Sequence[str]) -> RunConfig:
    """The reference preset in a layout: 128 x 8 completions of at most 30 tokens, and a rate that changes weights."""
    engines = gpus if layout.is_colocated else gpus // 2
    ours = [
        "rollout.engine=torch", "trainer.backend=torch", "trainer.threads=1", f"rollout.tile_groups={128 // engines}",
        "cluster.wait_timeout_s=90",
    ]
    theirs = [f"rollout.tile_groups={min(16, 64 // engines)}"]  # an engine has two at once, 256 completions
    return load_config("reference", [
        f"cluster.gpus_per_node={gpus}", f"cluster.colocate={str(layout.is_colocated).lower()}",
        "cluster.wait_timeout_s=240", f"rollout.num_engines={engines}", "rollout.max_tokens=30",
        "evaluation.max_tokens=30", "trainer.lr=1e-4", "trainer.weight_decay=0.0",  # else decay alone changes them
        *(ours if layout.backend == "torch" else theirs), *layout.more, *more,
    ])


def rehearsal(layout: Layout, gpus: int, steps: int) -> RunConfig:
    """The same layout in small with the bundled model; our trainer and engines do without GPUs then."""
    engines = gpus if layout.is_colocated else gpus // 2
    small = [
        f"num_steps={steps}", "model.path=bundled", "rollout.groups_per_step=4", "rollout.group_size=4",
        "rollout.tile_groups=2", "rollout.max_tokens=16", "reward.num_workers=1", "cluster.wait_timeout_s=60",
        "trainer.micro_batch_tokens=4096", f"rollout.num_engines={engines}",
    ]
    if layout.backend == "torch":
        small += ["cluster.gpus_per_node=0", "cluster.colocate=false", "rollout.num_engines=1"]
    return settings(layout, gpus, small)


def actor_logs(since_s: float) -> str:
    """The last of what those actors said who wrote last."""
    files = [file for file in Path("/tmp").glob("rlh-*/session_*/logs/worker-*")
             if file.is_file() and not file.is_symlink() and file.stat().st_mtime >= since_s and file.stat().st_size]
    newest = sorted(files, key=lambda file: file.stat().st_mtime)[-8:]
    return "".join(f"\n==== {file.name}\n{file.read_text(errors='replace')[-LOG_CHARACTERS:]}" for file in newest)


def write(file: Path, document: dict[str, Any]) -> None:
    """The file as a whole, or as it was."""
    write_whole(file, (json.dumps(document, indent=1, default=str) + "\n").encode())


def make_model(directory: Path, size: str, limit_s: float) -> Path:
    """Random weights of a size, made in a process that leaves nothing on a card; once for all layouts and calls."""
    model = directory / f"qwen3-{size}"
    if not model.exists():
        partial = model.with_name(f"{model.name}.partial")
        made = f"qwen3(Path({str(partial)!r}), {size!r}, weights=True, speaks=True)"
        command = [sys.executable, "-c", f"from benchmarks.gpu.shapes import *; {made}"]
        subprocess.run(command, cwd=ROOT, timeout=max(1.0, limit_s), check=True)
        partial.rename(model)
    return model


def _fast_directory() -> str | None:
    """In memory, where models of all sizes have room there; None for the usual one."""
    memory = Path("/dev/shm")
    return str(memory) if memory.is_dir() and shutil.disk_usage(memory).free > MODELS_BYTES else None


def _slots(configs: Sequence[RunConfig]) -> int:
    """Ray's CPU slots that are enough for each."""
    counts = [(plan_gpus(each) if is_slime(each) else plan_placement(each, sys.maxsize)).total_cpus for each in configs]
    return max(counts, default=1)


def _plan(config: RunConfig, gpus: int) -> Plan:
    kind = "H200" if gpu_memory_bytes() > 100e9 else "H100"
    has_te = find_spec("transformer_engine") is not None
    return make_plan(config, Resources(gpu=f"{kind}:{gpus}"), has_te=has_te)


def _wait_for_quiet(before: Sequence[float], limit_s: float) -> None:
    """Until the cards are as empty as they were: what a process had is given back some time after its end."""
    until = time.time() + limit_s
    while before and time.time() < until and any(now > was + 1 for now, was in zip(used_gb(), before, strict=True)):
        time.sleep(0.5)


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt  # the only exception that Ray lets end a wait of its own


if __name__ == "__main__":
    main()
