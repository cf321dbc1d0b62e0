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
    """CPUs of the run's actors, and the bundles of its placement group."""

    engine_cpus: tuple[int, ...]
    trainer_cpus: int
    reward_cpus: tuple[int, ...]
    num_gpus: int = 0
    """Cards that engines and trainer share; 0 for a CPU run."""

    @property
    def bundles(self) -> list[dict[str, float]]:
        """One for engines and trainer, who share memory with the driver's node, then one for each reward worker."""
        together = {"CPU": float(sum(self.engine_cpus) + self.trainer_cpus), HEAD: 0.001}
        if self.num_gpus:
            together["GPU"] = float(self.num_gpus)
        return [together, *({"CPU": float(cpus)} for cpus in self.reward_cpus)]

    @property
    def gpu_share(self) -> float:
        """Of a card, for each engine and for the trainer: Ray counts shares, memory is what each takes."""
        return round(self.num_gpus / (len(self.engine_cpus) + 1), 4)

    @property
    def total_cpus(self) -> int:
        """Ray CPU slots the run asks for; a synchronous run's exceed the cores because its actors take turns."""
        return sum(self.engine_cpus) + self.trainer_cpus + sum(self.reward_cpus)


def plan_placement(config: RunConfig, num_cores: int) -> Placement:
    """Places a run on one machine; raises BadInput if its threads do not fit `num_cores`."""
    rollout = config.rollout
    engines, trainer = rollout.num_engines * rollout.threads_per_engine, config.trainer.threads
    take_turns = rollout.max_staleness == 0
    at_once = max(engines, trainer) if take_turns else engines + trainer
    if at_once > num_cores:
        how = "engines and trainer take turns" if take_turns else "engines and trainer overlap (max_staleness > 0)"
        raise BadInput(
            f"the threads computing at the same moment must fit this machine's {num_cores} cores ({how})",
            f"{rollout.num_engines} engines x {rollout.threads_per_engine} + trainer {trainer}",
            "Lower rollout.num_engines, rollout.threads_per_engine or trainer.threads.",
        )
    return Placement(
        engine_cpus=(rollout.threads_per_engine,) * rollout.num_engines,
        trainer_cpus=trainer,
        # A reward worker scores a whole tile in a millisecond: it needs a process, not a core.
        reward_cpus=(1,) * config.reward.num_workers,
        num_gpus=config.cluster.gpus_per_node,
    )
