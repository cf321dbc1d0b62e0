"""What the coordinator needs from the world, as Protocols; `actors/` implements them with Ray, tests with fakes.

Work is submitted and its outcome comes back through one `EventSource`, so overlap, pauses and staleness follow from
*what is submitted when*, in one synchronous loop.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rlhaiku.events import GroupEvent, RoleEvent
from rlhaiku.types import Group, GroupRequest, SyncReport, TrainBatch


class Rollouts(Protocol):
    """Draws completions. Each submitted request comes back once, in a `GroupsGenerated`."""

    def submit(self, requests: Sequence[GroupRequest]) -> None:
        """Queues groups to generate; returns at once."""


class Rewards(Protocol):
    """Scores completions. Each submitted group comes back once, in a `GroupsScored`."""

    def submit(self, groups: Sequence[Group]) -> None:
        """Queues groups to score; returns at once."""

    def stats(self) -> Mapping[str, float]:
        """What the scoring itself counted so far, e.g. of the judge; by metric name, possibly empty."""


class Trainer(Protocol):
    """Holds the policy and its optimizer. Each submitted batch comes back once, in a `StepTrained`."""

    def submit(self, batch: TrainBatch) -> None:
        """Starts one train step; returns at once."""

    def save(self, directory: Path) -> None:
        """Writes the whole training state, and a Hugging Face directory `hf/`, into an existing directory."""

    def load(self, directory: Path) -> None:
        """Restores what `save` wrote."""


class WeightSync(Protocol):
    """Moves the trainer's weights to every engine."""

    def publish(self, weight_version: int) -> SyncReport:
        """Returns when every engine confirmed this version and its checksum.

        An engine goes on generating with an older version it still holds until a request names the new one.
        Raises WeightMismatch.
        """


class EventSource(Protocol):
    """Where the outcome of everything submitted arrives."""

    def next(self, waiting_for: str, meanwhile: Callable[[], None] = ...) -> RoleEvent:
        """The next outcome, in order of arrival; if it is not there soon, `meanwhile` is called before waiting on.

        Raises WaitTimeout, which says `waiting_for`, when nothing arrives in time, ActorFailed when an actor died.
        """

    def deliver(self, event: RoleEvent) -> None:
        """Adds an outcome that needed no work."""


@dataclass(frozen=True, slots=True)
class Roles:
    """Everybody the coordinator gives work to, and where the outcome arrives."""

    rollouts: Rollouts
    rewards: Rewards
    trainer: Trainer
    weight_sync: WeightSync
    events: EventSource


class EventSink(Protocol):
    """Is told every event of every group, in the order the coordinator saw them."""

    def record(self, event: GroupEvent) -> None:
        """Takes note; must not raise for reasons of its own storage being slow."""
