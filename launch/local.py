"""A whole run on this machine: check, place, start the actors, drive the coordinator, compare before and after."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import AutoTokenizer

from actors.crew import CrewWatcher
from actors.reward_worker import RewardFn, RewardSpec
from launch.attempts import Attempts, open_ledger
from launch.checks import check_run, data_directory, resolve_model
from launch.console import ConsoleReporter
from launch.inputs import Inputs
from launch.placement import GpuPlacement, Placement
from launch.ray_runtime import local_ray
from launch.report import try_report
from launch.rewards import as_run, inline_below, reward_spec
from launch.start import Cast, start_actors
from rlhaiku.checkpoints import CheckpointStore, RunState
from rlhaiku.config import RunConfig, write_config
from rlhaiku.coordinator import Surroundings
from rlhaiku.errors import BadInput
from rlhaiku.evaluation import Comparison
from rlhaiku.haiku.dataset import load_rows
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


@dataclass(frozen=True, slots=True)
class Hooks:
    """What whoever starts a run may want to have a say in."""

    saved: Callable[[], None] = lambda: None
    """Called after each checkpoint, once it is complete on disk."""
    should_stop: Callable[[], bool] = lambda: False
    """Asked after every step, before its metrics are written; true ends the run like Ctrl-C does, with a checkpoint."""
    resume_with: str = ""
    """The command that goes on with the run, said at its end; empty is `rlhaiku train --resume`."""


def run(
    config: RunConfig,
    *,
    reward: RewardFn | None = None,
    rubric: object = None,
    output_dir: str | Path = "runs/local",
    resume: bool = False,
    chaos: int | None = None,
    hooks: Hooks | None = None,
) -> RunResult:
    """Trains with one Ray on this machine: torch or vLLM engines and a torch trainer, or SGLang and Megatron.

    `reward(prompt, text)` replaces `reward.functions` (or is added to them, beside a `rubric`), `rubric` (a Rubric, its
    class, or a `build_prompt` function) replaces `judge.rubric`; both are sent to the reward workers by value. `chaos`:
    seed of a thread that kills actors now and then. Raises BadInput before any actor starts, RunFailed when the run
    cannot go on (its last checkpoint is then intact).
    """
    directory = Path(output_dir)
    placement = check_run(config, directory, resume)
    spec = reward_spec(config, reward, rubric, directory.absolute())  # actors may have started elsewhere
    if chaos is not None:
        spec = replace(spec, inline=False)  # else the death of a reward worker would mean nothing
    config = as_run(config, reward, rubric)
    prompts, eval_prompts = load_prompts(config)
    hooks, inputs = hooks or Hooks(), Inputs(config, prompts, spec)
    with ExitStack() as stack:
        ledger = stack.enter_context(open_ledger(directory))  # first: it keeps a second run away from this directory
        inputs.check_resumable(ledger.last_fingerprint())
        write_config(config, directory / "config.toml")
        console = stack.enter_context(ConsoleReporter(config, directory, spec.judge, hooks.resume_with))
        console.header(placement.describe(), len(prompts), len(eval_prompts), inline_below(spec))
        stack.enter_context(local_ray(placement.total_cpus, placement.num_gpus))
        is_asked = stack.enter_context(_stop_on_signal(console))
        around = Surroundings(
            PromptOrder(prompts, config.seed),
            eval_prompts,
            CheckpointStore(directory.absolute() / "checkpoints", config.output.keep_last, ledger, hooks.saved),
            reporters=(console,),
            sinks=(ledger,),
            should_stop=lambda: is_asked() or hooks.should_stop(),
        )
        attempts = Attempts(inputs, directory, around, ledger, console)
        try:
            state = attempts.until_done(lambda: start_for(config, placement, spec, console), resume, chaos)
        except KeyboardInterrupt:
            console.ended_at_once()
            raise
    finished = state.step == config.num_steps
    comparison = RunFiles(directory, config.output.poems_interval, state.step).compare(state.step) if finished else None
    console.end(comparison, try_report(directory))
    return RunResult(directory, state, finished, comparison, tuple(console.recoveries))


def start_for(
    config: RunConfig, placement: Placement | GpuPlacement, reward: RewardSpec, watcher: CrewWatcher | None = None
) -> AbstractContextManager[Cast]:
    """The actors that the settings name, see `start_actors` and `start_slime_actors`."""
    if isinstance(placement, Placement):
        return start_actors(config, placement, reward, watcher)
    from launch.start_slime import start_slime_actors

    return start_slime_actors(config, placement, reward, watcher)


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
