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
from actors.waiting import RayEvents, wait_for, wait_for_all
from actors.weight_relay import DeviceWeightRelay, WeightRelay, close, connect
from actors.weight_slots import shared_directory
from actors.weight_sync import SharedMemorySync
from launch.checks import resolve_model
from launch.placement import Placement, count_slots
from launch.rewards import inline_below
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
        trainer = Actor("the trainer", spawn.rank(0))
        others = [Actor(f"trainer rank {r}", spawn.rank(r)) for r in range(1, len(placement.rank_bundles))]
        events = RayEvents(timeout_s, config.judge.give_up_s)
        below = inline_below(reward)
        inline = RewardWorker(reward) if below else None

        def everybody() -> list[Actor]:
            return [*engines.actors, trainer, *others, *workers.actors, *spawn.relays]

        try:
            # All at once: ranks come up together, so that the first failure is the cause of the others.
            up = [(actor.handle.__ray_ready__.remote(), actor) for actor in everybody()]
            wait_for_all(up, max(timeout_s, START_TIMEOUT_S), "to start")
            connect(spawn.relays, timeout_s)
            roles = Roles(
                rollouts=RolloutPool(engines, config.rollout.tile_groups, events),
                rewards=RewardPool(workers, events, reward.judge is not None, inline, below),
                trainer=TrainerGroup(trainer, events, timeout_s, others),
                weight_sync=SharedMemorySync(trainer, engines, spawn.published, timeout_s, spawn.relays, others),
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
        self._num_slots = count_slots(config)
        self.published: list[int] = []
        self._relay_at = {bundle: Actor(f"weight relay {bundle}", self._relay(bundle))
                          for bundle in placement.relay_bundles}
        self.relays = list(self._relay_at.values())

    def engine(self, index: int) -> Any:  # noqa: ANN401  (a Ray handle)
        rollout, bundle = self._config.rollout, self._placement.engine_bundles[index]
        if rollout.engine == "vllm":
            return self._vllm_engine(bundle)
        spec = EngineSpec(
            self._model,
            self._weights_of(bundle),
            self._num_slots,
            rollout.threads_per_engine,
            rollout.tile_groups,
            self._config.seed,
            rollout.deterministic,
            tuple(self.published[-self._num_slots :]),
        )
        kind = GpuTorchEngine if self._placement.num_gpus else TorchEngine
        return self._place_engine(kind, bundle).remote(spec)

    def _weights_of(self, bundle: int) -> Path:
        """What engines of a bundle open; asked for each of them, so that none is started where the relay is gone."""
        if bundle == self._placement.rank_bundles[0]:
            return self._weights
        relay, timeout_s = self._relay_at[bundle], self._config.cluster.wait_timeout_s
        patience_s = relay.patience_s(timeout_s)
        return Path(wait_for(relay.handle.file.remote(), patience_s, relay, "where its slots are"))

    def _relay(self, bundle: int) -> Any:  # noqa: ANN401
        is_source = bundle == self._placement.rank_bundles[0]
        kind = DeviceWeightRelay if self._placement.num_gpus else WeightRelay
        cls = self._place(kind, bundle, 0, num_gpus=self._placement.gpu_share)
        return cls.remote(self._num_slots, self._config.cluster.wait_timeout_s, self._weights if is_source else None)

    def _vllm_engine(self, bundle: int) -> Any:  # noqa: ANN401
        rollout, evaluation = self._config.rollout, self._config.evaluation
        spec = VllmSpec(
            self._model,
            self._weights_of(bundle),
            self._num_slots,
            self._config.seed,
            max_sequences=rollout.tile_groups * max(rollout.group_size, evaluation.samples_per_prompt),
            max_tokens=max(rollout.max_tokens, evaluation.max_tokens),
            published=tuple(self.published[-self._num_slots :]),
        )
        return self._place_engine(VllmEngine, bundle).remote(spec)

    def _place_engine(self, cls: type, bundle: int) -> Any:  # noqa: ANN401
        cpus, share = self._config.rollout.threads_per_engine, self._placement.gpu_share
        return self._place(cls, bundle, cpus, num_gpus=share, concurrency_groups=CONTROL)

    def rank(self, index: int) -> Any:  # noqa: ANN401
        """A rank of the trainer; with others only if there are several."""
        config, placement = self._config, self._placement
        spec = TrainerSpec(
            self._model,
            self._weights,
            self._num_slots,
            config.num_steps,
            config.trainer,
            config.algorithm,
            device="cuda" if placement.num_gpus else "cpu",
            rank=index,
            num_ranks=len(placement.rank_bundles),
            timeout_s=config.cluster.wait_timeout_s,
        )
        bundle, cpus, share = placement.rank_bundles[index], placement.trainer_cpus, placement.gpu_share
        return self._place(TorchTrainer, bundle, cpus, num_gpus=share).remote(spec)

    def worker(self, index: int) -> Any:  # noqa: ANN401
        bundle = self._placement.worker_bundle(index)
        return self._place(RewardWorker, bundle, self._placement.reward_cpus[index]).remote(self._reward)

    def _place(self, cls: type, bundle: int, cpus: int, **options: Any) -> Any:  # noqa: ANN401
        where = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=bundle)
        return ray.remote(num_cpus=cpus, scheduling_strategy=where, **options)(cls)
