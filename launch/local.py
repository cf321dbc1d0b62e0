"""A whole run on this machine: check, place, start the actors, drive the coordinator, compare before and after."""

import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from transformers import AutoTokenizer

from actors.crew import Crew
from actors.engines.torch_engine import EngineSpec, TorchEngine
from actors.reward_pool import INLINE_BELOW, RewardPool
from actors.reward_worker import RewardFn, RewardSpec, RewardWorker
from actors.rollout_pool import RolloutPool
from actors.trainers.torch_trainer import TorchTrainer, TrainerSpec
from actors.trainers.trainer_group import TrainerGroup
from actors.waiting import RayEvents, wait_for
from actors.weight_sync import SharedMemorySync
from launch.checks import check_run, data_directory, resolve_model
from launch.console import ConsoleReporter
from launch.placement import Placement
from launch.ray_runtime import local_ray
from launch.rewards import may_score_inline, reward_spec
from rlhaiku.checkpoints import CheckpointStore, RunState, read_state
from rlhaiku.config import RunConfig, write_config
from rlhaiku.coordinator import Coordinator, Surroundings
from rlhaiku.errors import BadInput
from rlhaiku.evaluation import Comparison
from rlhaiku.haiku.dataset import load_rows
from rlhaiku.metrics import RunFiles
from rlhaiku.prompts import PromptOrder, choose_eval_prompts, render_prompts
from rlhaiku.roles import Roles
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


def run(
    config: RunConfig,
    *,
    reward: RewardFn | None = None,
    rubric: object = None,
    output_dir: str | Path = "runs/local",
    resume: bool = False,
) -> RunResult:
    """Trains with one Ray on this machine, torch engines and a torch trainer.

    `reward(prompt, text)` replaces `reward.functions`, `rubric` (a Rubric, its class, or a `build_prompt` function)
    replaces `judge.rubric`; both are sent to the reward workers by value. Raises BadInput before any actor starts,
    RunFailed when the run cannot go on (its last checkpoint is then intact).
    """
    directory = Path(output_dir)
    placement = check_run(config, directory, resume)
    spec = reward_spec(config, reward, rubric, directory)
    prompts, eval_prompts = load_prompts(config)
    store = CheckpointStore(directory / "checkpoints", config.output.keep_last)
    checkpoint = store.complete()[-1] if resume else None
    state = read_state(checkpoint) if checkpoint else RunState()
    write_config(config, directory / "config.toml")
    files = RunFiles(directory, config.output.poems_interval, state.step)
    console = ConsoleReporter(config, directory, spec.judge)
    console.header(len(prompts), len(eval_prompts), INLINE_BELOW if may_score_inline(spec) else 0)
    with ExitStack() as stack:
        stack.enter_context(local_ray(placement.total_cpus))
        should_stop = stack.enter_context(_stop_on_signal(console))
        roles = stack.enter_context(start_roles(config, placement, spec))
        if checkpoint:
            roles.trainer.load(checkpoint)
        around = Surroundings(
            PromptOrder(prompts, config.seed), eval_prompts, store, (files, console), should_stop=should_stop
        )
        state = Coordinator(config, roles, around, state).run()
    finished = state.step == config.num_steps
    comparison = files.compare(state.step) if finished else None
    result = RunResult(directory, state, finished, comparison)
    console.end(comparison)
    return result


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
def start_roles(config: RunConfig, placement: Placement, reward: RewardSpec) -> Iterator[Roles]:
    """Starts every actor in one placement group, waits until all answer, ends them with the context."""
    timeout_s = config.cluster.wait_timeout_s
    with tempfile.TemporaryDirectory(prefix="rlhaiku-", dir=_shared_memory()) as shared:
        group = placement_group(placement.bundles, strategy="PACK")
        wait_for(group.ready(), timeout_s, f"Ray, asked for {placement.total_cpus} CPU slots")
        spawn = _Spawn(config, placement, reward, Path(shared) / "weights", group)
        engines = Crew("rollout engine", spawn.engine, config.rollout.num_engines)
        workers = Crew("reward worker", spawn.worker, config.reward.num_workers)
        trainer = spawn.trainer()
        events = RayEvents(timeout_s)
        inline = RewardWorker(reward) if may_score_inline(reward) else None
        try:
            everybody = [*engines.handles, trainer, *workers.handles]
            wait_for([actor.__ray_ready__.remote() for actor in everybody], timeout_s, "the actors, asked to start")
            yield Roles(
                rollouts=RolloutPool(engines, config.rollout.tile_groups, events),
                rewards=RewardPool(workers, events, reward.judge is not None, inline),
                trainer=TrainerGroup(trainer, events, timeout_s),
                weight_sync=SharedMemorySync(trainer, engines, spawn.published, timeout_s),
                events=events,
            )
        finally:
            for actor in [*engines.handles, trainer, *workers.handles]:
                ray.kill(actor)
            remove_placement_group(group)


class _Spawn:
    """Applies `ray.remote` to the plain classes, each in its bundle of the placement group, as often as needed."""

    def __init__(
        self, config: RunConfig, placement: Placement, reward: RewardSpec, weights: Path, group: PlacementGroup
    ) -> None:
        self._config, self._placement, self._reward = config, placement, reward
        self._weights, self._group = weights, group
        self._model = resolve_model(config.model.path)
        # As many slots as versions can be alive: those being generated with, and the one being written.
        self._num_slots = max(2, config.rollout.max_staleness + 1)
        self.published: list[int] = []

    def engine(self, index: int) -> Any:  # noqa: ANN401  (a Ray handle)
        rollout = self._config.rollout
        spec = EngineSpec(
            self._model,
            self._weights,
            self._num_slots,
            rollout.threads_per_engine,
            rollout.tile_groups,
            self._config.seed,
            rollout.deterministic,
            tuple(self.published[-self._num_slots :]),
        )
        control = {"control": 1}  # a thread in which a weight sync never queues behind generation
        return self._place(TorchEngine, index, concurrency_groups=control).remote(spec)

    def trainer(self) -> Any:  # noqa: ANN401
        config = self._config
        spec = TrainerSpec(
            self._model, self._weights, self._num_slots, config.num_steps, config.trainer, config.algorithm
        )
        return self._place(TorchTrainer, len(self._placement.engine_cpus)).remote(spec)

    def worker(self, index: int) -> Any:  # noqa: ANN401
        return self._place(RewardWorker, len(self._placement.engine_cpus) + 1 + index).remote(self._reward)

    def _place(self, cls: type, bundle: int, **options: Any) -> Any:  # noqa: ANN401
        where = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=bundle)
        cpus = self._placement.bundles[bundle]["CPU"]
        return ray.remote(num_cpus=cpus, scheduling_strategy=where, **options)(cls)


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


def _shared_memory() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
