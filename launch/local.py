"""A whole run on this machine: check, place, start the actors, drive the coordinator, compare before and after."""

import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import AutoTokenizer

from actors.crew import MAX_DEATHS
from actors.reward_pool import INLINE_BELOW
from actors.reward_worker import RewardFn
from launch.chaos import killing
from launch.checks import check_run, data_directory, resolve_model
from launch.console import ConsoleReporter
from launch.ray_runtime import local_ray
from launch.rewards import may_score_inline, reward_spec
from launch.start import Cast, start_actors
from rlhaiku.checkpoints import CheckpointStore, RunState, read_state
from rlhaiku.config import RunConfig, fingerprint, write_config
from rlhaiku.coordinator import Coordinator, Surroundings
from rlhaiku.errors import ActorDied, BadInput, CrashLoop
from rlhaiku.evaluation import Comparison
from rlhaiku.haiku.dataset import load_rows
from rlhaiku.ledger import LEDGER_FILE, Ledger, ReplayingRollouts
from rlhaiku.metrics import RunFiles
from rlhaiku.prompts import PromptOrder, choose_eval_prompts, render_prompts
from rlhaiku.types import Prompt


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a run ended."""

    output_dir: Path
    state: RunState
    finished: bool
    """False if the run was interrupted; it can be resumed."""
    comparison: Comparison | None
    """Before against after on the held-out prompts; None if interrupted."""
    recoveries: tuple[tuple[str, float], ...] = ()
    """Actors that died: who, and the seconds from noticing it to its successor's first finished work."""


def run(
    config: RunConfig,
    *,
    reward: RewardFn | None = None,
    rubric: object = None,
    output_dir: str | Path = "runs/local",
    resume: bool = False,
    chaos: int | None = None,
) -> RunResult:
    """Trains with one Ray on this machine, torch engines and a torch trainer.

    `reward(prompt, text)` replaces `reward.functions`, `rubric` (a Rubric, its class, or a `build_prompt` function)
    replaces `judge.rubric`; both are sent to the reward workers by value. `chaos`: seed of a thread that kills actors
    now and then. Raises BadInput before any actor starts, RunFailed when the run cannot go on (its last checkpoint is
    then intact).
    """
    directory = Path(output_dir)
    placement = check_run(config, directory, resume)
    spec = reward_spec(config, reward, rubric, directory)
    prompts, eval_prompts = load_prompts(config)
    with ExitStack() as stack:
        ledger = stack.enter_context(open_ledger(directory))  # first: it keeps a second run away from this directory
        write_config(config, directory / "config.toml")
        console = ConsoleReporter(config, directory, spec.judge)
        console.header(len(prompts), len(eval_prompts), INLINE_BELOW if may_score_inline(spec) else 0)
        stack.enter_context(local_ray(placement.total_cpus))
        around = Surroundings(
            PromptOrder(prompts, config.seed),
            eval_prompts,
            CheckpointStore(directory / "checkpoints", config.output.keep_last, ledger),
            reporters=(console,),
            sinks=(ledger,),
            should_stop=stack.enter_context(_stop_on_signal(console)),
        )
        attempts = _Attempts(config, directory, around, ledger, console)
        state = attempts.until_done(lambda: start_actors(config, placement, spec, console), resume, chaos)
    finished = state.step == config.num_steps
    comparison = RunFiles(directory, config.output.poems_interval, state.step).compare(state.step) if finished else None
    console.end(comparison)
    return RunResult(directory, state, finished, comparison, tuple(console.recoveries))


class _Attempts:
    """Starts from the newest checkpoint, and starts again when something died that only a checkpoint can replace."""

    def __init__(
        self, config: RunConfig, directory: Path, around: Surroundings, ledger: Ledger, console: ConsoleReporter
    ) -> None:
        self._config, self._directory, self._around = config, directory, around
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
                with start() as cast, killing(cast.actors, chaos):
                    coordinator = self._prepare(cast, resume)
                    if died_s is not None:
                        self._console.recovered("the trainer", time.monotonic() - died_s)
                    return self._drive(coordinator)
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

    def _prepare(self, cast: Cast, resume: bool) -> Coordinator:
        """Everything as the newest intact checkpoint has it, what came after it rolled back."""
        checkpoint, problems = self._around.checkpoints.newest_intact() if resume else (None, [])
        state = read_state(checkpoint) if checkpoint else RunState()
        attempt = self._ledger.begin_attempt(state.step, fingerprint(self._config))
        if resume:
            self._console.resuming(state, attempt, problems)
        files = RunFiles(self._directory, self._config.output.poems_interval, state.step)
        if checkpoint:
            cast.roles.trainer.load(checkpoint)
        max_staleness = self._config.rollout.max_staleness
        rollouts = ReplayingRollouts(cast.roles.rollouts, self._ledger, cast.roles.events.deliver, max_staleness)
        around = replace(self._around, reporters=(files, *self._around.reporters))
        return Coordinator(self._config, replace(cast.roles, rollouts=rollouts), around, state)

    def _drive(self, coordinator: Coordinator) -> RunState:
        try:
            return coordinator.run()
        finally:
            self._reached = coordinator.state.step


def open_ledger(directory: Path) -> Ledger:
    """The run's ledger, and with it the directory's lock; where it is missing, the newest checkpoint's copy."""
    live = directory / LEDGER_FILE
    copies = sorted(directory.glob(f"checkpoints/step-*/{LEDGER_FILE}"))
    if copies and not live.exists():
        shutil.copy(copies[-1], live.with_suffix(".partial"))
        live.with_suffix(".partial").replace(live)
    return Ledger(live)


def load_prompts(config: RunConfig) -> tuple[list[Prompt], list[Prompt]]:
    """Training prompts and held-out prompts of a configuration, rendered by the model's own tokenizer."""
    model, data = resolve_model(config.model.path), data_directory(config.data.path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise BadInput("model.path must hold a tokenizer that transformers loads", model, str(error)) from None
    prompts = render_prompts(load_rows(data, "train"), tokenizer)
    held_out = render_prompts(load_rows(data, "test"), tokenizer)
    return prompts, choose_eval_prompts(held_out, config.evaluation.num_prompts)


@contextmanager
def _stop_on_signal(console: ConsoleReporter) -> Iterator[Callable[[], bool]]:
    """Ctrl-C or SIGTERM once: finish the step, save, end. Twice: end now."""
    asked = False

    def on_signal(signum: int, frame: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        console.stopping()

    if threading.current_thread() is not threading.main_thread():  # only the main thread can be told by a signal
        yield lambda: False
        return
    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
