"""A run as one or more attempts, each going on from the newest intact checkpoint and the ledger.

A resume by hand and a restart after the trainer died are the same thing.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from pathlib import Path

from actors.crew import MAX_DEATHS
from launch.chaos import killing
from launch.console import ConsoleReporter
from launch.inputs import Inputs
from launch.sinks import open_sinks
from launch.start import Cast
from rlhaiku.checkpoints import RunState, read_state
from rlhaiku.coordinator import Coordinator, Surroundings
from rlhaiku.errors import ActorDied, ActorFailed, CrashLoop
from rlhaiku.health import GapAlarm
from rlhaiku.ledger import LEDGER_FILE, Ledger, ReplayingRollouts
from rlhaiku.metrics import METRICS_FILE, RunFiles


class Attempts:
    """Starts from the newest checkpoint, and starts again when something died that only a checkpoint can replace."""

    def __init__(
        self, inputs: Inputs, directory: Path, around: Surroundings, ledger: Ledger, console: ConsoleReporter
    ) -> None:
        self._inputs, self._config, self._directory, self._around = inputs, inputs.config, directory, around
        self._ledger, self._console = ledger, console
        self._reached = 0
        """Train steps done by the last attempt."""

    def until_done(
        self, start: Callable[[], AbstractContextManager[Cast]], resume: bool, chaos: int | None
    ) -> RunState:
        """The state at the end; raises CrashLoop when attempts die without getting further."""
        deaths, died_at, died_s = 0, -1, None
        while True:
            try:
                return self._attempt(start, resume, chaos, died_s)
            except ActorDied as death:
                deaths = deaths + 1 if self._reached <= died_at else 1
                if deaths >= MAX_DEATHS:
                    raise CrashLoop(
                        f"a run must get further after a death; {deaths} times in a row it did not get beyond step "
                        f"{self._reached}. The last time: {death}"
                    ) from death
                died_at, died_s = max(died_at, self._reached), time.monotonic()
                self._console.restarting(death)
                resume, chaos = True, None if chaos is None else chaos + 1

    def _attempt(
        self, start: Callable[[], AbstractContextManager[Cast]], resume: bool, chaos: int | None, died_s: float | None
    ) -> RunState:
        with ExitStack() as stack:
            try:
                cast = stack.enter_context(start())
            except ActorFailed as failure:
                if died_s is None:
                    raise
                # The first attempt could start: this one meets what the dead left, e.g. a card's memory not free yet.
                raise ActorDied(f"a run that is started again must start: {failure}") from failure
            up_s = time.monotonic()
            stack.enter_context(killing(cast.actors, chaos))
            coordinator = self._prepare(cast, resume, stack)
            if died_s is not None:
                now = time.monotonic()
                self._console.recovered("the trainer", now - died_s, now - up_s)
            try:
                return coordinator.run()
            finally:
                self._reached = coordinator.state.step

    def _prepare(self, cast: Cast, resume: bool, stack: ExitStack) -> Coordinator:
        """Everything as the newest intact checkpoint has it, what came after it rolled back."""
        checkpoint, problems = self._around.checkpoints.newest_intact() if resume else (None, [])
        state = read_state(checkpoint) if checkpoint else RunState()
        changed = self._inputs.changed_since(self._ledger.last_fingerprint())
        attempt = self._ledger.begin_attempt(state.step, self._inputs.fingerprint())
        if resume:
            self._console.resuming(state, attempt, problems, changed)
        files = RunFiles(self._directory, self._config.output.poems_interval, state.step)
        logs = stack.enter_context(open_sinks(self._config, self._directory, state.step))
        if checkpoint:
            cast.roles.trainer.load(checkpoint)
        max_staleness = self._config.rollout.max_staleness
        rollouts = ReplayingRollouts(cast.roles.rollouts, self._ledger, cast.roles.events.deliver, max_staleness)
        reporters = (files, *logs, *self._around.reporters)
        around = replace(self._around, reporters=(GapAlarm(self._directory / METRICS_FILE, reporters),))
        return Coordinator(self._config, replace(cast.roles, rollouts=rollouts), around, state)


def open_ledger(directory: Path) -> Ledger:
    """The run's ledger, and with it the directory's lock; where it is missing, the newest checkpoint's copy."""
    copies = sorted(directory.glob(f"checkpoints/step-*/{LEDGER_FILE}"))
    return Ledger(directory / LEDGER_FILE, copies[-1] if copies else None)
