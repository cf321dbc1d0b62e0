"""Starting every actor of a run on this machine, each in its place, and ending them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.actor import START_TIMEOUT_S, Actor
from actors.crew import Crew, CrewWatcher, Unwatched
from actors.engines.gpu_torch_engine import GpuTorchEngine
from actors.engines.torch_engine import EngineSpec, TorchEngine
from actors.engines.vllm_engine import VllmEngine, VllmSpec
from actors.reward_pool import RewardPool
from actors.reward_worker import RewardSpec, RewardWorker
from actors.rollout_pool import RolloutPool
from actors.trainers.torch_trainer import TorchTrainer, TrainerSpec
from actors.trainers.trainer_group import TrainerGroup
from actors.waiting import RayEvents, wait_for, wait_for_start
from actors.weight_relay import WeightRelay, close, connect
from actors.weight_slots import shared_directory
from actors.weight_sync import SharedMemorySync
from launch.checks import resolve_model
from launch.placement import Placement
from launch.rewards import may_score_inline
from rlhaiku.config import RunConfig
from rlhaiku.roles import Roles

CONTROL = {"control": 1}
"""A thread of an engine in which a weight sync never queues behind generation."""


@dataclass(frozen=True, slots=True)
class Cast:
    """The actors of a run, and the roles they play for the coordinator."""

    roles: Roles
    actors: Callable[[], list[Actor]]
    """Everybody who is there now: successors stand in the places of the dead."""


@contextmanager
def start_actors(
    config: RunConfig, placement: Placement, reward: RewardSpec, watcher: CrewWatcher | None = None
) -> Iterator[Cast]:
    """Starts every actor in one placement group, waits until all answer, ends them with the context.

    `watcher` is told of engines and reward workers that died and were replaced.
    """
    timeout_s, watcher = config.cluster.wait_timeout_s, watcher or Unwatched()
    with shared_directory() as shared, _bundles(placement, max(timeout_s, START_TIMEOUT_S)) as group:
        spawn = _Spawn(config, placement, reward, Path(shared) / "weights", group)
        engines = Crew("rollout engine", spawn.engine, config.rollout.num_engines, watcher)
        workers = Crew("reward worker", spawn.worker, config.reward.num_workers, watcher)
        trainer = Actor("the trainer", spawn.trainer())
        events = RayEvents(timeout_s, config.judge.give_up_s)
        inline = RewardWorker(reward) if may_score_inline(reward) else None

        def everybody() -> list[Actor]:
            return [*engines.actors, trainer, *workers.actors, *spawn.relays]

        try:
            for actor in everybody():
                wait_for_start(actor, timeout_s)
            connect(spawn.relays, timeout_s)
            roles = Roles(
                rollouts=RolloutPool(engines, config.rollout.tile_groups, events),
                rewards=RewardPool(workers, events, reward.judge is not None, inline),
                trainer=TrainerGroup(trainer, events, timeout_s),
                weight_sync=SharedMemorySync(trainer, engines, spawn.published, timeout_s, spawn.relays),
                events=events,
            )
            yield Cast(roles, everybody)
        finally:
            close(spawn.relays)
            for actor in everybody():
                ray.kill(actor.handle)


@contextmanager
def _bundles(placement: Placement, timeout_s: float) -> Iterator[PlacementGroup]:
    """A bundle on each node, as far as Ray has as many; whoever is left in them ends with the context."""
    group = placement_group(placement.bundles, strategy="SPREAD" if placement.num_nodes > 1 else "PACK")
    try:
        wait_for(group.ready(), timeout_s, "Ray", f"for {placement.total_cpus} CPU slots")
        yield group
    finally:
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
        self.relays = [Actor(f"weight relay {node}", self._relay(node)) for node in range(placement.num_relays)]

    def engine(self, index: int) -> Any:  # noqa: ANN401  (a Ray handle)
        rollout = self._config.rollout
        if rollout.engine == "vllm":
            return self._vllm_engine()
        node = self._placement.engine_node(index)
        spec = EngineSpec(
            self._model,
            self._weights_of(node),
            self._num_slots,
            rollout.threads_per_engine,
            rollout.tile_groups,
            self._config.seed,
            rollout.deterministic,
            tuple(self.published[-self._num_slots :]),
        )
        kind = GpuTorchEngine if self._placement.num_gpus else TorchEngine
        return self._place_engine(kind, node).remote(spec)

    def _weights_of(self, node: int) -> Path:
        """What engines of a node map; asked for each of them, so that none is started where the relay is gone."""
        if node == 0:
            return self._weights
        relay, timeout_s = self.relays[node], self._config.cluster.wait_timeout_s
        patience_s = relay.patience_s(timeout_s)
        return Path(wait_for(relay.handle.file.remote(), patience_s, relay, "where its slots are"))

    def _relay(self, node: int) -> Any:  # noqa: ANN401
        cls = self._place(WeightRelay, node, 0)
        return cls.remote(self._num_slots, self._config.cluster.wait_timeout_s, None if node else self._weights)

    def _vllm_engine(self) -> Any:  # noqa: ANN401
        rollout, evaluation = self._config.rollout, self._config.evaluation
        spec = VllmSpec(
            self._model,
            self._weights,
            self._num_slots,
            self._config.seed,
            max_sequences=rollout.tile_groups * max(rollout.group_size, evaluation.samples_per_prompt),
            max_tokens=max(rollout.max_tokens, evaluation.max_tokens),
            published=tuple(self.published[-self._num_slots :]),
        )
        return self._place_engine(VllmEngine, 0).remote(spec)

    def _place_engine(self, cls: type, node: int) -> Any:  # noqa: ANN401
        cpus, share = self._config.rollout.threads_per_engine, self._placement.gpu_share
        return self._place(cls, node, cpus, num_gpus=share, concurrency_groups=CONTROL)

    def trainer(self) -> Any:  # noqa: ANN401
        config = self._config
        spec = TrainerSpec(
            self._model,
            self._weights,
            self._num_slots,
            config.num_steps,
            config.trainer,
            config.algorithm,
            device="cuda" if self._placement.num_gpus else "cpu",
        )
        cpus, share = self._placement.trainer_cpus, self._placement.gpu_share
        return self._place(TorchTrainer, 0, cpus, num_gpus=share).remote(spec)

    def worker(self, index: int) -> Any:  # noqa: ANN401
        node = self._placement.worker_node(index)
        return self._place(RewardWorker, node, self._placement.reward_cpus[index]).remote(self._reward)

    def _place(self, cls: type, bundle: int, cpus: int, **options: Any) -> Any:  # noqa: ANN401
        where = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=bundle)
        return ray.remote(num_cpus=cpus, scheduling_strategy=where, **options)(cls)
