"""The trainer ranks as one; on a laptop there is one rank."""

from collections.abc import Sequence
from pathlib import Path

import ray

from actors.actor import Actor
from actors.waiting import RayEvents, wait_for_all
from rlhaiku.events import StepTrained
from rlhaiku.types import TrainBatch, TrainStats


class TrainerGroup:
    """The Trainer of a run. The death of a rank ends the attempt: only a checkpoint has what died with it."""

    def __init__(self, trainer: Actor, events: RayEvents, timeout_s: float, other_ranks: Sequence[Actor] = ()) -> None:
        """`trainer`: an actor with `train_step`, `save` and `load`; `other_ranks`: others that share its model."""
        self._ranks, self._events, self._timeout_s = (trainer, *other_ranks), events, timeout_s
        self._busy = 0

    def submit(self, batch: TrainBatch) -> None:
        """Starts one train step on all ranks."""
        self._busy = len(self._ranks)
        sent = ray.put(batch)  # once, not for every rank
        for rank in self._ranks:
            self._events.expect(rank.handle.train_step.remote(sent), rank, f"train step {batch.step}", self._finish)

    def save(self, directory: Path) -> None:
        """Writes the training state and `hf/` into an existing directory."""
        calls = [(rank.handle.save.remote(directory), rank) for rank in self._ranks]
        wait_for_all(calls, self._timeout_s, f"to save to {directory}")

    def load(self, directory: Path) -> None:
        """Restores what `save` wrote."""
        calls = [(rank.handle.load.remote(directory), rank) for rank in self._ranks]
        wait_for_all(calls, self._timeout_s, f"to load {directory}")

    def _finish(self, stats: TrainStats) -> StepTrained | None:
        """The step's numbers, of which all ranks have the same, once the last one is done."""
        self._busy -= 1
        return None if self._busy else StepTrained(stats)
