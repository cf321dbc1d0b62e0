"""A Ray actor by name: where its process is, what it does, and how to end it when it no longer answers."""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

START_TIMEOUT_S = 600.0
"""How long an actor may take to start, whatever the deadline of its answers: it loads a model."""
LOOK_UP_S = 1.0
STACK_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class Process:
    """Where an actor runs."""

    pid: int
    node_id: str
    up_at: float
    """When it had started and could be asked; Unix seconds."""


class Actor:
    """A handle and everything an error message should say about it."""

    def __init__(self, name: str, handle: Any) -> None:  # noqa: ANN401  (a Ray handle)
        """`name`: what a person calls it, e.g. `rollout engine 1`."""
        self.name, self.handle = name, handle
        self.doing = "starting"
        self.last_sign_s = time.monotonic()
        """When it last finished something, or was given work while idle; on the monotonic clock."""
        self._finished: tuple[str, float] | None = None
        self.killed_because = ""
        self.is_successor = False
        """It took a dead one's place: not being able to start is then one more death, not a wrong setting."""
        # Asked now, while it surely answers; Ray runs it as soon as the actor is up.
        self._process_ref = handle.__ray_call__.remote(_whereabouts)
        self._process: Process | None = None

    def __str__(self) -> str:
        process = self.process()
        where = f"pid {process.pid} on node {process.node_id[:8]}" if process else "no process yet"
        return f"{self.name} ({where})"

    def patience_s(self, timeout_s: float) -> float:
        """How long it may be silent: longer while it starts, whatever the deadline of its answers."""
        return timeout_s if self.process() else max(timeout_s, START_TIMEOUT_S)

    def finished(self, doing: str) -> None:
        """Notes what it just answered, for the day when it does not."""
        if doing:
            self._finished = doing, time.monotonic()

    def history(self) -> str:
        """What it did last, as a sentence."""
        if self._finished is None:
            return "It has answered nothing yet."
        doing, at_s = self._finished
        return f"It last answered {time.monotonic() - at_s:.0f} s ago, asked {doing}."

    def process(self) -> Process | None:
        """Its process; None while it is starting, or when it died before it was up."""
        if self._process is None:
            with suppress(RayError):
                self._process = ray.get(self._process_ref, timeout=LOOK_UP_S)
                self.last_sign_s = time.monotonic()  # it is up: only now can it be late
        return self._process

    def kill(self, because: str) -> None:
        """Ends it for good, even if it is stopped or hangs; its calls then fail as those of any dead actor."""
        self.killed_because = because
        self.strike()
        ray.kill(self.handle)

    def strike(self) -> bool:
        """SIGKILL, which a stopped process obeys too; false if its process is not on this node, or gone already."""
        process = self.process()
        if process is None or process.node_id != ray.get_runtime_context().get_node_id():
            return False
        with suppress(OSError):
            if _is_actor(process.pid):
                os.kill(process.pid, signal.SIGKILL)
                return True
        return False

    def stack(self) -> str:
        """What its threads are doing, by py-spy; or why that is not known."""
        process = self.process()
        if process is None:
            return "no stack: it never started"
        if process.node_id != ray.get_runtime_context().get_node_id():
            return f"no stack: it runs on node {process.node_id[:8]}; `py-spy dump --pid {process.pid}` there shows it"
        tool = shutil.which("py-spy", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
        if tool is None:
            return "no stack: py-spy is not installed"
        command = [tool, "dump", "--nonblocking", "--pid", str(process.pid)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=STACK_TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired:
            return f"no stack: py-spy took more than {STACK_TIMEOUT_S:g} s"
        return done.stdout.strip() or f"no stack: {done.stderr.strip()}"


def _is_actor(pid: int) -> bool:
    """Whether a process is one of Ray's workers: a dead one's number may be another's by now."""
    entry = Path(f"/proc/{pid}/cmdline")
    return entry.read_bytes().startswith(b"ray::") if Path("/proc/self").exists() else True


def _whereabouts(instance: object) -> Process:
    return Process(os.getpid(), ray.get_runtime_context().get_node_id(), time.time())
