"""Which actor gets how many CPU threads, decided once and checked before anything starts.

Oversubscribed torch is 5-10 times slower, so the threads of all actors that compute *at the same moment* must fit the
cores. In a synchronous run engines and trainer take turns and each side may use every core; one step ahead they overlap
and share.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import floor

from rlhaiku.config import RunConfig
from rlhaiku.errors import BadInput

HEAD = "node:__internal_head__"
"""The resource that Ray gives to the node the driver runs on."""


@dataclass(frozen=True, slots=True)
class Placement:
    """CPUs of the run's actors, and the bundles of its placement group: one for each card of the driver's node, or one
    for the node, then one for each other node."""

    engine_cpus: tuple[int, ...]
    trainer_cpus: int
    """Of each rank."""
    reward_cpus: tuple[int, ...]
    engine_bundles: tuple[int, ...]
    """By engine."""
    rank_bundles: tuple[int, ...] = (0,)
    """By trainer rank."""
    num_gpus: int = 0
    """Cards of the driver's node; 0 for a CPU run."""
    num_nodes: int = 1

    def worker_bundle(self, place: int) -> int:
        """The bundle of a reward worker: they take turns over the nodes."""
        node = place % self.num_nodes
        return node and node + max(1, self.num_gpus) - 1

    def node_of(self, bundle: int) -> int:
        """The node that has a bundle; 0 is the driver's."""
        return max(0, bundle - max(1, self.num_gpus) + 1)

    @property
    def relay_bundles(self) -> tuple[int, ...]:
        """Where relays for weights are: with rank 0, which has the weights, and wherever else engines are."""
        source = self.rank_bundles[0]
        others = sorted(set(self.engine_bundles) - {source})
        return (source, *others) if others else ()

    @property
    def bundles(self) -> list[dict[str, float]]:
        """Those with nothing to do are left out."""
        num_cards = max(1, self.num_gpus)
        cpus = [0.0] * (num_cards + self.num_nodes - 1)
        for bundle in self.rank_bundles:
            cpus[bundle] += self.trainer_cpus
        for bundle, count in zip(self.engine_bundles, self.engine_cpus, strict=True):
            cpus[bundle] += count
        for place, count in enumerate(self.reward_cpus):
            cpus[self.worker_bundle(place)] += count
        cards: list[dict[str, float]] = [{"GPU": 1.0} if self.num_gpus else {} for _ in range(num_cards)]
        cards[0][HEAD] = 0.001
        others: list[dict[str, float]] = [{} for _ in range(1, self.num_nodes)]
        return [bundle | {"CPU": count} for bundle, count in zip(cards + others, cpus, strict=True) if count]

    @property
    def gpu_share(self) -> float:
        """Of a card, for each actor on it: Ray counts shares, memory is what each takes."""
        most = max(Counter((*self.engine_bundles, *self.rank_bundles, *self.relay_bundles)).values())
        return floor(10000 / most) / 10000 if self.num_gpus else 0.0

    def describe(self) -> str:
        """Who is where, in words."""
        engines, workers = len(self.engine_cpus), len(self.reward_cpus)
        alike = f"{_many(engines, 'engine')} {{}}, {_many(workers, 'reward worker')}"
        if self.num_gpus:
            ranks = "the trainer" if len(self.rank_bundles) == 1 else "trainer ranks"
            where, there = _places(sorted(set(self.engine_bundles))), _places(self.rank_bundles)
            shared = f"and {ranks} on GPU {where}"
            return alike.format(shared if where == there else f"on GPU {where}, {ranks} on GPU {there}")
        if self.num_nodes == 1:
            each = " each" if engines > 1 else ""
            return alike.format(f"on {self.engine_cpus[0]} CPU{each}, trainer on {self.trainer_cpus}")
        on: list[list[str]] = [[] for _ in range(self.num_nodes)]
        on[0].append("trainer")
        for place, bundle in enumerate(self.engine_bundles):
            on[self.node_of(bundle)].append(f"engine {place}")
        for place in range(workers):
            on[self.node_of(self.worker_bundle(place))].append(f"reward worker {place}")
        return "; ".join(f"node {node}: {', '.join(who) or 'nobody'}" for node, who in enumerate(on))

    @property
    def total_cpus(self) -> int:
        """Ray CPU slots the run asks for; a synchronous run's exceed the cores because its actors take turns."""
        return sum(self.engine_cpus) + self.trainer_cpus * len(self.rank_bundles) + sum(self.reward_cpus)


def count_slots(config: RunConfig) -> int:
    """As many as weight versions can be alive: those being generated with, and the one being written.

    Engines on a GPU hold weights of their own: in a synchronous run, where they are idle meanwhile, one is enough.
    """
    at_least = 1 if config.cluster.gpus_per_node else 2
    return max(at_least, config.rollout.max_staleness + 1)


def plan_placement(config: RunConfig, num_cores: int) -> Placement:
    """Places a run on machines of `num_cores` each; raises BadInput if its threads do not fit them."""
    rollout, num_gpus = config.rollout, config.cluster.gpus_per_node
    num_nodes = config.cluster.num_nodes
    engine_bundles, rank_bundles = place_on_cards(config) if num_gpus else _take_turns(config)
    together = rollout.num_engines if num_gpus else -(-rollout.num_engines // num_nodes)
    engines, trainer = together * rollout.threads_per_engine, len(rank_bundles) * config.trainer.threads
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
        trainer_cpus=config.trainer.threads,
        # A reward worker has work for some hundredths of a second a step: it needs a process, not a core.
        reward_cpus=(1,) * config.reward.num_workers,
        engine_bundles=engine_bundles,
        rank_bundles=rank_bundles,
        num_gpus=num_gpus,
        num_nodes=num_nodes,
    )


def _take_turns(config: RunConfig) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Bundles of engines and of the trainer on CPUs: engines over all nodes."""
    return tuple(place % config.cluster.num_nodes for place in range(config.rollout.num_engines)), (0,)


def place_on_cards(config: RunConfig) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Bundles of engines and of trainer ranks: together on all cards, or engines first and ranks on the rest.

    Raises BadInput if they do not fit. A card alone is always shared.
    """
    count, num_gpus = config.rollout.num_engines, config.cluster.gpus_per_node
    if num_gpus > 1 and config.cluster.num_nodes > 1:
        rule = "trainer ranks and engines on several GPUs are on one node"
        raise BadInput(rule, f"{config.cluster.num_nodes} nodes", "Set cluster.num_nodes=1.")
    if num_gpus == 1 or config.cluster.colocate:
        return tuple(place % num_gpus for place in range(count)), tuple(range(num_gpus))
    if count >= num_gpus:
        rule = f"engines and trainer each need some of the {num_gpus} GPUs of cluster.gpus_per_node"
        remedy = "Lower rollout.num_engines, or set cluster.colocate=true."
        raise BadInput(rule, f"{count} engines x 1 GPU", remedy)
    return tuple(range(count)), tuple(range(count, num_gpus))


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

    def describe(self) -> str:
        """Who is where, in words."""
        workers = f"{_many(len(self.reward_cpus), 'reward worker')} on CPUs"
        if self.gpus_per_engine == 1 and self.engine_gpus == self.rank_gpus:
            return f"engine i and trainer rank i on GPU i, {self.num_gpus} of them; {workers}"
        engines = f"engines on GPU {_places(range(len(self.engine_gpus) * self.gpus_per_engine))}"
        each = "" if self.gpus_per_engine == 1 else f", {self.gpus_per_engine} each"
        return f"{engines}{each}; trainer ranks on GPU {_places(self.rank_gpus)}; {workers}"

    @property
    def total_cpus(self) -> int:
        """Ray CPU slots: processes, not cores; a card's two actors share one."""
        return self.num_gpus + sum(self.reward_cpus)


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _places(gpus: Sequence[int]) -> str:
    """Neighbouring cards as `first-last`."""
    return str(gpus[0]) if len(gpus) == 1 else f"{gpus[0]}-{gpus[-1]}"


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
