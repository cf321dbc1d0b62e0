"""The Megatron ranks as one trainer: one batch cut into shards for all, one answer from all."""

from argparse import Namespace
from collections.abc import Callable, Mapping, MutableSequence, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from actors.actor import START_TIMEOUT_S, Actor
from actors.trainers.slime_shards import boxes, make_shards
from actors.waiting import RayEvents, wait_for, wait_for_all
from rlhaiku.errors import ActorFailed
from rlhaiku.events import RoleEvent, StepTrained
from rlhaiku.types import TrainBatch, TrainStats

Address = tuple[str | None, int | None]
NOWHERE: Address = (None, None)
"""Of the first rank, which chooses where the others will find it."""


class MegatronGroup:
    """The Trainer of a run. The death of a rank ends the attempt: the others wait for it in a collective."""

    def __init__(
        self, ranks: Sequence[Actor], args: Namespace, parallel_config: Mapping[str, int], events: RayEvents,
        timeout_s: float,
    ) -> None:  # fmt: skip
        """`ranks`: started actors of `trainer_class`; `parallel_config`: what their first one told the registry."""
        self._ranks, self._args, self._parallel_config = ranks, args, parallel_config
        self._events, self._timeout_s = events, timeout_s
        self._answers: list[Mapping[str, float]] = []
        self._steps_done = 0
        self._sent: list[Any] = []

    def submit(self, batch: TrainBatch) -> None:
        """Starts one train step on all ranks."""
        self._answers, self._sent = [], boxes(make_shards(self._args, self._parallel_config, batch))
        for rank in self._ranks:
            call = rank.handle.train_step.remote(batch.step, self._sent)
            self._events.expect(call, rank, f"train step {batch.step}", partial(self._finish, batch))

    def save(self, directory: Path) -> None:
        """Writes the training state and `hf/` into an existing directory."""
        calls = [(rank.handle.save.remote(directory, self._steps_done), rank) for rank in self._ranks]
        wait_for_all(calls, self._timeout_s, f"to save to {directory}")

    def load(self, directory: Path) -> None:
        """Restores what `save` wrote."""
        calls = [(rank.handle.load.remote(directory), rank) for rank in self._ranks]
        wait_for_all(calls, self._timeout_s, f"to load {directory}")

    def _finish(self, batch: TrainBatch, answer: Mapping[str, float]) -> RoleEvent | None:
        """The step's numbers, once every rank is done; only one of them has any."""
        self._answers.append(answer)
        if len(self._answers) < len(self._ranks):
            return None
        self._steps_done, self._sent = batch.step + 1, []
        found = next((each for each in self._answers if each), None)
        if found is None:
            raise ActorFailed(f"a trainer rank must log what train step {batch.step} brought; none did")
        forwarded = sum(
            len(group.prompt_token_ids) + len(sample.token_ids) for group in batch.groups for sample in group.samples
        )
        return StepTrained(TrainStats(
            step=batch.step, num_loss_tokens=batch.num_loss_tokens, num_forward_tokens=forwarded, **found
        ))


def spawn_ranks(
    spawn: Callable[[int, Address], Any], ranks: MutableSequence[Actor], world_size: int, timeout_s: float
) -> None:
    """Spawns the ranks, appending each to `ranks` as soon as it is there; none has touched its card yet.

    `spawn(rank, address)` returns a Ray handle; the first rank chooses the address where the others meet it.
    """
    address = NOWHERE
    for index in range(world_size):
        ranks.append(Actor(f"trainer rank {index}", spawn(index, address)))
        if index == 0:
            call = ranks[0].handle.get_master_addr_and_port.remote()
            address = wait_for(call, max(timeout_s, START_TIMEOUT_S), ranks[0], "for an address to meet at")


def load_ranks(ranks: Sequence[Actor], args: Namespace, registry: Actor, timeout_s: float) -> Mapping[str, int]:
    """Has all ranks load the model onto their cards; returns how they divide a batch."""
    has_reference = bool(args.use_kl_loss or args.kl_coef)
    calls = [(rank.handle.start.remote(args, registry.handle, has_reference), rank) for rank in ranks]
    wait_for_all(calls, max(timeout_s, START_TIMEOUT_S), "to load the model")
    config: Mapping[str, int] = wait_for(
        registry.handle.train_parallel_config.remote(), timeout_s, registry, "for the trainer's layout"
    )
    return config
