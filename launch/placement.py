"""Which actor gets how many CPU threads, decided once and checked before anything starts.

Oversubscribed torch is 5-10 times slower, so the threads of all actors that compute *at the same moment* must fit the
cores. In a synchronous run engines and trainer take turns and each side may use every core; one step ahead they overlap
and share.
"""

from dataclasses import dataclass

from rlhaiku.config import RunConfig
from rlhaiku.errors import BadInput

HEAD = "node:__internal_head__"
"""The resource that Ray gives to the node the driver runs on."""


@dataclass(frozen=True, slots=True)
class Placement:
    """CPUs of the run's actors, and the bundles of its placement group: one for each node."""

    engine_cpus: tuple[int, ...]
    trainer_cpus: int
    reward_cpus: tuple[int, ...]
    num_gpus: int = 0
    """Cards that engines and trainer share; 0 for a CPU run."""
    num_nodes: int = 1

    def engine_node(self, place: int) -> int:
        """The bundle of an engine: they take turns over the nodes, but on a GPU all stay with the trainer."""
        return 0 if self.num_gpus else place % self.num_nodes

    def worker_node(self, place: int) -> int:
        """The bundle of a reward worker."""
        return place % self.num_nodes

    @property
    def num_relays(self) -> int:
        """Nodes that engines are on, if they are on more than the trainer's: each then needs a relay for weights."""
        nodes = {self.engine_node(place) for place in range(len(self.engine_cpus))}
        return len(nodes) if len(nodes) > 1 else 0

    @property
    def bundles(self) -> list[dict[str, float]]:
        """By node, the trainer's and driver's first; nodes with nothing to do have none."""
        cpus = [float(self.trainer_cpus), *(0.0 for _ in range(1, self.num_nodes))]
        for place, count in enumerate(self.engine_cpus):
            cpus[self.engine_node(place)] += count
        for place, count in enumerate(self.reward_cpus):
            cpus[self.worker_node(place)] += count
        bundles = [{"CPU": count} for count in cpus if count]
        bundles[0] |= {HEAD: 0.001} | ({"GPU": float(self.num_gpus)} if self.num_gpus else {})
        return bundles

    @property
    def gpu_share(self) -> float:
        """Of a card, for each engine and for the trainer: Ray counts shares, memory is what each takes."""
        return round(self.num_gpus / (len(self.engine_cpus) + 1), 4)

    @property
    def total_cpus(self) -> int:
        """Ray CPU slots the run asks for; a synchronous run's exceed the cores because its actors take turns."""
        return sum(self.engine_cpus) + self.trainer_cpus + sum(self.reward_cpus)


def plan_placement(config: RunConfig, num_cores: int) -> Placement:
    """Places a run on machines of `num_cores` each; raises BadInput if its threads do not fit them."""
    rollout, num_gpus = config.rollout, config.cluster.gpus_per_node
    num_nodes = config.cluster.num_nodes
    together = rollout.num_engines if num_gpus else -(-rollout.num_engines // num_nodes)
    engines, trainer = together * rollout.threads_per_engine, config.trainer.threads
    take_turns = rollout.max_staleness == 0
    at_once = max(engines, trainer) if take_turns else engines + trainer
    if at_once > num_cores:
        how = "engines and trainer take turns" if take_turns else "engines and trainer overlap (max_staleness > 0)"
        raise BadInput(
            f"the threads computing at the same moment must fit this machine's {num_cores} cores ({how})",
            f"{together} engines x {rollout.threads_per_engine} + trainer {trainer}",
            "Lower rollout.num_engines, rollout.threads_per_engine or trainer.threads.",
        )
    return Placement(
        engine_cpus=(rollout.threads_per_engine,) * rollout.num_engines,
        trainer_cpus=trainer,
        # A reward worker scores a whole tile in a millisecond: it needs a process, not a core.
        reward_cpus=(1,) * config.reward.num_workers,
        num_gpus=num_gpus,
        num_nodes=num_nodes,
    )


@dataclass(frozen=True, slots=True)
class GpuPlacement:
    """Cards of a Megatron and SGLang run by their place in the node's order, and its reward workers."""

    engine_gpus: tuple[int, ...]
    """By engine: its first card."""
    rank_gpus: tuple[int, ...]
    """By trainer rank: its card. Where cards are shared, rank r stands on card r, as slime's updater takes for granted.
    """
    reward_cpus: tuple[int, ...]
    num_gpus: int
    gpus_per_engine: int = 1

    @property
    def bundles(self) -> list[dict[str, float]]:
        """One for each card, then one for each reward worker."""
        cards = [{"GPU": 1.0, "CPU": 1.0} for _ in range(self.num_gpus)]
        return [*cards, *({"CPU": float(cpus)} for cpus in self.reward_cpus)]

    @property
    def total_cpus(self) -> int:
        """Ray CPU slots: processes, not cores; a card's two actors share one."""
        return self.num_gpus + sum(self.reward_cpus)


def is_slime(config: RunConfig) -> bool:
    """Whether a run takes slime's trainers and engines."""
    return config.trainer.backend == "megatron"


def plan_gpus(config: RunConfig) -> GpuPlacement:
    """Places a Megatron and SGLang run on one node: together on the cards, or engines first and trainer on the rest.

    Raises BadInput if they do not fit.
    """
    rollout, parts = config.rollout, config.trainer.tensor_parallel
    count, num_gpus, gpus_per_engine = rollout.num_engines, config.cluster.gpus_per_node, rollout.gpus_per_engine
    taken = count * gpus_per_engine
    first_rank = 0 if config.cluster.colocate else taken
    if taken > num_gpus or first_rank >= num_gpus:
        together = "share" if config.cluster.colocate else "each need some of"
        rule = f"engines and trainer {together} the {num_gpus} GPUs of cluster.gpus_per_node"
        remedy = "Lower rollout.num_engines, or set cluster.colocate=true."
        raise BadInput(rule, f"{count} engines x {gpus_per_engine} GPUs", remedy)
    if (num_gpus - first_rank) % parts:
        rule = "trainer.tensor_parallel must divide the trainer's GPUs"
        raise BadInput(rule, f"{num_gpus - first_rank} GPUs, {parts} for each copy", "Choose a divisor.")
    return GpuPlacement(
        engine_gpus=tuple(range(0, taken, gpus_per_engine)),
        rank_gpus=tuple(range(first_rank, num_gpus)),
        reward_cpus=(1,) * config.reward.num_workers,
        num_gpus=num_gpus,
        gpus_per_engine=gpus_per_engine,
    )
