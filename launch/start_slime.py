"""Starting the actors of a Megatron and SGLang run, each on its card with slime's own environment, and ending them.

Order: engines load first, while a shared card's memory is free to be measured; then the trainer's ranks beside them.
"""

import tempfile
from argparse import Namespace
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.actor import START_TIMEOUT_S, Actor
from actors.crew import Crew, CrewWatcher, Unwatched
from actors.engines.sglang_engine import CONTROL_THREADS, GENERATE, GENERATE_THREADS, SglangSpec, engine_class
from actors.engines.sglang_server import SLOT_LOADER
from actors.registry import Registry
from actors.reward_pool import RewardPool
from actors.reward_worker import RewardSpec, RewardWorker
from actors.rollout_pool import RolloutPool
from actors.slime_sync import SlimeSync, SlotSync
from actors.trainers.megatron_group import Address, MegatronGroup, load_ranks, spawn_ranks
from actors.trainers.megatron_trainer import trainer_class
from actors.trainers.slime_arguments import SlimeRun, slime_arguments
from actors.trainers.slime_recipe import engine_environment, new_lock, trainer_environment
from actors.waiting import RayEvents, wait_for, wait_for_all
from actors.weight_slots import shared_directory
from launch.checks import gpu_memory_bytes, resolve_model
from launch.estimates import engine_share, model_shape
from launch.placement import GpuPlacement
from launch.rewards import inline_below
from launch.start import Cast
from rlhaiku.config import RunConfig
from rlhaiku.roles import Roles

ENGINE_SHARE, RANK_SHARE, PROBE_SHARE = 0.2, 0.4, 0.01
"""Of a card and its CPU slot, as Ray counts; what each really takes is memory."""
WITHOUT_FLASHINFER = (
    *("--sglang-attention-backend", "triton", "--sglang-sampling-backend", "pytorch"),
    *("--sglang-grammar-backend", "none"),
)
"""For engines where slime's image with its compiled kernels is not what runs."""


@dataclass(frozen=True, slots=True)
class SlimeOptions:
    """What the installed packages and the cards decide, rather than the run's settings."""

    engine_memory: float | None = None
    """Share of the free card that an engine takes; None: what it needs, as far as the trainer leaves it."""
    has_transformer_engine: bool | None = None
    """None: whether it is installed."""
    sglang_flags: tuple[str, ...] | None = None
    """None: none in slime's image, else those that need no kernels beyond SGLang's own."""


@contextmanager
def start_slime_actors(
    config: RunConfig,
    placement: GpuPlacement,
    reward: RewardSpec,
    watcher: CrewWatcher | None = None,
    options: SlimeOptions | None = None,
) -> Iterator[Cast]:
    """Starts every actor in one placement group, waits until all answer, ends them with the context.

    `watcher` is told of engines and reward workers that died and were replaced.
    """
    timeout_s, watcher = config.cluster.wait_timeout_s, watcher or Unwatched()
    start_s = max(timeout_s, START_TIMEOUT_S)
    args = slime_args(config, placement, options or SlimeOptions())
    with ExitStack() as stack:
        group = placement_group(placement.bundles, strategy="PACK")
        stack.callback(remove_placement_group, group)
        wait_for(group.ready(), start_s, "Ray", f"for {placement.num_gpus} GPUs and {placement.total_cpus} CPU slots")
        spawn = SlimeSpawn(config, placement, reward, args, group)
        ranks: list[Actor] = []
        registry = Actor("the registry", spawn.registry())
        stack.callback(_end, [registry])
        engines = Crew("rollout engine", spawn.engine, len(placement.engine_gpus), watcher)
        workers = Crew("reward worker", spawn.worker, config.reward.num_workers, watcher)

        def everybody() -> list[Actor]:
            return [*engines.actors, *ranks, *workers.actors]

        stack.callback(lambda: _end(everybody()))
        spawn_ranks(spawn.rank, ranks, len(placement.rank_gpus), timeout_s)  # they import while engines start
        up = [(actor.handle.__ray_ready__.remote(), actor) for actor in [*engines.actors, *workers.actors]]
        wait_for_all(up, start_s, "to start")
        handles = [engine.handle for engine in engines.actors]
        wait_for(registry.handle.set_engines.remote(handles, new_lock()), timeout_s, registry, "to take the engines")
        layout = load_ranks(ranks, args, registry, timeout_s)
        events = RayEvents(timeout_s, config.judge.give_up_s)
        rollouts = RolloutPool(engines, config.rollout.tile_groups, events)
        sync = SlimeSync(ranks, engines, registry, timeout_s)
        if config.cluster.weight_path == "slots":
            directory = Path(stack.enter_context(shared_directory()))
            of_ranks, of_engines = (
                [directory / f"card-{card}" for card in cards] for cards in (placement.rank_gpus, placement.engine_gpus)
            )
            sync = SlotSync(ranks, engines, registry, timeout_s, of_ranks, of_engines)
        sync.before_publish = rollouts.drain
        rollouts.hold_successors(sync.renew)
        below = inline_below(reward)
        inline = RewardWorker(reward) if below else None
        roles = Roles(
            rollouts=rollouts,
            rewards=RewardPool(workers, events, reward.judge is not None, inline, below),
            trainer=MegatronGroup(ranks, args, layout, events, timeout_s),
            weight_sync=sync,
            events=events,
        )
        yield Cast(roles, everybody)


def slime_args(config: RunConfig, placement: GpuPlacement, options: SlimeOptions) -> Namespace:
    """slime's arguments of a run; loads slime, Megatron and SGLang into this process."""
    has_te = options.has_transformer_engine
    if has_te is None:
        has_te = find_spec("transformer_engine") is not None
    flags = options.sglang_flags if options.sglang_flags is not None else () if has_te else WITHOUT_FLASHINFER
    if config.cluster.weight_path == "slots":
        flags = (*flags, "--sglang-custom-weight-loader", SLOT_LOADER)
    scratch = Path(tempfile.gettempdir()) / "rlhaiku-megatron"
    run = SlimeRun(
        save=scratch,  # both are named anew for each checkpoint
        save_hf=str(scratch / "hf-{rollout_id}"),
        num_trainer_gpus=len(placement.rank_gpus),
        num_engines=len(placement.engine_gpus),
        gpus_per_engine=placement.gpus_per_engine,
        tensor_parallel=config.trainer.tensor_parallel,
        has_transformer_engine=has_te,
        engine_memory=options.engine_memory or _engine_memory(config, len(placement.rank_gpus), has_te),
        sglang_flags=flags,
    )
    return slime_arguments(config, _local_model(config.model.path), run)


def _engine_memory(config: RunConfig, num_ranks: int, has_te: bool) -> float:
    """As `rlhaiku plan` has it, of the card that is really there."""
    return engine_share(config, model_shape(_local_model(config.model.path)), num_ranks, gpu_memory_bytes(), has_te)


def _local_model(path: str) -> str:
    """The directory of a model; one on the hub is taken from the cache, or downloaded."""
    model = resolve_model(path)
    if Path(model).is_dir():
        return model
    from huggingface_hub import snapshot_download

    downloaded: str = snapshot_download(model)
    return downloaded


class SlimeSpawn:
    """Applies `ray.remote` to the classes, each in its bundle of the placement group, as often as needed."""

    def __init__(
        self, config: RunConfig, placement: GpuPlacement, reward: RewardSpec, args: Namespace, group: PlacementGroup
    ) -> None:
        self._config, self._placement, self._reward, self._args = config, placement, reward, args
        self._group = group
        self._cards = _cards_in_order(group, placement.num_gpus)

    def registry(self) -> Any:  # noqa: ANN401  (a Ray handle)
        """Whom the trainer's ranks ask for engines; a process without a card."""
        cls = ray.remote(num_cpus=0)(Registry)
        return cls.remote(len(self._placement.rank_gpus), self._placement.gpus_per_engine)

    def engine(self, place: int) -> Any:  # noqa: ANN401
        """The engine at a place, on its first card."""
        bundle, gpu_id = self._cards[self._placement.engine_gpus[place]]
        is_seeded = getattr(self._args, "sglang_enable_deterministic_inference", False)
        spec = SglangSpec(
            self._args, place, gpu_id, self._config.cluster.wait_timeout_s, self._placement.gpus_per_engine,
            self._config.seed if is_seeded else None,
        )  # fmt: skip
        threads = {"concurrency_groups": {GENERATE: GENERATE_THREADS}, "max_concurrency": CONTROL_THREADS}
        options = threads | {"num_gpus": ENGINE_SHARE, "runtime_env": {"env_vars": engine_environment()}}
        return self._place(engine_class(), bundle, ENGINE_SHARE, **options).remote(spec)

    def rank(self, index: int, address: Address) -> Any:  # noqa: ANN401
        """A rank of the trainer, on its card."""
        bundle, _ = self._cards[self._placement.rank_gpus[index]]
        options = {"num_gpus": RANK_SHARE, "runtime_env": {"env_vars": trainer_environment()}}
        cls = self._place(trainer_class(), bundle, RANK_SHARE, **options)
        return cls.remote(len(self._placement.rank_gpus), index, *address)

    def worker(self, index: int) -> Any:  # noqa: ANN401
        """A reward worker, in a bundle behind those of the cards."""
        bundle = self._placement.num_gpus + index
        return self._place(RewardWorker, bundle, self._placement.reward_cpus[index]).remote(self._reward)

    def _place(self, cls: type, bundle: int, cpus: float, **options: Any) -> Any:  # noqa: ANN401
        where = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=bundle)
        return ray.remote(num_cpus=cpus, scheduling_strategy=where, **options)(cls)


def _cards_in_order(group: PlacementGroup, num_gpus: int) -> list[tuple[int, int]]:
    """(bundle, GPU id on its node) of every card, in the order of the ids: slime counts ranks and engines so."""
    # Not a function of this file, which a probe's process would then load, with all that it imports.
    ask = ray.remote(num_cpus=PROBE_SHARE, num_gpus=PROBE_SHARE, max_retries=0)(ray.get_gpu_ids)
    calls = [
        ask.options(scheduling_strategy=PlacementGroupSchedulingStrategy(group, bundle)).remote()
        for bundle in range(num_gpus)
    ]
    found = wait_for(calls, START_TIMEOUT_S, "Ray", "which card each bundle has")
    return sorted(((bundle, int(ids[0])) for bundle, ids in enumerate(found)), key=lambda card: card[1])


def _end(actors: list[Actor]) -> None:
    for actor in actors:
        ray.kill(actor.handle)
