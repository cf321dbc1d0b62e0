"""The trainer ranks as one; on a laptop there is one rank."""

from pathlib import Path

from actors.actor import Actor
from actors.waiting import RayEvents, wait_for
from rlhaiku.events import StepTrained
from rlhaiku.types import TrainBatch


class TrainerGroup:
    """The Trainer of a run. Its death ends the attempt: only a checkpoint has what died with it."""

    def __init__(self, trainer: Actor, events: RayEvents, timeout_s: float) -> None:
        """`trainer`: an actor with `train_step`, `save` and `load`."""
        self._trainer, self._events, self._timeout_s = trainer, events, timeout_s

    def submit(self, batch: TrainBatch) -> None:
        """Starts one train step."""
        call = self._trainer.handle.train_step.remote(batch)
        self._events.expect(call, self._trainer, f"train step {batch.step}", StepTrained)

    def save(self, directory: Path) -> None:
        """Writes the training state and `hf/` into an existing directory."""
        wait_for(self._trainer.handle.save.remote(directory), self._timeout_s, self._trainer, f"to save to {directory}")

    def load(self, directory: Path) -> None:
        """Restores what `save` wrote."""
        wait_for(self._trainer.handle.load.remote(directory), self._timeout_s, self._trainer, f"to load {directory}")
