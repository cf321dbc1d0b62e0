"""The trainer ranks as one; on a laptop there is one rank."""

from pathlib import Path
from typing import Any

from actors.waiting import RayEvents, wait_for
from rlhaiku.events import StepTrained
from rlhaiku.types import TrainBatch


class TrainerGroup:
    """The Trainer of a run."""

    def __init__(self, trainer: Any, events: RayEvents, timeout_s: float) -> None:  # noqa: ANN401  (a Ray handle)
        """`trainer`: handle of an actor with `train_step`, `save` and `load`."""
        self._trainer, self._events, self._timeout_s = trainer, events, timeout_s

    def submit(self, batch: TrainBatch) -> None:
        """Starts one train step."""
        self._events.expect(self._trainer.train_step.remote(batch), "the trainer", StepTrained)

    def save(self, directory: Path) -> None:
        """Writes the training state and `hf/` into an existing directory."""
        wait_for(self._trainer.save.remote(directory), self._timeout_s, "the trainer, asked to save")

    def load(self, directory: Path) -> None:
        """Restores what `save` wrote."""
        wait_for(self._trainer.load.remote(directory), self._timeout_s, "the trainer, asked to load")
